"""Shifting, mirroring and normalising batches of 32x32 images: torchvision in a DataLoader, and ours.

    uv run --group bench python benchmarks/augment.py --out benchmarks/results/augment.md

torchvision: RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize on PIL images that are made of an array
item by item, as its CIFAR-100 makes them, no worker processes. Ours: the calls of a training step from the store to the
network's input. CIFAR-100 arrives unsorted, so that its store is channels-last; a packed set is read as it lies, channel by
channel. Before anything is timed, every image of both is checked to be one of an image's possible outcomes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, cycle

import harness
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fewshot_mcl import draws
from fewshot_mcl.data import ImageStore
from fewshot_mcl.data.augment import shift
from fewshot_mcl.evaluation.fewshot import Normaliser

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Pictures(Dataset[Tensor]):
    """PIL images under torchvision's transforms."""

    def __init__(self, images: Tensor) -> None:
        self.pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.pixels[index]))


def by_torchvision(pixels: Tensor, batch: int) -> harness.Work:
    def endless() -> Iterator[Tensor]:
        while True:
            yield from DataLoader(Pictures(pixels), batch, shuffle=True, num_workers=0, drop_last=True)

    batches = endless()
    return lambda: next(batches)


def ours(store: ImageStore, batch: int) -> harness.Work:
    normalise, numbers = Normaliser(torch.tensor(MEAN), torch.tensor(STD)), count()
    orders = cycle(torch.randperm(len(store)).split(batch)[:-1])

    def step() -> Tensor:
        generator = draws.generator(0, "augment", next(numbers))
        return normalise(shift(store.gather(next(orders)), generator, most=4, flip=True))

    return step


def limit(pixels: Tensor, batch: int) -> harness.Work:
    """The conversion alone, into a kept buffer."""
    source, kept = pixels[:batch], torch.empty(batch, *pixels.shape[1:])
    return lambda: kept.copy_(source)


def check(batch: Tensor, pixels: Tensor) -> None:
    """Every image of a batch is one of `pixels`, moved and perhaps mirrored: some slice of it, padded by zeros, in float64."""
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (MEAN, STD))
    found = ((batch.double() * std + mean) * 255).round().long()
    padded = torch.nn.functional.pad(pixels, (4,) * 4).long()
    for image in found:
        every = [
            (padded[:, :, y : y + 32, x : x + 32] == each).all((1, 2, 3)).any()
            for y in range(9) for x in range(9) for each in (image, image.flip(2))
        ]  # fmt: skip
        assert any(every)


def compared(store: ImageStore, pixels: Tensor, batch: int, name: str, rounds: int) -> list[object]:
    """A row of the table."""
    contestants = {
        "torchvision": by_torchvision(pixels, batch),
        "ours": ours(store, batch),
        "limit": limit(pixels, batch),
    }
    times = harness.take_turns(contestants, rounds)
    ratio, share = times.ratio("torchvision", "ours"), times.ratio("limit", "ours")
    return [f"{batch}, {name}", ratio, batch / times.median("ours"), share]


def main() -> None:
    chosen = harness.arguments(__doc__ or "", images=10_000, batches=[64, 128, 512])
    pixels = torch.randint(256, (chosen.images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(chosen.images) % 100
    stores = {
        "arrived unsorted": ImageStore(pixels, labels, [str(c) for c in range(100)]),
        "packed": ImageStore(pixels, labels.sort().values, [str(c) for c in range(100)]),
    }
    few = pixels[:20]
    for work in (
        by_torchvision(few, 8),
        *(ours(ImageStore(few, x, ["a", "b"]), 8) for x in (torch.arange(20) % 2, torch.arange(20) // 10)),
    ):
        check(work(), few)
    rows = [
        compared(store, pixels, batch, name, chosen.rounds)
        for batch in chosen.batches
        for name, store in stores.items()
    ]
    columns = ["batch, store", "torchvision / ours", "ours, images/s", "share of uint8 -> float32 alone"]
    parts = [
        "32x32x3, from uint8 in memory to a normalised float32 batch; drawing included.",
        harness.table(columns, rows),
    ]
    harness.report("Augmentation", parts, chosen.out, packages=["torchvision", "pillow"])


if __name__ == "__main__":
    main()
