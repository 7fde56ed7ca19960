"""Nearest class means of a support set in which classes may have any number of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_mcl.objectives import functional as F


@dataclass(frozen=True)
class Prototypes:
    """What a support set is to a network.

    Attributes:
        features: (N, D) of the support images.
        labels: (N,) integers in [0, W); every one of them occurs.
        metric, scale: see `functional.prototypical_logits`.
    """

    features: Tensor
    labels: Tensor
    metric: str = "euclidean"
    scale: float = 1.0

    @property
    def counts(self) -> Tensor:
        """(W,) images of each class."""
        return torch.bincount(self.labels)

    @property
    def centres(self) -> Tensor:
        """(W, D) class means: each image of a class counts the same, however many the class has."""
        sums = self.features.new_zeros(len(self.counts), self.features.shape[1])
        return sums.index_add(0, self.labels, self.features) / self.counts[:, None]

    def logits(self, query: Tensor) -> Tensor:
        """(Q, D) features -> (Q, W) logits."""
        return F.prototypical_logits(query, self.centres, self.metric, self.scale)

    def nearest(self, query: Tensor, count: int) -> Tensor:
        """(Q, D) features -> (Q, count) rows of the support images nearest to each, the nearest first."""
        likeness = F.prototypical_logits(query, self.features, self.metric, self.scale)
        return likeness.topk(min(count, len(self.features)), dim=1).indices

    def leave_one_out(self) -> Tensor | None:
        """(N,) whether each support image is recognised by the means of all the others.

        None where a class has one image: without it that class would have no mean.
        """
        counts, centres = self.counts, self.centres
        if int(counts.min()) < 2:
            return None
        right = []
        for feature, label in zip(self.features, self.labels):
            others = centres.clone()
            others[label] = (centres[label] * counts[label] - feature) / (counts[label] - 1)
            right.append(F.prototypical_logits(feature[None], others, self.metric, self.scale).argmax() == label)
        return torch.stack(right)
