"""Augmentation of whole batches on their device: shifts, mirrored images, random resized crops.

What is drawn depends on the generator alone, which is on the CPU: every device sees the same crops.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

Of = tuple[slice, int]  # a part of a batch of so many images: draws are for all of it, so each is the same in any part
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of random resized crops, as the field has them


def shift(images: Tensor, generator: torch.Generator, *, most: int, flip: bool, of: Of | None = None) -> Tensor:
    """Each image moved by up to `most` pixels each way, zeros coming in, and with `flip` mirrored half the time.

    Args:
        images: (B, C, H, W).
        generator: where the draws come from.
        most, flip: see above.
        of: which part of a batch these images are; None for all of it.

    Returns:
        (B, C, H, W) of the same type.
    """
    part, batch = of or (slice(None), len(images))
    start = torch.randint(2 * most + 1, (2, batch, 1), generator=generator)[..., 0][:, part]
    chance = (torch.rand(batch, 1, generator=generator)[:, 0] if flip else torch.ones(batch))[part]
    padded = torch.nn.functional.pad(images, (most,) * 4)
    form = windows if images.device.type == "cpu" else pixels
    return form(padded, start[0], start[1], chance < 0.5, 2 * most)


def windows(padded: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, smaller: int) -> Tensor:
    """Of each padded image (B, C, H', W') the window from (top, left) that is `smaller` than it in height and width, cut out.

    NumPy copies windows in runs of a row and so is several times faster than a gather, but works on the CPU alone. The
    result has the layout of `padded`, where runs are longest.
    """
    height, width = padded.shape[2] - smaller, padded.shape[3] - smaller
    last = padded.is_contiguous(memory_format=torch.channels_last)
    lie, stand = ((0, 2, 3, 1), (0, 3, 1, 2)) if last else ((0, 1, 2, 3), (0, 1, 2, 3))
    every = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, y, x, height, width), without a copy
    every = every.permute(0, 2, 3, *((4, 5, 1) if last else (1, 4, 5)))
    result = every.numpy()[np.arange(len(padded)), top.numpy(), left.numpy()]
    turned = np.flatnonzero(mirrored.numpy())  # by torch, which mirrors many bytes at a time
    result[turned] = torch.from_numpy(result[turned]).permute(stand).flip(3).permute(lie).numpy()
    return torch.from_numpy(result).permute(stand)


def pixels(padded: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, smaller: int) -> Tensor:
    """The same as `windows`, gathered pixel by pixel, on any device."""
    height, width = padded.shape[2] - smaller, padded.shape[3] - smaller
    rows, columns = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows, columns = rows.to(padded.device), columns.to(padded.device)
    number = torch.arange(len(padded), device=padded.device)[:, None, None]
    return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resized_crop(images: Tensor, generator: torch.Generator, *, size: int, of: Of | None = None) -> Tensor:
    """A random part of each image, of 8 to 100% of its area, scaled to `size` x `size`, mirrored half the time.

    Scaling is antialiased bilinear. It is linear and separable, so a batch takes two products with small matrices.

    Args:
        images: (B, C, H, W).
        generator: where the draws come from.
        size: side of the result in pixels.
        of: which part of a batch these images are; None for all of it.

    Returns:
        (B, C, size, size) float32 in the range of `images`.
    """
    _, _, height, width = images.shape
    part, batch = of or (slice(None), len(images))
    top, left, tall, wide = (each[part] for each in crop_boxes(batch, height, width, generator))
    vertical, horizontal = resampling(top, tall, height, size), resampling(left, wide, width, size)
    mirrored = torch.rand(batch, 1, 1, generator=generator)[part] < 0.5
    horizontal = torch.where(mirrored, horizontal.flip(1), horizontal)
    vertical, horizontal = (m.to(images.device)[:, None] for m in (vertical, horizontal))
    return vertical @ images.float() @ horizontal.mT


def crop_boxes(
    batch: int, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width (B,) of random boxes, whole pixels.

    Area is uniform and the logarithm of the ratio of the sides too; of ten draws the first that fits counts, and where
    none does, the largest central box of an allowed ratio.
    """
    area = torch.empty(batch, TRIES).uniform_(*AREA, generator=generator) * height * width
    ratio = torch.empty(batch, TRIES).uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=generator).exp()
    wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
    first, found = fits.int().argmax(1, keepdim=True), fits.any(1)
    central = min(max(width / height, RATIO[0]), RATIO[1])
    wide = torch.where(found, wide.gather(1, first)[:, 0], round(min(width, height * central)))
    tall = torch.where(found, tall.gather(1, first)[:, 0], round(min(height, width / central)))
    place = torch.rand(2, batch, generator=generator)
    place = torch.where(found, place, 0.5)
    return (place[0] * (height - tall + 1)).floor(), (place[1] * (width - wide + 1)).floor(), tall, wide


def resampling(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """(B, size, source) matrices that scale pixels `start` to `start + length` of `source` to `size`, antialiased bilinear."""
    scale = (length / size)[:, None, None]
    support = scale.clamp_min(1)
    centre = start[:, None, None] + (torch.arange(size)[:, None] + 0.5) * scale
    pixel = torch.arange(source) + 0.5
    inside = (pixel > start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weight = (1 - (pixel - centre).abs() / support).clamp_min(0) * inside
    return weight / weight.sum(-1, keepdim=True)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle `size` x `size` of images (B, C, H, W)."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]
