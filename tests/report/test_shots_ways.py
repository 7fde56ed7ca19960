"""Accuracy against shots and ways: which points there are, and each against loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation.session import drawn
from fewshot_mcl.report.material import Material
from fewshot_mcl.report.shots_ways import measure, section, shots_possible, ways_possible


@pytest.fixture
def wide(material: Material) -> Material:
    """Twelve classes of nine images or more, with something to tell them apart."""
    labels = torch.arange(12).repeat_interleave(torch.tensor([9, *[11] * 11]))
    store = ImageStore(
        torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, [f"c{i}" for i in range(12)], split="test"
    )
    features = torch.randn(2, len(labels), 5, generator=torch.Generator().manual_seed(0)) + labels[:, None] / 3
    return replace(material, stores={"test": store}, features={"test": features})


def test_points_are_those_that_the_images_allow(wide: Material, material: Material) -> None:
    assert shots_possible(wide) == [1, 2, 5]  # of 9 images 2 are queries
    assert ways_possible(wide) == [2, 3, 5, 10]
    odd = replace(wide, protocol=replace(wide.protocol, way=7, shots=(4,)))
    assert shots_possible(odd) == [1, 2, 4, 5]
    assert ways_possible(odd) == [2, 5, 7, 10]


@pytest.mark.parametrize(("way", "shot"), [(3, 5), (10, 1)])
def test_every_point_equals_loops(wide: Material, way: int, shot: int) -> None:
    protocol = replace(wide.protocol, way=way)
    found = measure(wide, protocol, shot)
    episodes = drawn(wide.store, protocol, shot)
    both = wide.measured.double().numpy()
    for name, peers in {"peer 1": [1], "ensemble": [0, 1]}.items():
        for e in range(len(episodes)):
            right = 0
            for c in range(way):
                for image in episodes.query[e, c].tolist():
                    logits = [
                        sum(
                            -((both[m][image] - both[m][episodes.support[e, k].numpy()].mean(0)) ** 2).sum()
                            for m in peers
                        )
                        for k in range(way)
                    ]
                    right += int(np.argmax(logits)) == c
            assert float(found[name].accuracies[e]) == pytest.approx(right / (2 * way))


def test_the_part_states_every_point_with_its_interval(wide: Material) -> None:
    text = str(section(wide))
    for way in (2, 3, 5, 10):
        accuracies = measure(wide, replace(wide.protocol, way=way), 1)["peer 1"].accuracies.numpy()
        mean, half = accuracies.mean(), 1.96 * accuracies.std(ddof=1) / math.sqrt(20)
        assert f"{100 * mean:.2f} ± {100 * half:.2f} %" in text
        assert f"{100 / way:.1f} %" in text
    assert "each point on 20 episodes of the test split" in text


def test_a_single_point_is_no_part(material: Material) -> None:
    small = replace(material, protocol=replace(material.protocol, query=7, way=2))
    two = ImageStore(material.store.images[:16], material.store.labels[:16], material.store.class_names, split="test")
    assert not section(replace(small, stores={"test": two}, features={"test": material.measured[:, :16]}))
