"""Class means with unequal shots, beside a slow obvious reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_mcl.prediction.answers import Rule, Share, decide
from fewshot_mcl.prediction.calibration import Calibration, calibrate
from fewshot_mcl.prediction.classifier import Prototypes

COUNTS = st.lists(st.integers(1, 5), min_size=2, max_size=5)


def drawn(counts: list[int], seed: int, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Support features, labels in no order, and queries."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.tensor([k for k, n in enumerate(counts) for _ in range(n)])
    labels = labels[torch.randperm(len(labels), generator=random)]
    return torch.randn(len(labels), dim, generator=random), labels, torch.randn(6, dim, generator=random)


def slow_logits(features: list[list[float]], labels: list[int], query: list[float], metric: str) -> list[float]:
    """Class by class, number by number."""
    found = []
    for k in range(max(labels) + 1):
        own = [f for f, label in zip(features, labels) if label == k]
        mean = [sum(column) / len(own) for column in zip(*own)]
        if metric == "euclidean":
            found.append(-sum((a - b) ** 2 for a, b in zip(query, mean)))
        else:
            found.append(10 * sum(a * b for a, b in zip(query, mean)) / (math.hypot(*query) * math.hypot(*mean)))
    return found


@given(COUNTS, st.integers(0, 1000), st.sampled_from(["euclidean", "cosine"]), st.floats(0.1, 10))
@settings(deadline=None, max_examples=40)
def test_probabilities_are_those_of_a_slow_reference(
    counts: list[int], seed: int, metric: str, temperature: float
) -> None:
    features, labels, query = drawn(counts, seed)
    prototypes = Prototypes(features, labels, metric, 10.0)
    names = [f"class {k}" for k in range(len(counts))]
    rule = Rule(None, temperature, "relative", None, None, 0.05)
    answers = decide(prototypes, rule, query, ["q"] * 6, names, ["s"] * len(labels))
    for answer, one in zip(answers, query.tolist()):
        logits = [value / temperature for value in slow_logits(features.tolist(), labels.tolist(), one, metric)]
        weights = [math.exp(value - max(logits)) for value in logits]
        probabilities = sorted((w / sum(weights) for w in weights), reverse=True)
        assert answer.best == names[logits.index(max(logits))]
        assert answer.probability == pytest.approx(probabilities[0], abs=1e-4)
        assert answer.second_probability == pytest.approx(probabilities[1], abs=1e-4)


def test_every_image_of_a_class_counts_the_same() -> None:
    found = Prototypes(torch.tensor([[0.0], [9.0], [3.0], [6.0]]), torch.tensor([0, 1, 0, 0]))
    assert found.centres.tolist() == [[3.0], [9.0]]
    assert found.counts.tolist() == [3, 1]


@given(
    st.lists(st.integers(2, 5), min_size=2, max_size=4), st.integers(0, 1000), st.sampled_from(["euclidean", "cosine"])
)
@settings(deadline=None, max_examples=30)
def test_leaving_one_out_is_fitting_without_it(counts: list[int], seed: int, metric: str) -> None:
    features, labels, _ = drawn(counts, seed)
    right = Prototypes(features, labels, metric, 10.0).leave_one_out()
    assert right is not None
    for i in range(len(labels)):
        rest = torch.arange(len(labels)) != i
        logits = Prototypes(features[rest], labels[rest], metric, 10.0).logits(features[i : i + 1])
        assert bool(right[i]) == (int(logits.argmax()) == int(labels[i]))


def test_a_class_of_one_image_cannot_be_left_out() -> None:
    features, labels, _ = drawn([2, 1], 0)
    assert Prototypes(features, labels).leave_one_out() is None


def test_the_nearest_examples_are_the_nearest() -> None:
    found = Prototypes(torch.tensor([[0.0], [5.0], [2.0]]), torch.tensor([0, 1, 0])).nearest(torch.tensor([[1.8]]), 2)
    assert found.tolist() == [[2, 0]]
    assert Prototypes(torch.zeros(2, 1), torch.tensor([0, 1])).nearest(torch.zeros(1, 1), 3).shape == (1, 2)


def test_below_the_threshold_is_none_of_these() -> None:
    prototypes = Prototypes(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]))
    queries = torch.tensor([[0.5], [2.2]])
    answers = [
        decide(prototypes, Rule(None, 1.0, "relative", t, 0.1, 0.05), queries, "ab", "xy", "st") for t in (0.5, -1.0)
    ]
    assert [each.label for each in answers[0]] == ["x", None]
    assert [each.label for each in answers[1]] == ["x", "y"]
    assert answers[0][1].best == "y"


def test_the_rule_is_of_the_nearest_shape_measured() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(8)
    measured = Calibration.read(calibrate(torch.randn(64, 4, generator=random) + labels[:, None], labels))
    features, own, _ = drawn([5, 1, 1], 0)
    rule = Rule.choose(measured, Prototypes(features, own), 0.1)
    assert rule.cell is not None
    assert (rule.cell.way, rule.cell.shot) == (3, 1)  # the harmonic mean of 5, 1, 1 is 1.36
    assert rule.temperature == rule.cell.temperature
    assert rule.threshold == rule.cell.thresholds[6]
    assert Rule.choose(None, Prototypes(features, own), 0.1).threshold is None


@pytest.mark.parametrize(
    ("count", "total", "low", "high"), [(0, 10, 0, 0.2775), (8, 10, 0.4902, 0.9433), (5, 5, 0.5655, 1)]
)
def test_wilson_intervals(count: int, total: int, low: float, high: float) -> None:
    assert Share(count, total).interval == pytest.approx((low, high), abs=2e-4)
