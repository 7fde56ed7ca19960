"""The few-shot task: an episode in, the objective's terms out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_mcl import draws, parallel
from fewshot_mcl.config import FewShotConfig
from fewshot_mcl.data.episodes import Episodes, EpisodeSampler
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import Normaliser, channel_statistics, embed, evaluate_peers
from fewshot_mcl.evaluation.restore import build_objective, build_peers, load_teacher
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.networks.peers import forward_in
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective, with_total
from fewshot_mcl.objectives.rkd import RkdD
from fewshot_mcl.training.loop import Plan

FINAL_EPISODES = 600  # of the closing figure on the validation split


def learning_rate(config: FewShotConfig, step: int) -> float:
    """Of step number `step` (from 0)."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * step / config.episodes))
    return config.lr * 0.5 ** (step // config.halve_every) if config.schedule == "halving" else config.lr


class EpisodicTask:
    """Prototypical peers on episodes of a training store, validated on fixed episodes of another.

    One step is one episode. All its images go through the peers together; each peer classifies the queries by its own
    prototypes.

    Attributes:
        peers, objective: the modules that learn.
        mean, std: (C,) of the training images in [0, 1].
        size: side of the images.
        ships: which checkpoint the deployed network is taken from.
    """

    ships = "best"

    def __init__(self, config: FewShotConfig, train: ImageStore, val: ImageStore, device: torch.device) -> None:
        self.config, self.train, self.val, self.device = config, train, val, device
        self.size = train.shape[1]
        self.sampler = _sampler(train, config.way, config.shot, config.query, config.seed, "training")
        seed = draws.key(config.seed, "validation")
        self.val_sampler = _sampler(val, config.val_way, config.val_shot, config.val_query, seed, "validation")
        self.val_episodes = self.val_sampler.sample(config.val_episodes)
        self.peers = build_peers(config, train.shape[0], train.shape[1], train.num_classes).to(device)
        classes = train.num_classes if config.kl_source == "aux" else config.way
        self.objective: Objective = build_objective(config, self.peers, classes, train.labels).to(device)
        self.mean, self.std = (statistic.to(device) for statistic in channel_statistics(train))
        images = config.way * (config.shot + config.query)
        self.images_per_step, self.epoch_steps = images, config.epoch
        self.plan = Plan(config.episodes, config.log_every, config.val_every, config.val_every)
        self._targets = torch.arange(config.way, device=device).repeat_interleave(config.query)
        self._normalise = Normaliser(self.mean, self.std)

    def modules(self) -> nn.ModuleDict:
        """All that is saved and trained."""
        return nn.ModuleDict({"peers": self.peers, "objective": self.objective})

    def candidate(self) -> nn.ModuleDict:
        """The peers: episodes need nothing else to be solved."""
        return nn.ModuleDict({"peers": self.peers})

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.config.lr, weight_decay=self.config.weight_decay)

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step)

    def where(self, step: int) -> str:
        """After so many steps, in words."""
        return f"episode {step}/{self.config.episodes}"

    def protocol(self) -> str:
        """What `validate` measures."""
        return f"val {self.config.val_way}-way {self.config.val_shot}-shot"

    def describe_data(self) -> str:
        """The stores, for the heading of a run."""
        train, val = self.train, self.val
        return f"{train.num_classes} training classes ({len(train):,} images), {val.num_classes} validation classes"

    def describe_steps(self) -> str:
        """What a step is, for the heading of a run."""
        return f"{self.config.way}-way {self.config.shot}-shot, {self.config.query} queries a class"

    def card(self) -> dict[str, Any]:
        """What the deployed network's card says of the task."""
        return {"metric": self.config.metric, "scale": self.config.scale}

    def card_protocol(self) -> dict[str, Any]:
        """How `closing` measures."""
        return {"way": self.config.val_way, "shot": self.config.val_shot, "query": self.config.val_query}

    def use_teacher(self) -> None:
        """Let RKD learn from the run that the configuration names, of whose features a table is made once."""
        assert isinstance(self.objective, RkdD)
        network, mean, std = load_teacher(self.config, self.train, self.size)
        self.objective.set_teacher(
            embed(network.to(self.device), self.train, mean.to(self.device), std.to(self.device))
        )

    def step(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Episode `number`: the objective's terms with their "total", and each peer's query loss (for the record)."""
        episode = self.sampler.episode(number)
        support, query = episode.support[0].flatten(), episode.query[0].flatten()
        indices = torch.cat([support, query])
        out = self._forward(indices, len(support))
        logits = self._episode_logits(out.features)
        indices = indices.to(self.device)
        terms = self._terms(out, logits, indices, number // self.epoch_steps)
        with torch.no_grad():
            losses = F.cross_entropy(logits, self._targets)
        return terms, {f"peer{m}": loss for m, loss in enumerate(losses)}

    def _forward(self, indices: Tensor, support: int) -> PeerOutputs:
        sizes = [len(indices)] if self.config.joint_forward else [support, len(indices) - support]
        mine = [group[parallel.part(len(group))] for group in indices.split(sizes)]  # of this process
        images = self._normalise(self.train.gather(torch.cat(mine)).to(self.device))
        outs = [
            forward_in(self.peers, part, self.config.precision, self.config.layout).gathered(size)
            for part, size in zip(images.split([len(each) for each in mine]), sizes)
        ]
        logits, stems = ([x for x in each if x is not None] for each in zip(*((out.logits, out.stem) for out in outs)))
        return PeerOutputs(
            torch.cat([out.features for out in outs], 1),
            torch.cat(logits, 1) if logits else None,
            torch.cat(stems) if stems else None,
        )

    def _episode_logits(self, features: Tensor) -> Tensor:
        """(M, B, D) features, support first -> (M, way * query, way)."""
        config = self.config
        support, query = features.split([config.way * config.shot, config.way * config.query], dim=1)
        centres = F.prototypes(support.unflatten(1, (config.way, config.shot)))
        return F.prototypical_logits(query, centres, config.metric, config.scale)

    def _terms(self, out: PeerOutputs, logits: Tensor, indices: Tensor, epoch: float) -> dict[str, Tensor]:
        """The method on episode logits, or on the auxiliary classifier's, or its class loss alone; and its terms of features."""
        config, episode = self.config, replace(out, logits=logits)
        terms = {"ce": F.cross_entropy(logits, self._targets).sum()}
        if config.kl_source == "episode":
            terms = self.objective.logit_terms(episode, self._targets, epoch)
        if config.auxiliary_weight:
            assert out.logits is not None
            labels = self.train.labels.to(self.device)[indices]
            auxiliary = {"ce": F.cross_entropy(out.logits, labels).sum()}
            if config.kl_source == "aux":
                auxiliary = self.objective.logit_terms(out, labels, epoch)
            terms |= {f"aux_{name}": config.auxiliary_weight * term for name, term in auxiliary.items()}
        return with_total(terms | self.objective.feature_terms(episode, indices))

    def validate(self) -> dict[str, Result]:
        """Every peer and the ensemble on the fixed validation episodes."""
        return self.evaluate(self.val_episodes)

    def closing(self) -> dict[str, Result]:
        """The figure a finished run ends with: on validation episodes that took no part in choosing the best checkpoint."""
        return self.evaluate(self.val_sampler.sample(FINAL_EPISODES, start=self.config.val_episodes))

    def evaluate(self, episodes: Episodes) -> dict[str, Result]:
        """Every peer and the ensemble on episodes of the validation store."""
        features = embed(self.peers, self.val, self.mean, self.std)
        return evaluate_peers(features, episodes, metric=self.config.metric, scale=self.config.scale)


def _sampler(store: ImageStore, way: int, shot: int, query: int, seed: int, purpose: str) -> EpisodeSampler:
    try:
        return EpisodeSampler(store.labels, way=way, shot=shot, query=query, seed=seed, class_names=store.class_names)
    except UserError as error:
        advice = str(error)
        if purpose == "validation":  # its settings have no options of their own
            advice = re.sub(r"--(way|shot|query) ", r"--set val_\1=", advice)
        raise UserError(f"{purpose} episodes: {advice}") from error
