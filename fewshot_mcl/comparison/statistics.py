"""Paired differences and what may be said of them; the tests themselves are scipy's.

Two kinds of spread are kept apart. Over episodes (or images) the networks are given, and the question is whether other
episodes would say the same of them. Over seeds the episodes are given, and the question is whether networks trained anew
would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference of fractions with its 95% interval.

    Attributes:
        count: of differences (or, of two independent samples, of means).
        t_p: of Student's t test that the mean is zero.
        wilcoxon_p: of Wilcoxon's signed ranks; None where it is not asked for.
    """

    mean: float
    low: float
    high: float
    count: int
    t_p: float
    wilcoxon_p: float | None = None


def paired(first: np.ndarray, second: np.ndarray) -> Difference:
    """First minus second, pair by pair.

    Args:
        first, second: (n,) accuracies on the same episodes or images in the same order, n >= 2.

    Raises:
        ValueError: where their lengths differ.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(f"cannot pair {first.shape} with {second.shape}")
    values = first - second
    mean = float(values.mean())
    if np.ptp(values) == 0:  # no spread: scipy would divide by it
        p = float(mean == 0)
        return Difference(mean, mean, mean, len(values), p, p)
    t = stats.ttest_rel(first, second)
    interval = t.confidence_interval(LEVEL)
    rounded = np.round(values, 12)  # or what is equal but for the last bit of a float would have ranks of its own
    wilcoxon = stats.wilcoxon(rounded) if rounded.any() else None
    return Difference(
        mean, float(interval.low), float(interval.high), len(values), float(t.pvalue),
        1.0 if wilcoxon is None else float(wilcoxon.pvalue),
    )  # fmt: skip


def over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """First minus second over training seeds, by t on one mean a seed; None where a side has fewer than two.

    The same seeds on both sides share first weights and training episodes, so they are paired; otherwise Welch's t.

    Args:
        first, second: accuracy by seed.
    """
    if min(len(first), len(second)) < 2:
        return None
    if set(first) == set(second):
        a, b = (np.array([side[seed] for seed in sorted(first)]) for side in (first, second))
        found = paired(a, b)
        return Difference(found.mean, found.low, found.high, found.count, found.t_p)
    a, b = np.array(list(first.values())), np.array(list(second.values()))
    mean = float(a.mean() - b.mean())
    if np.ptp(a) == np.ptp(b) == 0:
        return Difference(mean, mean, mean, len(a) + len(b), float(mean == 0))
    t = stats.ttest_ind(a, b, equal_var=False)
    interval = t.confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high), len(a) + len(b), float(t.pvalue))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact p: whether the images that one network alone gets right are as many as the other's.

    Args:
        first, second: (n,) whether each image is classified right.
    """
    first, second = first.astype(bool), second.astype(bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction of p values for being looked at together, in their order."""
    count, largest = len(values), 0.0
    corrected = [0.0] * count
    for rank, place in enumerate(sorted(range(count), key=values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * values[place]))
        corrected[place] = largest
    return corrected
