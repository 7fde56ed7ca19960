"""Which images look as if they carried the name of another class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 4  # images of a class, below which nothing can be said of its spread
LEAST = 3.0  # powers of ten by which another class must be likelier, at least
CHI_SQUARE_MEDIAN = (
    0.4549364  # of one degree of freedom: the median of squares over it is a variance that outliers do not move
)


@dataclass(frozen=True)
class Suspicions:
    """How much likelier another class is, for each of N images.

    Attributes:
        score: (N,) float64, log10 of the likelihood ratio; -inf where nothing can be said.
        other: (N,) the nearest other class.
    """

    score: Tensor
    other: Tensor

    @property
    def least(self) -> float:
        """The score of a suspect: the other class makes it LEAST powers of ten likelier, or N times where that is more, since
        the more images there are, the further the furthest of them lie from their class by chance."""
        return max(LEAST, math.log10(max(1, len(self.score))))

    def worst(self) -> Tensor:
        """Rows of the suspects, the highest score first."""
        order = self.score.argsort(descending=True, stable=True)
        return order[self.score[order] >= self.least]


@torch.inference_mode()
def suspicions(features: Tensor, labels: Tensor, classes: int) -> Suspicions:
    """Compare each image's class, without the image, with the nearest other one.

    The score of an image x is (|x - c|^2 - |x - o|^2) / (2 v) / ln 10: c is the mean of the other images of its class, o the
    nearest mean of another class, and v the variance of its class along the line from c to o, or the usual one between two
    classes where that is larger.

    Args:
        features: (N, D).
        labels: (N,) in [0, classes), sorted.
        classes: how many there are; those of fewer than FEWEST images are left out.
    """
    sizes = torch.bincount(labels, minlength=classes)
    usable = sizes >= FEWEST
    score = torch.full((len(labels),), -math.inf, dtype=torch.float64)
    other = torch.zeros_like(labels)
    kinds = usable.nonzero()[:, 0].tolist()
    if len(kinds) < 2:
        return Suspicions(score, other)
    middle, parts = features.mean(0).double(), features.split(sizes.tolist())
    rows = torch.arange(len(labels)).split(sizes.tolist())
    centres = torch.stack([parts[c].double().mean(0) - middle for c in kinds])
    against = {c: _compare(parts[c].double() - middle, centres, i) for i, c in enumerate(kinds)}
    spreads = torch.stack([along.square().median(0).values for _, along in against.values()]) / CHI_SQUARE_MEDIAN
    common = spreads[~torch.eye(len(kinds), dtype=torch.bool)].median()
    for i, c in enumerate(kinds):
        margin = against[c][0]
        margin[:, i] = -math.inf
        most, nearest = margin.max(1)
        score[rows[c]] = most / (2 * torch.maximum(spreads[i, nearest], common).clamp_min(1e-12) * math.log(10))
        other[rows[c]] = torch.tensor(kinds)[nearest]
    return Suspicions(score, other)


def _compare(x: Tensor, centres: Tensor, own: int) -> tuple[Tensor, Tensor]:
    """Images x (n, D) of the class number `own` against all centres (classes, D).

    Returns:
        (n, classes): |x - c|^2 - |x - o|^2, and how far x lies from c towards o, c being the centre without the image.
    """
    n = len(x)
    centre = (n * centres[own] - x) / (n - 1)
    squares = centres.square().sum(1)
    far = x.square().sum(1, keepdim=True) + squares - 2 * x @ centres.T
    apart = (centre.square().sum(1, keepdim=True) + squares - 2 * centre @ centres.T).clamp_min(1e-24)
    margin = (x - centre).square().sum(1, keepdim=True) - far
    return margin, (margin + apart) / (2 * apart.sqrt())
