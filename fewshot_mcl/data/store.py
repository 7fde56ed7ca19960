"""Images of one split as a single uint8 tensor, sorted by class.

Sorting makes class c one contiguous range: an episode is a handful of index operations, and a negative of another class
is one draw plus one offset.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

MEMORY_SHARE = 0.5  # images larger than this share of the machine's memory are kept on disk and memory-mapped


class ImageStore:
    """Labelled images in memory (or memory-mapped), sorted by class.

    Args:
        images: (N, C, H, W) uint8 tensor or array.
        labels: (N,) integers in [0, number of classes).
        class_names: one name per class; their order is the order of the labels.
        split: which split these images are ("train", "val", "test", or "" where there is none).
        source: where they come from, in words for a result line ("glyphs", a folder's name, ...).
        resize: the rule that brought them to this size, in words.
        ids: where each image comes from (a path, or "file[row]"), in the order given; empty where unknown.

    Images that do not arrive sorted by class are sorted stably: `ids` and the order inside a class are kept.

    Raises:
        ValueError: where shapes, dtypes or labels disagree with the above.
    """

    def __init__(
        self,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        class_names: list[str] | tuple[str, ...],
        *,
        split: str = "",
        source: str = "",
        resize: str = "",
        ids: list[str] | tuple[str, ...] = (),
    ) -> None:
        images, labels = torch.as_tensor(images), torch.as_tensor(labels).to(torch.int64)
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images but labels of shape {tuple(labels.shape)}")
        if ids and len(ids) != len(images):
            raise ValueError(f"{len(images)} images but {len(ids)} ids")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
            raise ValueError(f"labels must lie in [0, {len(class_names)}), the number of class names")
        if bool((labels[1:] < labels[:-1]).any()):
            order = torch.argsort(labels, stable=True)
            images, labels = images[order], labels[order]
            ids = [ids[i] for i in order.tolist()] if ids else ()
        self.images, self.labels = images, labels
        self.class_names, self.ids = tuple(class_names), tuple(ids)
        self.split, self.source, self.resize = split, source, resize

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def class_sizes(self) -> Tensor:
        """(number of classes,) images in each class."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, labels, class names and every pixel: equal stores, and only they, share it."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.class_names)).encode())
        digest.update(self.labels.numpy().tobytes())
        pixels = self.images.numpy()
        for start in range(0, len(pixels), 4096):
            digest.update(pixels[start : start + 4096].tobytes())
        return digest.hexdigest()


def memory_bytes() -> int:
    """Physical memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def allocate_images(shape: tuple[int, int, int, int], memory_share: float = MEMORY_SHARE) -> np.ndarray:
    """An uninitialised uint8 array: in memory, or over an unnamed temporary file where that takes more than `memory_share`."""
    size = int(np.prod(shape, dtype=np.int64))
    if size <= memory_share * memory_bytes():
        return np.empty(shape, np.uint8)
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the map keeps it alive; it vanishes with the process)
    file.truncate(size)
    return np.memmap(file, np.uint8, "r+", shape=shape)
