"""A training step of four peers on fixed inputs, in every form; part of gpu.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from contrast import published
from gpu_device import Bench, captured
from torch import Tensor, nn
from torch.nn import functional as nnf

from fewshot_mcl import draws
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.networks.forms import Form
from fewshot_mcl.networks.peers import PeerNetwork, forward_in
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import with_total
from fewshot_mcl.objectives.mcl_okd import MclOkd

PEERS, TEACHING_TEMPERATURE = 4, 3.0


@dataclass(frozen=True)
class Case:
    """Networks, method and one batch that all forms share.

    Attributes:
        name: of the backbone.
        inputs: images (B, C, H, W), targets, indices (B,) and negatives (B, K), on the device.
        episode: way and shot, the support's images first; None for a batch of labelled images.
        adam: whether Adam trains these peers, else SGD.
    """

    name: str
    peers: PeerNetwork
    objective: MclOkd
    inputs: dict[str, Tensor]
    episode: tuple[int, int] | None
    adam: bool

    @property
    def images(self) -> int:
        return len(self.inputs["images"])

    def double(self) -> Case:
        """The same in float64."""
        inputs = self.inputs | {"images": self.inputs["images"].double()}
        peers, objective = copy.deepcopy(self.peers).double(), copy.deepcopy(self.objective).double()
        return replace(self, peers=peers, objective=objective, inputs=inputs)


def resnet_case(bench: Bench) -> Case:
    """ResNet-32 as `classify` trains it on CIFAR-100: 100 classes, 32x32, batch 64, K = 256."""
    batch, side, rows, count = (4, 16, 500, 16) if bench.small else (64, 32, 50_000, 256)
    labels = torch.arange(rows) % 100
    indices = torch.randperm(rows, generator=draws.generator(0, "batch"))[:batch]
    return _case(bench, "resnet32", side, 100, labels, indices, labels[indices], count, None)


def conv4_case(bench: Bench) -> Case:
    """Conv4 on an episode of miniImageNet's size: 64 x 600 training images, 5-way 5-shot, 15 queries a class, K = 256."""
    way, shot, query, side, count = (3, 2, 2, 32, 16) if bench.small else (5, 5, 15, 84, 256)
    labels = torch.arange(64).repeat_interleave(20 if bench.small else 600)
    each = [(labels == k).nonzero()[: shot + query, 0] for k in range(way)]
    indices = torch.cat([rows[:shot] for rows in each] + [rows[shot:] for rows in each])
    targets = torch.arange(way).repeat_interleave(query)
    return _case(bench, "conv4", side, way, labels, indices, targets, count, (way, shot))


CASES: dict[str, Callable[[Bench], Case]] = {"resnet32": resnet_case, "conv4": conv4_case}


def _case(
    bench: Bench,
    name: str,
    side: int,
    classes: int,
    labels: Tensor,
    indices: Tensor,
    targets: Tensor,
    count: int,
    episode: tuple[int, int] | None,
) -> Case:
    with draws.seeded(0, "peers"):
        peers = PeerNetwork(name, PEERS, None if episode else classes, image_size=side)
        objective = create_objective(
            "mcl-okd", num_peers=PEERS, num_classes=classes, feature_dim=peers.feature_dim, stem_dim=peers.stem_dim,
            labels=labels, seed=0, num_negatives=count,
        )  # fmt: skip
    assert isinstance(objective, MclOkd)
    assert objective.contrast is not None
    images = torch.randn(len(indices), 3, side, side, generator=draws.generator(0, "images"))
    inputs = {"images": images, "targets": targets, "indices": indices, "negatives": objective.contrast.draw(indices)}
    inputs = {key: value.to(bench.device) for key, value in inputs.items()}
    return Case(name, peers.to(bench.device), objective.to(bench.device), inputs, episode, adam=episode is not None)


class Learner:
    """Peers that learn from a case, a step at a time, in one form.

    Args:
        case: which is left as it is.
        form: "straightforward" is the published way: one peer after another, channels first, ReLU before the pooling,
            every ordered pair's rows gathered under autograd. The others are ours.
        precision: see `gpu_device.use_precision`, which must have been called with it.
        compiled: the peers by torch.compile.

    Attributes:
        inputs: what the next step learns from; written in place, never replaced.
    """

    def __init__(self, case: Case, form: str, precision: str = "float32", compiled: bool = False) -> None:
        self.case, self.plain = case, form == "straightforward"
        self.precision = "bfloat16" if precision == "bfloat16" else "float32"
        self.peers, self.objective = copy.deepcopy(case.peers), copy.deepcopy(case.objective)
        layout = torch.contiguous_format if self.plain else torch.channels_last
        self.peers.to(memory_format=layout)
        self.inputs = {key: value.clone() for key, value in case.inputs.items()}
        self.inputs["images"] = self.inputs["images"].contiguous(memory_format=layout)
        if self.plain and case.name == "conv4":
            _usual_order(self.peers)
        self.peers.form = "loop" if self.plain else cast(Form, form)
        self.network = cast(PeerNetwork, torch.compile(self.peers)) if compiled else self.peers
        self.modules = nn.ModuleList([self.peers, self.objective]).train()
        self.optimizer = self._optimizer(on_device=False)
        self._initial = {name: value.clone() for name, value in self.modules.state_dict().items()}
        self._graph: torch.cuda.CUDAGraph | None = None

    def _optimizer(self, on_device: bool) -> torch.optim.Optimizer:
        """As the two tasks have it. With `on_device` the rate is read from there: a schedule moves it without a new graph."""
        parameters, lr = self.modules.parameters(), 0.001 if self.case.adam else 0.05
        rate = torch.tensor(lr, device=self.case.inputs["images"].device) if on_device else lr
        if self.case.adam:
            return torch.optim.Adam(parameters, rate, fused=on_device or None, capturable=on_device)
        return torch.optim.SGD(
            parameters, rate, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=on_device or None
        )

    def capture(self) -> None:
        """From now on a step is the replay of a CUDA graph."""
        self.optimizer = self._optimizer(on_device=True)
        self._graph, self._loss = captured(self._step, self.optimizer.zero_grad)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Everything as it was before the first step."""
        for name, value in self.modules.state_dict().items():
            value.copy_(self._initial[name])
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()

    def step(self) -> Tensor:
        """Learn once; the loss, on the device."""
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._loss

    def losses(self) -> list[float]:
        """Of the first two steps; the second shows whether the first learned the same."""
        self.reset()
        found = [float(self.step()) for _ in range(2)]
        self.reset()
        return found

    def _step(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        out = forward_in(self.network, self.inputs["images"], self.precision)
        loss = self._published(out) if self.plain else self._ours(out)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _ours(self, out: PeerOutputs) -> Tensor:
        """The terms of `MclOkd` with negatives that are given: drawing them is work of the host."""
        contrast, logits = self.objective.contrast, out.logits
        assert contrast is not None
        if self.case.episode:
            way, shot = self.case.episode
            support, query = out.features[:, : way * shot], out.features[:, way * shot :]
            logits = F.prototypical_logits(query, F.prototypes(support.unflatten(1, (way, shot))))
        terms = self.objective.logit_terms(PeerOutputs(out.features, logits), self.inputs["targets"], 0)
        loss = contrast(out.features, self.inputs["indices"], self.inputs["negatives"])
        return with_total(terms | {"contrast": self.objective.beta * loss})["total"]

    def _published(self, out: PeerOutputs) -> Tensor:
        contrast, targets, indices = self.objective.contrast, self.inputs["targets"], self.inputs["indices"]
        assert contrast is not None
        logits = list(out.logits) if out.logits is not None else [self._distances(f) for f in out.features]
        loss = torch.stack([nnf.cross_entropy(each, targets) for each in logits]).sum()
        teacher = (torch.stack(logits).mean(0) / TEACHING_TEMPERATURE).softmax(1).detach()
        student = (logits[-1] / TEACHING_TEMPERATURE).log_softmax(1)
        loss = loss + TEACHING_TEMPERATURE**2 * nnf.kl_div(student, teacher, reduction="batchmean")
        embeddings = contrast.embed(out.features)
        loss = loss + self.objective.beta * published(embeddings, contrast.banks, indices, self.inputs["negatives"])
        with torch.no_grad():
            for bank, row in zip(contrast.banks, embeddings):
                moved = bank[indices] * 0.5 + row * 0.5
                bank[indices] = moved / moved.norm(dim=1, keepdim=True)
        return loss

    def _distances(self, features: Tensor) -> Tensor:
        """Minus the squared distance of each query to each prototype."""
        assert self.case.episode is not None
        way, shot = self.case.episode
        centres = torch.stack([part.mean(0) for part in features[: way * shot].split(shot)])
        return -(features[way * shot :, None] - centres).square().sum(-1)


def _usual_order(peers: PeerNetwork) -> None:
    """ReLU before the max-pool, as everyone writes Conv4."""
    for copies in peers.stages:
        for stage in cast(nn.ModuleList, copies):
            assert isinstance(stage, nn.Sequential)
            stage[2], stage[3] = stage[3], stage[2]
