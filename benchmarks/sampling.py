"""Drawing episodes and gathering their images: easyfsl's task sampler, learn2learn's tasksets, and ours.

    uv run --group bench python benchmarks/sampling.py --out benchmarks/results/sampling.md

5-way, 5-shot, 15 queries; 84x84x3 uint8 images, all in memory, which is the peers' best case; no worker processes.
"""

from __future__ import annotations

import random

import harness
import learn2learn as l2l
import torch
from easyfsl.samplers import TaskSampler
from learn2learn.data.transforms import FusedNWaysKShots, KShots, LoadData, NWays
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fewshot_mcl.data import EpisodeSampler, ImageStore

WAY, SHOT, QUERY, PER_CLASS, SIZE = 5, 5, 15, 600, 84
BLOCK = 256  # episodes that ours draws at a time


class Images(Dataset[tuple[Tensor, int]]):
    """A store as both peers want it: (image, label) by index, and the labels."""

    def __init__(self, store: ImageStore) -> None:
        self.store, self.labels = store, store.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.store.images[index], self.labels[index]

    def get_labels(self) -> list[int]:
        """What easyfsl's sampler asks for."""
        return self.labels


class Mended(TaskSampler):
    """easyfsl 1.5.0's sampler, whose constructor hands torch's Sampler an argument that torch >= 2.15 no longer takes."""

    def __init__(self, dataset: Images, tasks: int) -> None:
        original = Sampler.__init__
        Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign, misc, assignment]
        try:
            super().__init__(dataset, WAY, SHOT + QUERY, 0, tasks)
        finally:
            Sampler.__init__ = original  # type: ignore[method-assign]


def easyfsl(store: ImageStore, tasks: int, images: bool) -> harness.Work:
    data = Images(store)
    sampler = Mended(data, tasks)
    if not images:
        return lambda: list(sampler)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=0)
    return lambda: [check(batch, labels) for batch, labels in loader]


def learn2learn(store: ImageStore, tasks: int, images: bool, fused: bool = False) -> harness.Work:
    data = l2l.data.MetaDataset(Images(store))
    chosen = (
        [FusedNWaysKShots(data, n=WAY, k=SHOT + QUERY)] if fused else [NWays(data, n=WAY), KShots(data, k=SHOT + QUERY)]
    )
    if images:
        chosen.append(LoadData(data))
        tasksets = l2l.data.Taskset(data, chosen, num_tasks=-1)
        return lambda: [check(*tasksets.sample()) for _ in range(tasks)]

    def draw() -> None:
        for _ in range(tasks):
            description = None
            for transform in chosen:
                description = transform(description)
            assert len(description) == WAY * (SHOT + QUERY)

    return draw


def ours(store: ImageStore, tasks: int, images: bool) -> harness.Work:
    sampler = EpisodeSampler(store.labels, way=WAY, shot=SHOT, query=QUERY)
    start = 0

    def draw() -> None:
        nonlocal start
        start += tasks
        for first in range(start, start + tasks, BLOCK):
            episodes = sampler.sample(min(BLOCK, start + tasks - first), start=first)
            rows = torch.cat([episodes.support, episodes.query], 2).flatten(1)
            for each in rows if images else ():
                store.gather(each)

    return draw


def copying(store: ImageStore, tasks: int) -> harness.Work:
    """The limit: as many bytes, in one piece, into a kept buffer."""
    count = WAY * (SHOT + QUERY)
    kept = torch.empty_like(store.images[:count])
    starts = [random.Random(0).randrange(len(store) - count) for _ in range(tasks)]
    return lambda: [kept.copy_(store.images[s : s + count]) for s in starts]


def check(images: Tensor, labels: Tensor) -> None:
    """An episode has its images and its classes."""
    assert images.shape[0] == WAY * (SHOT + QUERY)
    assert len(labels.unique()) == WAY


def main() -> None:
    chosen = harness.arguments(__doc__ or "", classes=[20, 64])
    rows = []
    for classes in chosen.classes:
        labels = torch.arange(classes).repeat_interleave(PER_CLASS)
        pixels = torch.randint(256, (len(labels), 3, SIZE, SIZE), dtype=torch.uint8)
        store = ImageStore(pixels, labels, [str(c) for c in range(classes)])
        rows += [compared(store, images, chosen.rounds) for images in (False, True)]
    columns = [
        "",
        "easyfsl / ours",
        "learn2learn / ours",
        "learn2learn, fused / ours",
        "ours, episodes/s",
        "share of copying",
    ]
    parts = [
        f"{WAY}-way {SHOT}-shot, {QUERY} queries, {PER_CLASS} images a class, {SIZE}x{SIZE}, in memory. Ours "
        f"draws {BLOCK} episodes at a time and gathers one at a time. easyfsl 1.5.0 does not start on torch 2.15 "
        "(its sampler calls torch's Sampler.__init__ with an argument that is gone): that call is mended here. "
        "learn2learn's ordinary transforms are NWays and KShots; images come by LoadData.",
        harness.table(columns, rows),
    ]
    harness.report("Drawing episodes", parts, chosen.out, packages=["easyfsl", "learn2learn"])


def compared(store: ImageStore, images: bool, rounds: int) -> list[object]:
    """A row of the table."""
    counts = {"easyfsl": 50, "learn2learn": 5, "fused": 50, "ours": 1024}
    contestants = {
        "easyfsl": easyfsl(store, counts["easyfsl"], images),
        "learn2learn": learn2learn(store, counts["learn2learn"], images),
        "fused": learn2learn(store, counts["fused"], images, fused=True),
        "ours": ours(store, counts["ours"], images),
    }
    if images:
        counts["copy"] = 1024
        contestants["copy"] = copying(store, counts["copy"])
    times = harness.take_turns(contestants, rounds)
    each = harness.Times({n: [s / counts[n] for s in seconds] for n, seconds in times.seconds.items()})
    name = f"{'images' if images else 'indices'}, {store.num_classes} classes"
    ratios = [each.ratio(peer, "ours") for peer in ("easyfsl", "learn2learn", "fused")]
    return [name, *ratios, 1 / each.median("ours"), each.ratio("copy", "ours") if images else ""]


if __name__ == "__main__":
    main()
