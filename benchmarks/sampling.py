"""Drawing episodes and gathering their images: easyfsl's task sampler, learn2learn's tasksets, and ours.

    uv run --group bench python benchmarks/sampling.py --out benchmarks/results/sampling.md

5-way, 5-shot, 15 queries; 84x84x3 uint8 images, all in memory, which is the peers' best case; no worker processes.
"""

from __future__ import annotations

import gc
import random
from itertools import count

import harness
import learn2learn as l2l
import torch
from easyfsl.samplers import TaskSampler
from learn2learn.data.transforms import FusedNWaysKShots, KShots, LoadData, NWays
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fewshot_mcl.data import EpisodeSampler, ImageStore
from fewshot_mcl.data.store import allocate_images

WAY, SHOT, QUERY, PER_CLASS, SIZE = 5, 5, 15, 600, 84
BLOCK = 256  # episodes of which an evaluation's indices are drawn at a time
LONG = 4000


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


def drawing(store: ImageStore, tasks: int) -> harness.Work:
    """Indices in blocks, as an evaluation draws them."""
    sampler, starts = EpisodeSampler(store.labels, way=WAY, shot=SHOT, query=QUERY), count(0, BLOCK)
    return lambda: [sampler.sample(BLOCK, start=next(starts)) for _ in range(tasks // BLOCK)]


def gathering(store: ImageStore, tasks: int) -> harness.Work:
    """Episode after episode, by the calls of a training step."""
    sampler, numbers = EpisodeSampler(store.labels, way=WAY, shot=SHOT, query=QUERY), count()

    def draw() -> None:
        for _ in range(tasks):
            episode = sampler.episode(next(numbers))
            store.gather(torch.cat([episode.support[0].flatten(), episode.query[0].flatten()]))

    return draw


def copying(store: ImageStore, tasks: int) -> harness.Work:
    """The limit: as many bytes, in one piece from anywhere in the store, into a kept buffer."""
    images = WAY * (SHOT + QUERY)
    kept, places = torch.empty_like(store.images[:images]), random.Random(0)
    starts = [places.randrange(len(store) - images) for _ in range(tasks)]
    return lambda: [kept.copy_(store.images[s : s + images]) for s in starts]


def long_copying(store: ImageStore) -> harness.Work:
    """The same, of LONG images at a time: of what a cache cannot hold."""
    kept = torch.empty_like(store.images[:LONG])
    return lambda: kept.copy_(store.images[:LONG])


def check(images: Tensor, labels: Tensor) -> None:
    """An episode has its images and its classes."""
    assert images.shape[0] == WAY * (SHOT + QUERY)
    assert len(labels.unique()) == WAY


def main() -> None:
    chosen = harness.arguments(__doc__ or "", classes=[20, 64])
    rows = []
    for classes in chosen.classes:
        labels = torch.arange(classes).repeat_interleave(PER_CLASS)
        pixels = allocate_images((len(labels), 3, SIZE, SIZE))  # as every source does
        torch.from_numpy(pixels).random_()
        store = ImageStore(pixels, labels, [str(c) for c in range(classes)])
        for images in (False, True):
            rows += compared(store, images, chosen.rounds)
    columns = [
        "",
        "easyfsl / ours",
        "learn2learn / ours",
        "learn2learn, fused / ours",
        "ours, episodes/s",
        "share of copying",
        f"share of copying {LONG:,} images at once",
    ]
    parts = [
        f"{WAY}-way {SHOT}-shot, {QUERY} queries, {PER_CLASS} images a class, {SIZE}x{SIZE}, in memory. Indices: ours draws "
        f"{BLOCK} episodes at a time, as an evaluation does. Images: ours asks for one episode after another, as training "
        "does. Copying is that of as many images that lie together, from anywhere in the store, into a kept buffer. easyfsl "
        "1.5.0 does not start on torch 2.15 (its sampler calls torch's Sampler.__init__ with an argument that is gone): that "
        "call is mended here. learn2learn's ordinary transforms are NWays and KShots; images come by LoadData. They make an "
        "object for every image of the chosen classes, which sets off Python's garbage collector: in the rows without it, "
        "it is off in everyone's turns.",
        harness.table(columns, rows),
    ]
    harness.report("Drawing episodes", parts, chosen.out, packages=["easyfsl", "learn2learn"])


def compared(store: ImageStore, images: bool, rounds: int) -> list[list[object]]:
    """Two rows of the table: with Python's garbage collector, and without."""
    counts = {"easyfsl": 50, "learn2learn": 200, "fused": 50, "ours": 1024}
    contestants = {
        "easyfsl": easyfsl(store, counts["easyfsl"], images),
        "learn2learn": learn2learn(store, counts["learn2learn"], images),
        "fused": learn2learn(store, counts["fused"], images, fused=True),
        "ours": (gathering if images else drawing)(store, counts["ours"]),
    }
    if images:
        counts |= {"copy": 1024, "long": LONG // (WAY * (SHOT + QUERY))}
        contestants |= {"copy": copying(store, counts["copy"]), "long": long_copying(store)}
    rows = []
    for collected in (True, False):
        if not collected:
            gc.disable()
        times = harness.take_turns(contestants, rounds)
        gc.enable()
        each = harness.Times({n: [s / counts[n] for s in seconds] for n, seconds in times.seconds.items()})
        name = (
            f"{'images' if images else 'indices'}, {store.num_classes} classes{'' if collected else ', no collector'}"
        )
        ratios = [each.ratio(peer, "ours") for peer in ("easyfsl", "learn2learn", "fused")]
        shares = [each.ratio(limit, "ours") if images else "" for limit in ("copy", "long")]
        rows.append([name, *ratios, 1 / each.median("ours"), *shares])
    return rows


if __name__ == "__main__":
    main()
