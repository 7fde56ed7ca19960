"""Maps: chosen images, alignment and trustworthiness against loops, marks, and what users named stays text."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.pages import PALETTE
from fewshot_mcl.report.embedding import NEIGHBOURS, SHAPES, aligned, maps, sample, section, upright
from fewshot_mcl.report.material import Material

HOSTILE = "<script>alert('x')</script>\n\x1b[31m\"&"


def store_of(*sizes: int) -> ImageStore:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return ImageStore(
        torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, [f"c{i}" for i in range(len(sizes))]
    )


def test_images_are_chosen_by_seed_at_most_twenty_of_twenty_classes() -> None:
    store = store_of(*[30] * 25, 3, 0, 7)
    rows = sample(store, 0)
    sizes = torch.bincount(store.labels[rows])
    assert int((sizes > 0).sum()) == 20
    assert set(sizes[sizes > 0].tolist()) <= {3, 7, 20}
    assert len(rows.unique()) == len(rows)
    assert torch.equal(rows, sample(store, 0))
    assert not torch.equal(rows, sample(store, 1))
    assert torch.equal(sample(store_of(2, 4), 5), torch.arange(6))


def test_a_turned_mirrored_and_scaled_map_lies_on_the_other() -> None:
    chance = np.random.default_rng(0)
    to = chance.normal(size=(30, 2))
    turn = np.array([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]]) @ np.diag([1, -1])
    points, apart = aligned(3 * to @ turn + 5, to)
    assert apart == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(points, 3 * (to - to.mean(0)), atol=1e-9)


def test_what_remains_is_the_least_over_all_turns_and_scales() -> None:
    chance = np.random.default_rng(1)
    points, to = chance.normal(size=(2, 12, 2))
    points, to = points - points.mean(0), to - to.mean(0)
    least = 1.0
    for angle in np.linspace(0, 2 * math.pi, 20_000):
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        for mirror in (1, -1):
            moved = points @ np.diag([1, mirror]) @ turn
            scale = (moved * to).sum() / (moved**2).sum()
            if scale > 0:
                least = min(least, ((scale * moved - to) ** 2).sum() / (to**2).sum())
    assert aligned(points, to)[1] == pytest.approx(least, abs=1e-6)


def test_an_upright_map_is_widest_from_left_to_right() -> None:
    points = np.random.default_rng(2).normal(size=(50, 2)) @ np.array([[1, 3], [0.5, 1]]) + 7
    found = upright(points)
    covariance = found.T @ found
    assert covariance[0, 1] == pytest.approx(0, abs=1e-9)
    assert covariance[0, 0] > covariance[1, 1]


def trust_by_loops(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Trustworthiness as Venna and Kaski define it."""
    n, total = len(x), 0
    for i in range(n):
        by_x = sorted((j for j in range(n) if j != i), key=lambda j: ((x[i] - x[j]) ** 2).sum())
        by_y = sorted((j for j in range(n) if j != i), key=lambda j: ((y[i] - y[j]) ** 2).sum())
        total += sum(by_x.index(j) + 1 - k for j in by_y[:k] if by_x.index(j) >= k)
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * total


def test_trust_is_of_the_map_that_is_shown_and_the_same_every_time() -> None:
    features = torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(0))
    first, second = maps(features), maps(features)
    for peer, found in enumerate(first):
        expected = trust_by_loops(features[peer].double().numpy(), found.points, NEIGHBOURS)
        assert found.trust == pytest.approx(expected, abs=1e-9)
        np.testing.assert_array_equal(found.points, second[peer].points)
    assert first[-1].apart == pytest.approx(0, abs=1e-9)
    assert 0 < first[0].apart < 1


def test_features_without_any_difference_are_no_error() -> None:
    found = maps(torch.ones(2, 14, 3))
    assert all(np.isfinite(each.points).all() for each in found)


def test_classes_have_marks_of_their_own() -> None:
    assert len({(i % len(PALETTE), i % len(SHAPES)) for i in range(20)}) == 20


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_the_part_has_every_image_in_every_map_and_hostile_names_as_text(material: Material) -> None:
    store = material.store
    named = ImageStore(
        store.images, store.labels, [HOSTILE, "fox", "gnu"], split="test", ids=[f"{HOSTILE}{i}" for i in range(24)]
    )
    text = str(section(replace(material, stores={"test": named})))
    tags = Tags(text).tags
    assert "script" not in tags
    assert "\x1b" not in text
    assert tags.count("use") == 2 * 24 + 3
    assert tags.count("img") == 24
    assert "&lt;script&gt;" in text
    assert text.count("trustworthiness 0.") + text.count("trustworthiness 1.") == 2 * 2  # to be seen and to be heard
    assert "k = 5" in text
    assert "seed 0" in text


def test_too_few_images_are_no_part(material: Material) -> None:
    few = ImageStore(material.store.images[:10], material.store.labels[:10], material.store.class_names)
    assert not section(replace(material, stores={"test": few}))
