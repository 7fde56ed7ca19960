"""Tests and intervals against scipy called the slow way, Holm by hand, and how often an interval holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fewshot_mcl.comparison.statistics import holm, mcnemar, over_seeds, paired


def accuracies(seed: int, mean: float, count: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).binomial(75, mean, count) / 75


def test_a_paired_difference_is_what_scipy_and_the_formulas_say() -> None:
    first, second = accuracies(0, 0.6), accuracies(1, 0.55)
    found = paired(first, second)
    values = first - second
    half = stats.t.ppf(0.975, 59) * values.std(ddof=1) / math.sqrt(60)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    t = values.mean() / (values.std(ddof=1) / math.sqrt(60))
    assert found.t_p == pytest.approx(2 * stats.t.sf(abs(t), 59))
    assert found.wilcoxon_p == pytest.approx(slow_wilcoxon(np.round(75 * values)))
    assert found.count == 60


def slow_wilcoxon(values: np.ndarray) -> float:
    """The normal approximation with its correction for ties, zeros left out."""
    values = values[values != 0]
    n, size = len(values), np.abs(values)
    ranks = np.array([(size < x).sum() + ((size == x).sum() + 1) / 2 for x in size])
    ties = sum(count**3 - count for count in np.unique(size, return_counts=True)[1])
    deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24 - ties / 48)
    z = (ranks[values > 0].sum() - n * (n + 1) / 4) / deviation
    return float(2 * stats.norm.sf(abs(z)))


def test_accuracies_that_differ_by_rounding_alone_are_equal() -> None:
    first = np.array([0.1 + 0.2, 0.5, 0.7] * 5)
    second = np.array([0.3, 0.5, 0.7] * 5)
    assert paired(first, second).wilcoxon_p == 1


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.25, 0.0)])
def test_differences_without_spread_need_no_division(shift: float, p: float) -> None:
    second = np.full(8, 0.5)
    found = paired(second + shift, second)
    assert (found.mean, found.low, found.high, found.t_p, found.wilcoxon_p) == (shift, shift, shift, p, p)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        paired(np.zeros(3), np.zeros(4))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(values: list[float]) -> None:
    corrected = holm(values)
    assert all(c >= v for c, v in zip(corrected, values))
    assert max(corrected) <= 1
    by_value = [corrected[i] for i in sorted(range(len(values)), key=values.__getitem__)]
    assert by_value == sorted(by_value)
    assert min(corrected) == min(1.0, len(values) * min(values))


def test_seeds_that_both_sides_have_are_paired() -> None:
    first, second = {0: 0.5, 1: 0.61, 2: 0.7}, {2: 0.66, 0: 0.45, 1: 0.57}
    found = over_seeds(first, second)
    assert found is not None
    slow = stats.ttest_rel([0.5, 0.61, 0.7], [0.45, 0.57, 0.66])
    assert found.t_p == pytest.approx(slow.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(slow.confidence_interval(0.95)))


def test_other_seeds_are_two_samples() -> None:
    first, second = {0: 0.5, 1: 0.61, 2: 0.7}, {7: 0.45, 8: 0.5}
    found = over_seeds(first, second)
    assert found is not None
    a, b = np.var([0.5, 0.61, 0.7], ddof=1) / 3, np.var([0.45, 0.5], ddof=1) / 2
    degrees = (a + b) ** 2 / (a**2 / 2 + b**2 / 1)  # Welch and Satterthwaite
    half = stats.t.ppf(0.975, degrees) * math.sqrt(a + b)
    assert found.high - found.mean == pytest.approx(half)
    assert found.mean == pytest.approx(np.mean([0.5, 0.61, 0.7]) - 0.475)


def test_one_seed_says_nothing_of_seeds() -> None:
    assert over_seeds({0: 0.5}, {0: 0.4, 1: 0.5}) is None


def test_mcnemar_counts_the_images_that_one_alone_gets_right() -> None:
    first = np.array([1] * 9 + [0] * 2 + [1] * 20 + [0] * 5)
    second = np.array([0] * 9 + [1] * 2 + [1] * 20 + [0] * 5)
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert mcnemar(first, second) == pytest.approx(by_hand)
    assert mcnemar(first, first) == 1


def test_the_paired_interval_holds_the_truth_nineteen_times_of_twenty() -> None:
    """Episodes vary far more than networks do on one episode; the interval must be of the difference, not of either."""
    random = np.random.default_rng(0)
    held, widths, trials = 0, [], 600
    for _ in range(trials):
        hard = random.normal(0.6, 0.1, 50)
        first = random.binomial(75, np.clip(hard + 0.02, 0, 1)) / 75
        second = random.binomial(75, np.clip(hard, 0, 1)) / 75
        found = paired(first, second)
        held += found.low <= 0.02 <= found.high
        widths.append(found.high - found.low)
    assert 0.925 <= held / trials <= 0.975  # 95 % to within three deviations
    assert np.mean(widths) < 0.05  # unpaired it would be 0.09
