"""Temperature and threshold: against slow references, and kept on fresh episodes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as nnf

from fewshot_mcl.data.episodes import EpisodeSampler
from fewshot_mcl.errors import UserError
from fewshot_mcl.prediction import calibration as c


def clusters(
    classes: int, images: int, dim: int = 12, spread: float = 1.5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around class centres, stretched so that a temperature of 1 is far from right."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=random)
    labels = torch.arange(classes).repeat_interleave(images)
    return 3 * (centres[labels] + spread * torch.randn(len(labels), dim, generator=random)), labels


FEATURES, LABELS = clusters(40, 25)


@pytest.fixture(scope="module")
def measured() -> c.Calibration:
    found = c.Calibration.read(c.calibrate(FEATURES, LABELS, source="clusters", seed=1))
    assert found is not None
    return found


def fresh(way: int, shot: int, query: int, episodes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of queries of the classes asked about (E, way * query, way), and of one class left out (E, query, way): slowly."""
    drawn = EpisodeSampler(LABELS, way=way + 1, shot=shot, query=query, seed=seed).sample(episodes)
    known, unknown = [], []
    for support, queries in zip(drawn.support, drawn.query):
        centres = torch.stack([FEATURES[rows].mean(0) for rows in support[:way]])
        known.append(-torch.cdist(FEATURES[queries[:way].flatten()], centres).square())
        unknown.append(-torch.cdist(FEATURES[queries[way]], centres).square())
    return torch.stack(known), torch.stack(unknown)


@pytest.mark.parametrize(("way", "shot"), [(5, 1), (5, 5), (20, 3)])
def test_calibration_lowers_the_likelihood_loss_of_fresh_episodes(measured: c.Calibration, way: int, shot: int) -> None:
    cell = measured.nearest(way, shot)
    assert (cell.way, cell.shot) == (way, shot)
    known, _ = fresh(way, shot, 5, 100, seed=77)
    targets, flat = torch.arange(way).repeat_interleave(5).repeat(100), known.flatten(0, 1)
    loss = {t: float(nnf.cross_entropy(flat / t, targets)) for t in (1.0, cell.temperature)}
    assert loss[cell.temperature] < loss[1.0] - 0.05
    assert loss[cell.temperature] == pytest.approx(cell.nll, abs=0.1)
    assert cell.nll < cell.nll_uncalibrated


@pytest.mark.parametrize(("way", "shot"), [(3, 2), (10, 5)])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_the_false_accept_rate_is_kept_on_fresh_episodes(
    measured: c.Calibration, way: int, shot: int, rate: float
) -> None:
    cell = measured.nearest(way, shot)
    threshold, false_reject = measured.threshold(cell, rate) or (math.nan, math.nan)
    known, unknown = fresh(way, shot, 1, 800, seed=4242)  # one query an episode: they are nearly independent
    score = c.SCORES[measured.score]
    accepted, refused = int((score(-unknown) >= threshold).sum()), float((score(-known) < threshold).double().mean())
    deviation = math.sqrt(800 * rate * (1 - rate))
    assert abs(accepted - 800 * rate) < 2.58 * deviation  # 99% of a binomial
    assert refused == pytest.approx(false_reject, abs=0.05)


def test_a_lower_rate_of_false_acceptance_refuses_more(measured: c.Calibration) -> None:
    for cell in measured.cells:
        assert list(cell.thresholds) == sorted(cell.thresholds, reverse=True)
        assert list(cell.false_rejects) == sorted(cell.false_rejects, reverse=True)
    between = measured.threshold(measured.cells[0], 0.06)
    sides = [measured.threshold(measured.cells[0], rate) for rate in (0.07, 0.05)]
    assert between is not None
    assert sides[0] is not None
    assert sides[1] is not None
    assert sides[0][0] < between[0] < sides[1][0]


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.6, math.nan])
def test_a_rate_that_was_not_measured_is_refused(measured: c.Calibration, rate: float) -> None:
    with pytest.raises(UserError, match="--false-accept"):
        measured.threshold(measured.cells[0], rate)


def test_the_temperature_is_the_best_of_a_fine_grid() -> None:
    logits, targets = 7 * torch.randn(300, 5, generator=torch.Generator().manual_seed(0)), torch.arange(5).repeat(60)
    logits[torch.arange(300), targets] += 9
    grid = np.exp(np.linspace(-4, 6, 3001))
    losses = [float(nnf.cross_entropy(logits / t, targets)) for t in grid]
    assert c.best_temperature(logits, targets) == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12))
@settings(deadline=None, max_examples=50)
def test_auroc_counts_pairs(positive: list[int], negative: list[int]) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert c.auroc(np.array(positive), np.array(negative)) == pytest.approx(sum(pairs) / len(pairs))


def test_scores_of_golden_distances() -> None:
    found = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])
    assert torch.allclose(c.relative_score(found), torch.tensor([1 - 1 / 3, 0.0]))
    assert c.distance_score(found).tolist() == [-1.0, -2.0]
    assert c.distances(torch.tensor([-4.0]), "euclidean", 10.0).tolist() == [4.0]
    assert c.distances(torch.tensor([5.0]), "cosine", 10.0).tolist() == [0.5]


def test_the_nearest_shape_is_nearest_by_ratio(measured: c.Calibration) -> None:
    shape = lambda way, shot: (lambda cell: (cell.way, cell.shot))(measured.nearest(way, shot))  # noqa: E731
    assert shape(7, 4.2) == (5, 5)
    assert shape(8, 1) == (10, 1)
    assert shape(500, 100) == (20, 20)
    assert shape(2, 1.3) == (2, 1)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=8))
def test_unequal_shots_count_by_the_error_of_their_means(counts: list[int]) -> None:
    shot = c.effective_shot(counts)
    assert 1 / shot == pytest.approx(np.mean([1 / n for n in counts]))
    assert min(counts) - 1e-9 <= shot <= np.mean(counts) + 1e-9


def test_a_seed_is_one_calibration_and_survives_json() -> None:
    features, labels = clusters(6, 6)
    one, two = (c.calibrate(features, labels, source="x", seed=3) for _ in range(2))
    assert one == two == json.loads(json.dumps(one))
    assert one != c.calibrate(features, labels, source="x", seed=4)
    assert c.Calibration.read(one) is not None


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_order_of_images_and_labels_that_have_gaps_do_not_matter(metric: str) -> None:
    features, labels = clusters(6, 8)
    found = c.calibrate(features, labels, metric=metric, scale=10.0)
    assert found == c.calibrate(features, labels * 7 + 2, metric=metric, scale=10.0)


def test_two_classes_give_probabilities_and_no_threshold() -> None:
    found = c.Calibration.read(c.calibrate(*clusters(2, 6)))
    assert found is not None
    assert {cell.way for cell in found.cells} == {2}
    assert all(found.threshold(cell, 0.05) is None for cell in found.cells)


@pytest.mark.parametrize(("classes", "images"), [(1, 9), (5, 1)])
def test_too_little_to_measure_is_none(classes: int, images: int) -> None:
    assert c.calibrate(*clusters(classes, images)) is None


def test_features_that_are_no_numbers_are_not_measured() -> None:
    features, labels = clusters(4, 6)
    features[3, 2] = math.nan
    assert c.calibrate(features, labels) is None


def test_a_class_of_two_images_is_enough_for_one_shot() -> None:
    features, labels = clusters(4, 6)
    found = c.Calibration.read(c.calibrate(features[:-4], labels[:-4]))
    assert found is not None
    assert {(cell.shot, cell.query) for cell in found.cells} == {(1, 1)}


@pytest.mark.parametrize(
    "change",
    [{"cells": []}, {"score": "x"}, {"rates": [0.1]}, {"cells": [{"way": 1}]}, {"classes": None}],
)
def test_what_is_not_of_this_form_is_not_read(change: dict[str, object]) -> None:
    good = c.calibrate(*clusters(4, 6))
    assert good is not None
    assert c.Calibration.read(good | change) is None
    assert c.Calibration.read(None) is None
    assert c.Calibration.read([1]) is None
