"""Rates and their intervals: golden values, a slow form, bounds that always hold, and what the intervals cover."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtrit
from scipy.stats import binomtest

from fewshot_mcl.report import rates


@pytest.mark.parametrize(("right", "count"), [(5, 10), (0, 5), (5, 5), (130, 131)])
def test_wilson_is_that_of_scipy(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, "wilson")
    low, high = rates.wilson(torch.tensor([right / count], dtype=torch.float64), torch.tensor([count]))
    assert [float(low), float(high)] == pytest.approx([expected.low, expected.high], abs=2e-5)


def test_of_images_counts() -> None:
    found = rates.of_images(torch.tensor([True, False, True, True]), torch.tensor([0, 0, 2, 2]), 3)
    assert found.count.tolist() == [2, 0, 2]
    assert found.share[[0, 2]].tolist() == [0.5, 1]
    assert math.isnan(found.share[1])


def slow(shares: list[float], size: int) -> tuple[float, float, float]:
    """Share, low and high of one group."""
    m, p = len(shares), statistics.mean(shares)
    draws = float(m)
    if m > 1 and 0 < p < 1:
        variance = statistics.variance(shares) / m
        adjusted = math.inf if variance == 0 else p * (1 - p) / variance * (1.96 / stdtrit(m - 1, 0.975)) ** 2
        draws = max(m, min(adjusted, m * size))
    centre, root = p + 1.96**2 / (2 * draws), math.sqrt(p * (1 - p) / draws + (1.96 / (2 * draws)) ** 2)
    return p, (centre - 1.96 * root) / (1 + 1.96**2 / draws), (centre + 1.96 * root) / (1 + 1.96**2 / draws)


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=4))
def test_of_episodes_is_the_slow_form_and_stays_in_bounds(groups: list[list[int]]) -> None:
    shares = torch.tensor([k / 5 for each in groups for k in each], dtype=torch.float64)
    labels = torch.tensor([i for i, each in enumerate(groups) for _ in each], dtype=torch.int64)
    found = rates.of_episodes(shares, labels, len(groups), 5)
    for i, each in enumerate(groups):
        assert (int(found.clusters[i]), int(found.count[i])) == (len(each), 5 * len(each))
        if each:
            share, low, high = slow([k / 5 for k in each], 5)
            assert [float(x[i]) for x in (found.share, found.low, found.high)] == pytest.approx([share, low, high])
            assert -1e-9 <= low <= share + 1e-9
            assert share - 1e-9 <= high <= 1 + 1e-9
        else:
            assert math.isnan(found.share[i])


def test_intervals_cover_what_they_say_where_answers_of_an_episode_are_alike() -> None:
    """Each episode has a rate of its own (mean 0.6); counting its 15 answers as independent would cover far too seldom."""
    draw, groups, episodes = torch.Generator().manual_seed(1), 2000, 12
    own = (0.6 + 0.5 * (torch.rand(groups * episodes, generator=draw) - 0.5)).double()
    shares = torch.binomial(torch.full_like(own, 15.0), own, generator=draw) / 15
    labels = torch.arange(groups).repeat_interleave(episodes)
    found = rates.of_episodes(shares, labels, groups, 15)
    covered = ((found.low <= 0.6) & (found.high >= 0.6)).double().mean()
    low, high = rates.wilson(found.share, found.count)
    naive = ((low <= 0.6) & (high >= 0.6)).double().mean()
    assert 0.935 < covered < 0.985
    assert naive < 0.88
