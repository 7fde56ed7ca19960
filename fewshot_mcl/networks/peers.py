"""M peers of any backbone that share its first stages."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.networks.backbone import Backbone

PRESETS = ("paper-code", "last-two", "last-one", "none")


@dataclass(frozen=True)
class PeerOutputs:
    """What M peers say of one batch, and all that an objective sees.

    Attributes:
        features: (M, B, D) pooled features.
        logits: (M, B', C) logits, or None. B' = B, except on an episode, where they are the queries' episode logits.
        stem: (B, Ds) average over positions of what the shared stages give, or None where nothing is shared.
    """

    features: Tensor
    logits: Tensor | None = None
    stem: Tensor | None = None


def copies_per_stage(share: str, stages: int, peers: int, method: str = "mcl-okd") -> tuple[int, ...]:
    """How many copies of each stage exist: 1 where it is shared by all, M where each peer has its own.

    Presets: "last-two" and "last-one" give every peer its own last two (one) stages, "none" shares nothing, and
    "paper-code" is what the published code trains for `method`: one stage more is shared by ONE and OKDDip, and CL-ILR
    is a tree whose last stage but one exists ceil(M/2) times.

    Raises:
        UserError: if `share` is no preset.
    """
    if share not in PRESETS:
        raise unknown("share preset", share, PRESETS)
    if share == "paper-code" and method == "cl-ilr":
        return (1,) * (stages - 2) + (math.ceil(peers / 2), peers)
    if share == "paper-code":
        share = "last-one" if method in ("one", "okddip") else "last-two"
    own = {"last-two": 2, "last-one": 1, "none": stages}[share]
    return (1,) * (stages - own) + (peers,) * own


class PeerNetwork(nn.Module):
    """M networks of one architecture over a common trunk; peer M-1 is the one that is deployed.

    Copy j of a stage stands on copy floor(j * parents / copies) of the stage before, so that the copies form a tree.
    Every copy is initialised independently.

    Args:
        backbone: name of a backbone.
        num_peers: M >= 1.
        num_classes: outputs of each peer's classifier; None for none.
        share: preset of `copies_per_stage`.
        method: the method whose published graph "paper-code" means.
        **options: passed to the backbone (`in_channels`, `image_size`).

    Raises:
        UserError: for an unknown backbone or preset, or M < 1.
    """

    def __init__(
        self,
        backbone: str,
        num_peers: int = 4,
        num_classes: int | None = None,
        share: str = "last-two",
        method: str = "mcl-okd",
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
        self.num_peers, self.feature_dim, self.stage_channels = num_peers, first.feature_dim, first.stage_channels
        self._shared = copies.count(1) if num_peers > 1 else 0
        self.stem_dim = first.stage_channels[self._shared - 1] if self._shared else None

    @property
    def _levels(self) -> list[nn.ModuleList]:
        """The copies of each stage."""
        return [cast(nn.ModuleList, copies) for copies in self.stages]

    def forward(self, images: Tensor) -> PeerOutputs:
        """Images (B, C, H, W) -> features (M, B, D), logits (M, B, C) where there are classifiers, stem (B, Ds)."""
        maps, stem = [images], None
        for number, copies in enumerate(self._levels, start=1):
            maps = [stage(maps[j * len(maps) // len(copies)]) for j, stage in enumerate(copies)]
            if number == self._shared:
                stem = maps[0].mean((2, 3))
        features = [self.pool(m) for m in maps]
        logits = [classify(f) for classify, f in zip(self.classifiers, features)]
        return PeerOutputs(torch.stack(features), torch.stack(logits) if logits else None, stem)

    def peer(self, number: int) -> Backbone:
        """Peer `number` as a plain backbone over the same parameters."""
        path, position, levels = [], number, self._levels
        for level in reversed(range(len(levels))):
            path.append(levels[level][position])
            parents = len(levels[level - 1]) if level else 1
            position = position * parents // len(levels[level])
        net = Backbone(path[::-1], stage_channels=self.stage_channels, feature_dim=self.feature_dim, num_classes=None)
        net.pool = self.pool
        net.classifier = cast(nn.Linear, self.classifiers[number]) if len(self.classifiers) else None
        return net

    def deployed(self) -> Backbone:
        """A copy of the last peer as a plain backbone: what a user keeps, at the cost of one network."""
        return copy.deepcopy(self.peer(self.num_peers - 1))
