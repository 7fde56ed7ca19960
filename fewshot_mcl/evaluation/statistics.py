"""Means of per-episode accuracies and what may be said about them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Result:
    """Accuracy over E episodes, as fractions.

    Attributes:
        accuracies: (E,) float64, one an episode. The interval is over these, since queries of an episode are not
            independent.

    Example:
        >>> result = Result(torch.tensor([0.5, 0.7, 0.6, 0.6], dtype=torch.float64))
        >>> f"{100 * result.mean:.1f} ± {100 * result.ci95:.1f} %"
        '60.0 ± 8.0 %'
        >>> result.minus(result).mean
        0.0
    """

    accuracies: Tensor

    @property
    def episodes(self) -> int:
        return len(self.accuracies)

    @property
    def mean(self) -> float:
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Sample standard deviation over episodes (E - 1 in the denominator)."""
        return float(self.accuracies.std())

    @property
    def ci95(self) -> float:
        """Half-width of the 95% interval, 1.96 s / sqrt(E) (the paper's formula)."""
        return 1.96 * self.std / math.sqrt(self.episodes)

    @property
    def ci95_t(self) -> float:
        """The same with Student's t quantile instead of 1.96."""
        from scipy.special import stdtrit

        return float(stdtrit(self.episodes - 1, 0.975)) * self.std / math.sqrt(self.episodes)

    def minus(self, other: Result) -> Result:
        """Paired differences, episode by episode: both results must come from the same episodes in the same order."""
        if self.episodes != other.episodes:
            raise ValueError(f"cannot pair {self.episodes} with {other.episodes} episodes")
        return Result(self.accuracies - other.accuracies)


def pooled(results: list[Result]) -> Result:
    """Per-episode means over several results on the same episodes (seeds, say)."""
    return Result(torch.stack([result.accuracies for result in results]).mean(0))
