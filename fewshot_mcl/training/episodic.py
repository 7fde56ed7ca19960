"""The few-shot task: an episode in, the objective's terms out."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewshot_mcl import draws
from fewshot_mcl.config import Config
from fewshot_mcl.data.episodes import Episodes, EpisodeSampler
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import embed, evaluate_peers, normalise
from fewshot_mcl.evaluation.restore import build_peers
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective, with_total


class EpisodicTask:
    """Prototypical peers on episodes of a training store, validated on fixed episodes of another.

    One step is one episode. All its images go through the peers together; each peer classifies the queries by its own
    prototypes.

    Attributes:
        peers, objective: the modules that learn.
        mean, std: (C,) of the training images in [0, 1].
    """

    def __init__(self, config: Config, train: ImageStore, val: ImageStore, device: torch.device) -> None:
        self.config, self.train, self.val, self.device = config, train, val, device
        self.sampler = _sampler(train, config.way, config.shot, config.query, config.seed, "training")
        seed = draws.key(config.seed, "validation")
        self.val_sampler = _sampler(val, config.val_way, config.val_shot, config.val_query, seed, "validation")
        self.val_episodes = self.val_sampler.sample(config.val_episodes)
        self.peers = build_peers(config, train.shape[0], train.shape[1], train.num_classes).to(device)
        with draws.seeded(config.seed, "objective"):
            self.objective: Objective = create_objective(
                config.method,
                num_peers=config.peers,
                num_classes=train.num_classes if config.kl_source == "aux" else config.way,
                feature_dim=self.peers.feature_dim,
                stem_dim=self.peers.stem_dim,
                labels=train.labels,
                seed=config.seed,
                feature_channels=self.peers.stage_channels[-1],
                **config.objective,
            ).to(device)
        self.mean, self.std = (statistic.to(device) for statistic in channel_statistics(train))
        images = config.way * (config.shot + config.query)
        self.images_per_step, self.epoch_steps = images, config.epoch
        self._targets = torch.arange(config.way, device=device).repeat_interleave(config.query)

    def modules(self) -> nn.ModuleDict:
        """All that is saved and trained."""
        return nn.ModuleDict({"peers": self.peers, "objective": self.objective})

    def step(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Episode `number`: the objective's terms with their "total", and each peer's query loss (for the record)."""
        episode = self.sampler.sample(1, start=number)
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
        images = normalise(self.train.images[indices].to(self.device), self.mean, self.std)
        if self.config.joint_forward:
            return self.peers(images)
        first, second = self.peers(images[:support]), self.peers(images[support:])
        logits = None if first.logits is None else torch.cat([first.logits, second.logits], 1)
        stem = None if first.stem is None else torch.cat([first.stem, second.stem])
        return PeerOutputs(torch.cat([first.features, second.features], 1), logits, stem)

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


def channel_statistics(store: ImageStore) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over all pixels, on the scale [0, 1]: (C,) and (C,)."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(store), 1024):
        pixels = store.images[start : start + 1024].transpose(0, 1).flatten(1).double() / 255
        count += pixels.shape[1]
        total, squares = total + pixels.sum(1), squares + pixels.square().sum(1)
    mean = total / count
    variance = squares / count - mean.square()
    return mean.float(), variance.clamp_min(1e-8).sqrt().float()
