"""Shifting, mirroring and normalising batches of 32x32 images: torchvision in a DataLoader, and ours.

    uv run --group bench python benchmarks/augment.py --out benchmarks/results/augment.md

torchvision: RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize on PIL images, no worker processes, which
is how the paper's code reads CIFAR-100. Ours: the steps of `fewshot-mcl classify` from the store to the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import harness
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fewshot_mcl.data import ImageStore
from fewshot_mcl.data.augment import shift
from fewshot_mcl.evaluation.fewshot import normalise

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Pictures(Dataset[Tensor]):
    """PIL images under torchvision's transforms."""

    def __init__(self, images: Tensor) -> None:
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def by_torchvision(pixels: Tensor, batch: int) -> harness.Work:
    def endless() -> Iterator[Tensor]:
        while True:
            yield from DataLoader(Pictures(pixels), batch, shuffle=True, num_workers=0, drop_last=True)

    batches = endless()
    return lambda: next(batches)


def ours(store: ImageStore, batch: int) -> harness.Work:
    generator, mean, std = torch.Generator().manual_seed(0), torch.tensor(MEAN), torch.tensor(STD)
    orders = cycle(torch.randperm(len(store)).split(batch)[:-1])
    return lambda: normalise(shift(store.gather(next(orders)), generator, most=4, flip=True), mean, std)


def limit(pixels: Tensor, batch: int) -> harness.Work:
    """The conversion alone, into a kept buffer."""
    source, kept = pixels[:batch], torch.empty(batch, *pixels.shape[1:])
    return lambda: kept.copy_(source)


def main() -> None:
    chosen = harness.arguments(__doc__ or "", images=10_000, batches=[64, 128])
    pixels = torch.randint(256, (chosen.images, 3, 32, 32), dtype=torch.uint8)
    store = ImageStore(pixels, torch.zeros(chosen.images, dtype=torch.int64), ["all"])
    rows = []
    for batch in chosen.batches:
        contestants = {
            "torchvision": by_torchvision(pixels, batch),
            "ours": ours(store, batch),
            "limit": limit(pixels, batch),
        }
        assert contestants["ours"]().shape == contestants["torchvision"]().shape
        times = harness.take_turns(contestants, chosen.rounds)
        ratio, share = times.ratio("torchvision", "ours"), times.ratio("limit", "ours")
        rows.append([batch, ratio, batch / times.median("ours"), share])
    columns = ["batch", "torchvision / ours", "ours, images/s", "share of uint8 -> float32 alone"]
    parts = [
        "32x32x3, from uint8 in memory to a normalised float32 batch; drawing included.",
        harness.table(columns, rows),
    ]
    harness.report("Augmentation", parts, chosen.out, packages=["torchvision", "pillow"])


if __name__ == "__main__":
    main()
