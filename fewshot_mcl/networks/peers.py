"""M peers of any backbone that share its first stages."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewshot_mcl import parallel
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.networks import create_backbone, forms
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.networks.forms import Form

LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
PRESETS = ("paper-code", "last-two", "last-one", "none")


@dataclass(frozen=True)
class PeerOutputs:
    """What M peers say of one batch, and all that an objective sees.

    Attributes:
        features: (M, B, D) pooled features.
        logits: (M, B', C) logits, or None. B' = B, except on an episode, where they are the queries' episode logits.
        stem: (B, Ds) average over positions of what the shared stages give, or None where nothing is shared.

    Example:
        >>> out = PeerOutputs(features=torch.zeros(4, 8, 64))
        >>> out.features.shape, out.logits
        (torch.Size([4, 8, 64]), None)
    """

    features: Tensor
    logits: Tensor | None = None
    stem: Tensor | None = None

    def gathered(self, count: int) -> PeerOutputs:
        """The outputs of all processes, where these are of one's part of `count` images."""
        logits = None if self.logits is None else parallel.gather(self.logits, 1, count)
        stem = None if self.stem is None else parallel.gather(self.stem, 0, count)
        return PeerOutputs(parallel.gather(self.features, 1, count), logits, stem)


def forward_in(peers: PeerNetwork, images: Tensor, precision: str, layout: str = "channels-last") -> PeerOutputs:
    """The peers on images in "float32" or "bfloat16" (autocast) and in one of `LAYOUTS`; an objective sees float32 anyway."""
    images = images.contiguous(memory_format=LAYOUTS[layout])
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        out = peers(images)
    if precision == "float32":
        return out
    logits, stem = (None if each is None else each.float() for each in (out.logits, out.stem))
    return PeerOutputs(out.features.float(), logits, stem)


def copies_per_stage(share: str, stages: int, peers: int, method: str = "mcl-okd") -> tuple[int, ...]:
    """How many copies of each stage exist: 1 where it is shared by all, M where each peer has its own.

    Presets: "last-two" and "last-one" give every peer its own last two (one) stages, "none" shares nothing, and
    "paper-code" is what the published code trains for `method`: one stage more is shared by ONE and OKDDip, and CL-ILR
    is a tree whose last stage but one exists ceil(M/2) times.

    Raises:
        UserError: if `share` is no preset, or if the backbone has too few stages for it to leave anything shared.
    """
    if share not in PRESETS:
        raise unknown("share preset", share, PRESETS)
    if share == "none" or peers == 1:
        return (peers,) * stages
    published = method if share == "paper-code" else None
    if share == "last-one" or published in ("one", "okddip"):
        own: tuple[int, ...] = (peers,)
    else:
        own = (math.ceil(peers / 2) if published == "cl-ilr" else peers, peers)
    if len(own) >= stages:
        held = "one piece" if stages == 1 else f"{stages} stages"
        raise UserError(f"this backbone comes as {held}, of which '{share}' leaves nothing to share: use share 'none'.")
    return (1,) * (stages - len(own)) + own


class Fork(torch.autograd.Function):
    """The identity, with a backward that divides the gradient by the number of branches that start here.

    CL-ILR's rescaling (Song & Chai, "Collaborative Learning for Deep Neural Networks", arXiv 1805.11761): shared layers
    get the mean of their branches' gradients, not the sum, whatever the number of branches.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, children: int) -> Tensor:
        """Maps of any shape, unchanged."""
        ctx.children = children
        return maps.view_as(maps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient over the number of children; none for that number."""
        return gradients[0] / ctx.children, None


def _fork(maps: Tensor, children: int) -> Tensor:
    return maps if children == 1 else cast(Tensor, Fork.apply(maps, children))


class PeerNetwork(nn.Module):
    """M networks of one architecture over a common trunk; peer M-1 is the one that is deployed.

    Copy j of a stage stands on copy floor(j * parents / copies) of the stage before, so that the copies form a tree.
    Every copy is initialised independently. For CL-ILR each fork of the tree divides the gradient by the number of its
    branches (`Fork`); values are the same for all methods.

    Args:
        backbone: name of a backbone.
        num_peers: M >= 1.
        num_classes: outputs of each peer's classifier; None for none.
        share: preset of `copies_per_stage`.
        method: the method whose published graph "paper-code" means; "cl-ilr" rescales gradients under every preset.
        form: how copies of a stage are run, see `forms`; values do not depend on it.
        **options: passed to the backbone (`in_channels`, `image_size`).

    Attributes:
        rescale_forks: whether forks rescale gradients; set from `method`.
        stem_dim: channels Ds of the last stage that all share, or None.
        own: the peers that this process has: all, until `keep_own`.

    Raises:
        UserError: for an unknown backbone or preset, a backbone that the preset cannot split, or M < 1.

    Example:
        >>> peers = PeerNetwork("conv4", num_peers=3, in_channels=1, image_size=28)
        >>> out = peers(torch.rand(2, 1, 28, 28))
        >>> out.features.shape, out.stem.shape
        (torch.Size([3, 2, 64]), torch.Size([2, 64]))
        >>> peers.deployed()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        backbone: str,
        num_peers: int = 4,
        num_classes: int | None = None,
        share: str = "last-two",
        method: str = "mcl-okd",
        form: Form = "loop",
        **options: Any,
    ) -> None:
        super().__init__()
        if num_peers < 1:
            raise UserError(f"the number of peers must be at least 1, not {num_peers}.")
        whole = [create_backbone(backbone, num_classes=num_classes, **options) for _ in range(num_peers)]
        first = whole[0]
        copies = copies_per_stage(share, len(first.stages), num_peers, method)
        self.stages = nn.ModuleList(
            nn.ModuleList(whole[j].stages[s] for j in range(count)) for s, count in enumerate(copies)
        )
        self.classifiers = nn.ModuleList(net.classifier for net in whole if net.classifier is not None)
        self.pool = first.pool
        self.rescale_forks, self.form = method == "cl-ilr", form
        if form == "grouped":
            for copies_of_stage in self._levels:
                if len(copies_of_stage) > 1:
                    forms.require_groupable(copies_of_stage[0])
        self.num_peers, self.feature_dim, self.stage_channels = num_peers, first.feature_dim, first.stage_channels
        self.own = range(num_peers)
        self._shared = copies.count(1) if num_peers > 1 else 0
        self.stem_dim = first.stage_channels[self._shared - 1] if self._shared else None

    @property
    def _levels(self) -> list[nn.ModuleList]:
        """The copies of each stage."""
        return [cast(nn.ModuleList, copies) for copies in self.stages]

    def forward(self, images: Tensor) -> PeerOutputs:
        """Images (B, C, H, W) -> features (M, B, D), logits (M, B, C) where there are classifiers, stem (B, Ds)."""
        maps, stem, before = {0: images}, None, 1
        for number, (copies, held) in enumerate(zip(self._levels, self._under(self.own)), start=1):
            parents = [j * before // len(copies) for j in range(len(copies))]
            if self.rescale_forks and number > 1:  # images are no fork: nothing before them learns
                maps = {parent: _fork(m, parents.count(parent)) for parent, m in maps.items()}
            results = forms.run([copies[j] for j in held], [maps[parents[j]] for j in held], self.form)
            maps, before = dict(zip(held, results)), len(copies)
            if number == self._shared:
                stem = maps[0].mean((2, 3))
        features = [self.pool(maps[m]) for m in self.own]
        logits = [self.classifiers[m](f) for m, f in zip(self.own, features)] if len(self.classifiers) else []
        return self._of_all(PeerOutputs(torch.stack(features), torch.stack(logits) if logits else None, stem))

    def _of_all(self, out: PeerOutputs) -> PeerOutputs:
        """The outputs of the peers of all processes, where these are of this one's own."""
        if len(self.own) == self.num_peers:
            return out
        logits = None if out.logits is None else parallel.of_all_peers(out.logits, self.num_peers)
        # The gradients of shared stages will be added up; what an objective sends into the stem it sends in every process.
        stem = None if out.stem is None else _fork(out.stem, parallel.world())
        return PeerOutputs(parallel.of_all_peers(out.features, self.num_peers), logits, stem)

    def keep_own(self) -> None:
        """Keep what this process's peers stand on, and give up the rest: it becomes "meta" tensors, which have no memory.

        Their names and shapes stay, and with them the order of parameters.
        """
        self.own = parallel.peers_of(parallel.rank(), self.num_peers)
        held = set(self._held())
        for each in (*(stage for copies in self._levels for stage in copies), *self.classifiers):
            if each not in held:
                each.to("meta")

    def _held(self) -> list[nn.Module]:
        stages = [copies[j] for copies, held in zip(self._levels, self._under(self.own)) for j in held]
        return [*stages, *(self.classifiers[m] for m in self.own if len(self.classifiers))]

    def own_parameters(self) -> list[nn.Parameter]:
        """Those that this process has."""
        return [p for module in self._held() for p in module.parameters()]

    def parameters_of_several(self) -> list[nn.Parameter]:
        """Where peers are split over processes, those that more than one process has; the same list in each."""
        held = [self._under(parallel.peers_of(number, self.num_peers)) for number in range(parallel.world())]
        several = [
            stage
            for level, copies in enumerate(self._levels)
            for j, stage in enumerate(copies)
            if sum(j in each[level] for each in held) > 1
        ]
        return [p for stage in several for p in stage.parameters()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PeerNetwork:
        """What is not here is not moved; its type changes with that of the rest."""

        def apply(value: Tensor) -> Tensor:
            return value.to(fn(value.new_empty(0, device="cpu")).dtype) if value.is_meta else fn(value)

        return super()._apply(apply, recurse)

    def _path(self, number: int) -> list[int]:
        """Which copy of each stage peer `number` stands on."""
        path = [number]
        for copies, before in zip(self._levels[:0:-1], self._levels[-2::-1]):
            path.append(path[-1] * len(before) // len(copies))
        return path[::-1]

    def _under(self, peers: range) -> list[list[int]]:
        """Which copies of each stage those peers stand on."""
        return [sorted(set(level)) for level in zip(*map(self._path, peers))]

    def peer(self, number: int) -> Backbone:
        """Peer `number` as a plain backbone over the same parameters."""
        path = [copies[j] for copies, j in zip(self._levels, self._path(number))]
        net = Backbone(path, stage_channels=self.stage_channels, feature_dim=self.feature_dim, num_classes=None)
        net.pool = self.pool
        net.classifier = cast(nn.Linear, self.classifiers[number]) if len(self.classifiers) else None
        return net

    def deployed(self) -> Backbone:
        """A copy of the last peer as a plain backbone: what a user keeps, at the cost of one network."""
        return copy.deepcopy(self.peer(self.num_peers - 1))
