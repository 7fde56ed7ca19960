"""Images of one split as a single uint8 tensor, sorted by class.

Sorting makes class c one contiguous range: an episode is a handful of index operations, and a negative of another class
is one draw plus one offset.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from fewshot_mcl.data.lazy import FileImages

MEMORY_SHARE = 0.5  # images larger than this share of the machine's memory are kept on disk and memory-mapped
CHUNK = 1024  # images that are decoded, written and hashed together; every fingerprint rests on it


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of a split.

    Attributes:
        images: (n, C, H, W) uint8.
        labels: (n,) integers in [0, number of classes).
        ids: where each image comes from; empty where unknown.
        stop: where the next chunk starts, in the source's own count: files that are skipped count too.
        skipped: the files since the chunk before that are no usable images, with the reason.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    stop: int
    skipped: tuple[str, ...] = ()


class ImageStore:
    """Labelled images in memory (or memory-mapped), sorted by class.

    Args:
        images: (N, C, H, W) uint8 tensor or array, or `lazy.FileImages`, which stand in for a tensor.
        labels: (N,) integers in [0, number of classes).
        class_names: one name per class; their order is the order of the labels.
        split: which split these images are ("train", "val", "test", or "" where there is none).
        source: where they come from, in words for a result line ("glyphs", a folder's name, ...).
        resize: the rule that brought them to this size, in words.
        ids: where each image comes from (a path, or "file[row]"), in the order given; empty where unknown.
        fingerprint: what `fingerprint` is, where the caller knows it without reading every pixel.

    Images that do not arrive sorted by class are sorted stably: `ids` and the order inside a class are kept. The copy that
    this takes is in channels-last layout, in which batches are shifted and normalised in longer runs.

    Raises:
        ValueError: where shapes, dtypes or labels disagree with the above.

    Example:
        >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> store = ImageStore(images, torch.tensor([1, 0, 1, 0]), ["ant", "bee"])
        >>> store.labels.tolist(), store.shape
        ([0, 0, 1, 1], (3, 32, 32))
    """

    def __init__(
        self,
        images: Tensor | np.ndarray | FileImages,
        labels: Tensor | np.ndarray,
        class_names: list[str] | tuple[str, ...],
        *,
        split: str = "",
        source: str = "",
        resize: str = "",
        ids: list[str] | tuple[str, ...] = (),
        fingerprint: str | None = None,
    ) -> None:
        images = torch.as_tensor(images) if isinstance(images, np.ndarray) else cast(Tensor, images)
        labels = torch.as_tensor(labels).to(torch.int64)
        if len(images.shape) != 4 or images.dtype != torch.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images but labels of shape {tuple(labels.shape)}")
        if ids and len(ids) != len(images):
            raise ValueError(f"{len(images)} images but {len(ids)} ids")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
            raise ValueError(f"labels must lie in [0, {len(class_names)}), the number of class names")
        if bool((labels[1:] < labels[:-1]).any()):
            order = torch.argsort(labels, stable=True)
            images, labels = _channels_last(images, order), labels[order]
            ids = [ids[i] for i in order.tolist()] if ids else ()
        self.images, self.labels = images, labels
        self.class_names, self.ids = tuple(class_names), tuple(ids)
        self.split, self.source, self.resize = split, source, resize
        self._fingerprint = fingerprint
        self._gathered = torch.empty(0, *self.images.shape[1:], dtype=torch.uint8)

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

    def gather(self, rows: Tensor) -> Tensor:
        """Images of (B,) row numbers, as (B, C, H, W) uint8 in a buffer that the next call writes over.

        The buffer is kept because a newly allocated result of this size costs several times the copying.

        Raises:
            IndexError: where a row is not in [0, N).
        """
        if not isinstance(self.images, Tensor):  # they are decoded into a tensor of their own
            return self.images[rows]
        if len(rows) > len(self._gathered):
            last = self.images.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            self._gathered = torch.empty(len(rows), *self.shape, dtype=torch.uint8, memory_format=layout)
        return torch.index_select(self.images, 0, rows, out=self._gathered[: len(rows)])

    @cached_property
    def class_sizes(self) -> Tensor:
        """(number of classes,) images in each class."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, labels, class names and every pixel: equal stores, and only they, share it.

        Images that are decoded whenever they are asked for have one of their own, over names and sizes of files.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        pixels = self.images.numpy()
        hashes = (pixel_hash(pixels[start : start + CHUNK]) for start in range(0, len(pixels), CHUNK))
        return fingerprint_of(pixels.shape, self.labels.numpy(), self.class_names, hashes)


def _channels_last(images: Tensor, order: Tensor) -> Tensor:
    """The images in another order, in channels-last layout."""
    result = torch.empty(images.shape, dtype=images.dtype, memory_format=torch.channels_last)
    for part, rows in zip(result.split(CHUNK), order.split(CHUNK)):
        copy_channels(part, images[rows])
    return result


def copy_channels(target: Tensor, images: Tensor) -> None:
    """Copy images into (B, C, H, W) in channels-last layout, of whatever type: where the layouts differ channel by channel,
    which takes a third of torch's own change of layout."""
    if images.is_contiguous(memory_format=torch.channels_last):
        target.copy_(images)
    else:
        for ours, theirs in zip(target.unbind(1), images.unbind(1)):
            ours.copy_(theirs)


def pixel_hash(images: np.ndarray) -> str:
    """SHA-256 of the pixels of one chunk."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def fingerprint_of(
    shape: Sequence[int], labels: np.ndarray, class_names: tuple[str, ...], hashes: Iterable[str]
) -> str:
    """`ImageStore.fingerprint` from the `pixel_hash` of every chunk of CHUNK images (the last may have fewer)."""
    digest = hashlib.sha256(repr((tuple(shape), class_names)).encode("utf-8", "surrogatepass"))
    digest.update(labels.astype(np.int64).tobytes())
    for each in hashes:
        digest.update(bytes.fromhex(each))
    return digest.hexdigest()


def memory_bytes() -> int:
    """Physical memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_bytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def allocate_images(shape: tuple[int, int, int, int], memory_share: float = MEMORY_SHARE) -> np.ndarray:
    """An uninitialised uint8 array: in memory, or over an unnamed temporary file where that takes more than `memory_share`."""
    size = int(np.prod(shape, dtype=np.int64))
    if size <= memory_share * memory_bytes():
        return np.empty(shape, np.uint8)
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the map keeps it alive; it vanishes with the process)
    file.truncate(size)
    return np.memmap(file, np.uint8, "r+", shape=shape)
