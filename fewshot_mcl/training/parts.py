"""A step of one process by part, and what of the run its costs with several processes depend on: measured for `costs`."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.networks.batch_norm import SynchronisedBatchNorm
from fewshot_mcl.networks.peers import LAYOUTS, PeerNetwork
from fewshot_mcl.objectives.contrast import MultiViewContrast
from fewshot_mcl.training import budget
from fewshot_mcl.training.costs import Facts, Parts, Work
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.supervised import SupervisedTask

WARM_UP, TIMED, SECONDS = 1, 3, 3.0  # steps; steps at least, and for so long
Task = EpisodicTask | SupervisedTask


def measured(task: Task, processes: int) -> tuple[Facts, Parts]:
    """What a step of the task takes by part, were it shared by so many processes. The task cannot be trained after that.

    The step is cut where the networks' outputs are gathered: what comes after is computed whole by each process.
    """
    modules = task.modules().train()
    optimizer, pieces = task.optimizer(modules.parameters()), _Pieces(task, processes)
    rounds: list[list[float]] = []
    while len(rounds) < WARM_UP + TIMED or sum(map(sum, rounds[WARM_UP:])) < SECONDS:
        seam = _Seam(task.device)
        times = _step(task, optimizer, seam, len(rounds))
        rounds.append([*times, *pieces.seconds(seam)])
    data, networks, objective, update, split, trunk = map(statistics.median, zip(*rounds[WARM_UP:]))
    whole, part, shared = pieces.kept(seam)
    parts = Parts(
        Work(networks, whole), Work(trunk, shared), Work(split, part), Work(objective, _kept_by_objective(task)), data, update
    )  # fmt: skip
    return facts_of(task, seam), parts


def facts_of(task: Task, seam: _Seam) -> Facts:
    """What bytes depend on, of a task and the seam of a step that it took."""
    peers, objective = task.peers, task.objective
    trunk_stages = trunk_of(peers)
    norms = 0 if task.config.batch_norm != "synchronised" else len(seam.images)
    banks = next((each.banks.shape for each in objective.modules() if isinstance(each, MultiViewContrast)), (0, 0, 0))
    all_norms, trunk_norms = (channels_of(network) * norms for network in (peers, trunk_stages))
    trunk, everything = (sum(p.numel() for p in each.parameters()) for each in (trunk_stages, peers))
    parameters = list(task.modules().parameters())
    return Facts(
        peers=peers.num_peers,
        images=task.images_per_step,
        rows=banks[1],
        width=banks[2],
        outputs={name: each[0].shape[-1] if each else 0 for name, each in seam.leaves.items()},
        trunk=trunk,
        own=(everything - trunk) // peers.num_peers,
        heads=sum(p.numel() for p in objective.parameters()),
        states=budget.state_factor(task.optimizer(parameters)),
        trunk_norms=tuple(trunk_norms),
        own_norms=tuple(all_norms[len(trunk_norms) :]),
    )


def trunk_of(peers: PeerNetwork) -> nn.Sequential:
    """The stages that all peers share, one after another; none where there is one peer."""
    shared = (stages for stages in peers.stages if peers.num_peers > 1)
    return nn.Sequential(*(stages[0] for stages in shared if len(stages) == 1))  # type: ignore[arg-type, index]


def channels_of(network: nn.Module) -> list[int]:
    """Of each batch norm of feature maps."""
    return [module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@dataclass
class _Seam:
    """Stands behind the peers for one step: what they give goes on as tensors of their own, whose gradients stay there.

    Attributes:
        images: what the peers were given, once for each time that they were called.
        given, leaves: by output, what they gave and what went on in its place.
        begun, ended: when they were called.
    """

    device: torch.device
    images: list[Tensor] = field(default_factory=list)
    given: dict[str, list[Tensor]] = field(default_factory=lambda: {"features": [], "logits": [], "stem": []})
    leaves: dict[str, list[Tensor]] = field(default_factory=lambda: {"features": [], "logits": [], "stem": []})
    begun: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    @contextmanager
    def behind(self, peers: PeerNetwork) -> Iterator[None]:
        """While this is entered."""
        handles = [peers.register_forward_pre_hook(self._before), peers.register_forward_hook(self._after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, peers: nn.Module, args: Any) -> None:
        self.images.append(args[0])
        self.begun.append(_now(self.device))

    def _after(self, peers: nn.Module, args: Any, out: PeerOutputs) -> PeerOutputs:
        self.ended.append(_now(self.device))
        leaves = {}
        for name in self.given:
            value = getattr(out, name)
            if value is not None:
                leaves[name] = value.detach().requires_grad_()
                self.given[name].append(value)
                self.leaves[name].append(leaves[name])
        return PeerOutputs(**leaves)

    def backward(self) -> None:
        """What the gradients are at the networks' parameters."""
        pairs = [(g, leaf) for name, given in self.given.items() for g, leaf in zip(given, self.leaves[name])]
        pairs = [(g, leaf) for g, leaf in pairs if leaf.grad is not None]
        torch.autograd.backward([g for g, _ in pairs], [leaf.grad for _, leaf in pairs])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _step(task: Task, optimizer: torch.optim.Optimizer, seam: _Seam, number: int) -> tuple[float, float, float, float]:
    """Seconds of step `number`: making the batch, networks, objective, update."""
    start = _now(task.device)
    with seam.behind(task.peers):
        terms, _ = task.step(number)
    optimizer.zero_grad(set_to_none=True)
    terms["total"].backward()
    cut = _now(task.device)
    seam.backward()
    behind = _now(task.device)
    optimizer.step()
    end = _now(task.device)
    forward = sum(ended - begun for begun, ended in zip(seam.begun, seam.ended))
    data = seam.begun[0] - start
    return data, forward + behind - cut, cut - start - data - forward, end - behind


class _Pieces:
    """The networks on a part of a step's images, and their trunk on all: run by themselves."""

    def __init__(self, task: Task, processes: int) -> None:
        self.task, self.images = task, math.ceil(task.images_per_step / processes)
        self.trunk = trunk_of(task.peers)
        self.split = copy.deepcopy(task.peers)
        for module in self.split.modules():
            if type(module) is nn.BatchNorm2d and task.config.batch_norm == "synchronised":
                module.__class__ = SynchronisedBatchNorm
                module.always = True  # type: ignore[assignment]

    def _each(self, seam: _Seam) -> list[Callable[[], list[Tensor]]]:
        """Forward passes: of the networks on all images, on a part of them, of the trunk."""
        images = torch.cat(seam.images).contiguous(memory_format=LAYOUTS[self.task.config.layout])

        def outputs(out: PeerOutputs) -> list[Tensor]:
            return [value for value in (out.features, out.logits) if value is not None]

        return [
            lambda: outputs(self.task.peers(images)), lambda: outputs(self.split(images[: self.images])),
            lambda: [self.trunk(images)] if len(self.trunk) else [],
        ]  # fmt: skip

    def _autocast(self) -> Any:
        return torch.autocast(self.task.device.type, torch.bfloat16, enabled=self.task.config.precision == "bfloat16")

    def seconds(self, seam: _Seam) -> list[float]:
        """Of the part, and of the trunk."""
        times = []
        for forward in self._each(seam)[1:]:
            start = _now(self.task.device)
            with self._autocast():
                given = forward()
            if given:
                torch.autograd.backward(given, [torch.ones_like(each) for each in given])
            times.append(_now(self.task.device) - start)
        return times

    def kept(self, seam: _Seam) -> list[int]:
        """Bytes that the networks on all images, on the part, and the trunk keep for their backward passes."""
        found = []
        for forward in self._each(seam):
            with keeping(self.task.modules(), self.split) as storages, self._autocast():
                given = forward()
            found.append(sum(storages.values()) * bool(given))
        return found


@contextmanager
def keeping(*own: nn.Module) -> Iterator[dict[int, int]]:
    """Yields bytes by storage of what autograd keeps of the computation inside, beside parameters and buffers of `own`."""
    known = {t.untyped_storage()._cdata for module in own for t in (*module.parameters(), *module.buffers())}
    storages: dict[int, int] = {}
    alive = []  # while they are counted no storage may take another's place

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in known:
            storages[storage._cdata] = storage.nbytes()
            alive.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield storages


def _kept_by_objective(task: Task) -> int:
    """Bytes of the objective of one step: what autograd keeps, and what the contrast works in."""
    seam, plan = _Seam(task.device), task.objective.plan(task.images_per_step)
    with seam.behind(task.peers), keeping(task.modules()) as storages:
        kept_before: list[int] = []
        handle = task.peers.register_forward_hook(lambda *_: kept_before.append(sum(storages.values())))
        terms, _ = task.step(0)
        handle.remove()
    del terms
    return sum(storages.values()) - kept_before[-1] + (plan.bytes if plan else 0)
