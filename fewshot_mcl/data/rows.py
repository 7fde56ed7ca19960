"""Images that lie one after another in few files: rows of an array, encoded images in a pickle, members of a zip.

A source of this kind says how rows are read (`Rows`); what is common is here. Images that would take more than their
share of the memory stay in their files, and are read whenever they are asked for, as those of `decode = "always"` are.
Files of this kind were published as a whole: an image that cannot be read is refused whatever `on_bad_image` says.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewshot_mcl.data.images import (
    BadImage,
    Content,
    Resize,
    fit,
    image_of,
    in_threads,
    resize_array,
    resize_rule,
    to_array,
)
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import ImageOptions, Source, refuse_test_in_training
from fewshot_mcl.data.store import CHUNK, Chunk, ImageStore, allocate_images, in_bytes, memory_bytes
from fewshot_mcl.errors import UserError

Read = Callable[[np.ndarray, int, int, Resize], np.ndarray]  # (B,) rows, S, C, how -> (B, C, S, S) uint8


@dataclass(frozen=True)
class Rows:
    """The images of one split, by number.

    Attributes:
        names: class names, sorted.
        labels: (N,) int64 into `names`.
        read: reads some of them.
        side: in pixels, where the options name no size.
        channels: 1 or 3.
        id: where an image comes from.
        rule: how those that are not asked for in another size come to their own.
        files: names and sizes of the files behind them.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    read: Read
    side: int
    channels: int
    id: Callable[[int], str]
    rule: Callable[[int, Resize], str]
    files: tuple[tuple[str, int], ...]


class RowsSource(Source):
    """Images by row number."""

    @abstractmethod
    def rows(self, split: str) -> Rows:
        """The rows of a split that exists and may be opened; what its files say is checked."""

    def opened(self, split: str) -> Rows:
        """`rows` behind the guard of the test split: naming the classes may open a file."""
        refuse_test_in_training(split)
        self.require(split)
        return self.rows(split)

    def class_names(self, split: str) -> tuple[str, ...]:
        return self.opened(split).names

    def numbered(self, split: str) -> bool:
        """Whether the classes of a split go by numbers, because its files do not name them."""
        return False

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        rows = self.rows(split)
        size, channels = options.pixels(rows.side, rows.channels)
        images = RowImages(rows, np.argsort(rows.labels, kind="stable"), size, channels, options.resize)
        rule, needed = rows.rule(size, options.resize), math.prod(images.shape)
        lazy = options.decode == "always" or needed > options.memory_share * memory_bytes()
        if lazy and options.decode == "once":
            self.note(
                f"{split}: {in_bytes(needed)} of images are read from their files whenever they are used: a packed store "
                "(`data convert`) is faster to train from"
            )
        return ImageStore(
            images if lazy else images.decoded(options.memory_share),  # type: ignore[arg-type]  # it stands in for a tensor
            rows.labels[images.order],
            rows.names,
            split=split,
            source=self.name,
            resize=rule,
            ids=[rows.id(row) for row in images.order.tolist()],
            fingerprint=_fingerprint(rows, images, rule) if lazy else None,
        )

    def _chunks(self, split: str, options: ImageOptions, start: int) -> Iterator[Chunk]:
        rows = self.rows(split)
        size, channels = options.pixels(rows.side, rows.channels)
        order = np.argsort(rows.labels, kind="stable")
        for first in range(start, len(order), CHUNK):
            part = order[first : first + CHUNK]
            ids = tuple(rows.id(row) for row in part.tolist())
            yield Chunk(rows.read(part, size, channels, options.resize), rows.labels[part], ids, first + len(part))


class RowImages:
    """Stands in for the (N, C, S, S) uint8 tensor of an `ImageStore`, over rows that stay in their files."""

    dtype = torch.uint8

    def __init__(self, rows: Rows, order: np.ndarray, size: int, channels: int, resize: Resize) -> None:
        self.rows, self.order, self.resize = rows, order, resize
        self.shape = torch.Size((len(order), channels, size, size))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Read (B, C, S, S) uint8 images: a slice, or a 1-d tensor of row numbers."""
        if isinstance(rows, Tensor) and (rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool):
            raise TypeError(f"rows must be a slice or a 1-d tensor of integers, not {tuple(rows.shape)} {rows.dtype}")
        part = self.order[rows if isinstance(rows, slice) else rows.numpy()]
        return torch.from_numpy(self.rows.read(part, self.shape[-1], self.shape[1], self.resize))

    def decoded(self, memory_share: float) -> np.ndarray:
        """All of them, (N, C, S, S) uint8."""
        images = allocate_images((len(self), *self.shape[1:]), memory_share)
        for start in range(0, len(self), CHUNK):
            images[start : start + CHUNK] = self[start : start + CHUNK].numpy()
        return images


def _fingerprint(rows: Rows, images: RowImages, rule: str) -> str:
    """SHA-256 over class names, pixel rule, labels, and names and sizes of the files: no image is read."""
    digest = hashlib.sha256(repr((rows.names, tuple(images.shape), rule, rows.files)).encode("utf-8", "surrogatepass"))
    digest.update(rows.labels[images.order].astype(np.int64).tobytes())
    digest.update(images.order.astype(np.int64).tobytes())
    return digest.hexdigest()


def array_reader(images: np.ndarray, bgr: bool = False) -> Read:
    """Reads rows of an array (N, S, S, 3) uint8, mapped or in memory."""

    def read(rows: np.ndarray, size: int, channels: int, resize: Resize) -> np.ndarray:
        stored = images[rows]
        part = np.ascontiguousarray((stored[..., ::-1] if bgr else stored).transpose(0, 3, 1, 2))
        return resize_array(part, size, channels, resize, 1)

    return read


def stored_rule(side: int) -> Callable[[int, Resize], str]:
    """The rule of images that are stored as arrays of `side`."""
    return lambda size, resize: "as stored" if size == side else resize_rule(size, resize)


def encoded_reader(content: Callable[[int], Content], name: Callable[[int], str], advice: str) -> Read:
    """Reads rows that are image files in themselves.

    Args:
        content: of a row.
        name: what a message calls it, fit to print.
        advice: what to do about one that is no usable image.
    """

    def read(rows: np.ndarray, size: int, channels: int, resize: Resize) -> np.ndarray:
        images = np.empty((len(rows), channels, size, size), np.uint8)

        def fill(i: int) -> str | None:
            row = int(rows[i])
            try:
                images[i] = to_array(fit(image_of(content(row), 2 * size), size, resize), channels)
            except (BadImage, OSError) as error:
                return f"{name(row)} ({printable(error)})"
            return None

        bad = [each for each in in_threads(fill, len(rows), 16) if each is not None]
        if bad:
            raise UserError(f"{len(bad)} of {len(rows)} images cannot be used: {bad[0]}. {advice}")
        return images

    return read
