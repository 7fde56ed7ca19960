"""Episodes: what must hold of every one, of the stream, and of their distribution."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_mcl import draws
from fewshot_mcl.data import EpisodeSampler
from fewshot_mcl.errors import UserError


class LabelsOnly:
    """Stands in for a store whose images must not be touched."""

    labels = torch.arange(12).repeat_interleave(20)

    @property
    def images(self) -> None:
        raise AssertionError("a sampler reads labels only")


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 40), min_size=2, max_size=12), shot=st.integers(1, 2), query=st.integers(1, 9),
    seed=st.integers(0, 2**40), shuffle=st.randoms(use_true_random=False), data=st.data(),
)  # fmt: skip
def test_every_episode_is_sound(sizes, shot, query, seed, shuffle, data) -> None:
    query = min(query, min(sizes) - shot)
    way = data.draw(st.integers(2, len(sizes)))
    labels = [3 * label for label, size in enumerate(sizes) for _ in range(size)]  # labels need not be consecutive
    shuffle.shuffle(labels)
    labels = torch.tensor(labels)
    sampler = EpisodeSampler(labels, way=way, shot=shot, query=query, seed=seed)
    episodes = sampler.sample(17)
    assert episodes.classes.shape == (17, way)
    assert episodes.support.shape == (17, way, shot)
    assert episodes.query.shape == (17, way, query)
    images = torch.cat([episodes.support, episodes.query], 2)
    assert torch.equal(labels[images], episodes.classes[..., None].expand_as(images))
    for found in (episodes.classes, images.flatten(1)):
        ordered = found.sort(-1).values
        assert bool((ordered[:, 1:] != ordered[:, :-1]).all()), "classes distinct, support and query disjoint"
    start = data.draw(st.integers(0, 16))
    part = EpisodeSampler(labels, way=way, shot=shot, query=query, seed=seed).sample(17 - start, start=start)
    assert part.digest == episodes[start:].digest, "an episode depends on seed and number alone"


def test_seeds_and_numbers_give_other_episodes() -> None:
    labels = LabelsOnly().labels
    digests = {
        EpisodeSampler(labels, way=5, shot=1, query=5, seed=seed).sample(1, start=start).digest
        for seed, start in itertools.product(range(5), range(5))
    }
    assert len(digests) == 25


def test_the_stream_is_frozen() -> None:
    """Published figures name a seed: the episodes behind it must never change."""
    labels = LabelsOnly().labels
    by_redraw = EpisodeSampler(labels, way=3, shot=1, query=2, seed=7).sample(2)
    by_sorting = EpisodeSampler(labels, way=3, shot=5, query=15, seed=7).sample(1)
    assert by_redraw.classes.tolist() == [[0, 7, 3], [8, 2, 7]]
    assert by_redraw.support.flatten().tolist() == [6, 145, 70, 179, 48, 143]
    assert by_sorting.support[0, 0].tolist() == [8, 6, 7, 5, 17]
    sizes = torch.arange(200, 260)  # whole batches, with rows that are drawn again and again
    many = EpisodeSampler(torch.arange(60).repeat_interleave(sizes), way=5, shot=5, query=15, seed=3)
    assert many.sample(700, start=11).digest == "86f51b7f0f6d3236799030af6970981c26fb6235844315bbc8fca60e3493dff6"


@given(st.lists(st.integers(0, 300), max_size=8))
@settings(max_examples=20, deadline=None)
def test_one_episode_is_a_sample_of_one(numbers: list[int]) -> None:
    sampler = EpisodeSampler(torch.arange(5).repeat_interleave(9), way=3, shot=1, query=2, seed=4)
    for number in numbers:
        one = sampler.episode(number)
        assert len(one) == 1
        assert one.digest == sampler.sample(1, start=number).digest


@pytest.mark.parametrize(("size", "count"), [(60, 3), (7, 3)])  # by redrawing repeats, and by sorting keys
def test_ordered_samples_are_uniform(size: int, count: int) -> None:
    import numpy as np

    rows = np.arange(60_000, dtype=np.uint64)
    sizes = np.full(len(rows), size, dtype=np.uint64)
    drawn = draws.distinct(draws.key(1, "uniform"), rows, sizes, count, size, size)
    first = np.bincount(drawn[:, 0], minlength=size)
    pairs = np.bincount((drawn[:, 0] * size + drawn[:, 2]), minlength=size * size).reshape(size, size)
    assert not pairs.diagonal().any()
    expected = len(rows) / size
    chi = ((first - expected) ** 2 / expected).sum()
    assert chi < size + 5 * (2 * size) ** 0.5
    expected = len(rows) / (size * (size - 1))
    off = pairs[~np.eye(size, dtype=bool)]
    chi, free = ((off - expected) ** 2 / expected).sum(), len(off) - 1
    assert chi < free + 5 * (2 * free) ** 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"way": 13}, "Use --way 12 or fewer"),
        ({"shot": 5, "query": 16}, "class 'k0' has 20 images; 5-shot with 16 queries needs 21 .*use --query 15 or fewer"),
        ({"shot": 30}, "use --shot 19 --query 1"),
        ({"way": 0}, "at least 1"),
        ({"query": 0}, "at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_named_with_what_would_work(changes: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        EpisodeSampler(
            LabelsOnly().labels, class_names=[f"k{i}" for i in range(12)], **{"way": 5, "shot": 1, "query": 5} | changes
        )


def test_the_smallest_class_is_the_one_named() -> None:
    labels = torch.tensor([0] * 9 + [1] * 3 + [2] * 1)
    with pytest.raises(UserError, match=r"class '2' has 1 image; .* 1 more class.*add images"):
        EpisodeSampler(labels, way=2, shot=1, query=4)
