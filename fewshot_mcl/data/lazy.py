"""Images that stay files and are decoded whenever they are asked for (`decode = "always"`).

They need no memory and no second copy on the disk, and cost their decoding in every epoch. A bad image is found only
when it is read, and refused then even where bad images are to be skipped: a store cannot lose rows while it is in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewshot_mcl.data.images import Resize, decode_into, in_threads
from fewshot_mcl.data.names import first_few
from fewshot_mcl.errors import UserError

A_THREAD = 4  # files that one thread decodes in a row: a batch is small


class FileImages:
    """Stands in for the (N, C, S, S) uint8 tensor of an `ImageStore`, over one file for each image.

    Args:
        paths: the files, in the order of the rows.
        size: side S in pixels.
        channels: C, 1 or 3.
        resize: as for `images.fit`.
    """

    dtype = torch.uint8

    def __init__(self, paths: list[Path], size: int, channels: int, resize: Resize) -> None:
        self.paths, self.resize = paths, resize
        self.shape = torch.Size((len(paths), channels, size, size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Decode (B, C, S, S) uint8 images: a slice, or a 1-d tensor of row numbers.

        Raises:
            UserError: where a file is no usable image, whatever `on_bad_image` says.
        """
        if isinstance(rows, Tensor) and (rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool):
            raise TypeError(f"rows must be a slice or a 1-d tensor of integers, not {tuple(rows.shape)} {rows.dtype}")
        paths = self.paths[rows] if isinstance(rows, slice) else [self.paths[row] for row in rows.tolist()]
        images, bad = decode_files(paths, self.shape[-1], self.shape[1], self.resize)
        if bad:
            raise UserError(
                f"{len(bad)} of {len(paths)} images cannot be used: {first_few(list(bad.values()))}. Mend or remove them, "
                "or pack the images without them: `data convert` with --on-bad-image skip."
            )
        return torch.from_numpy(images)


def decode_files(paths: list[Path], size: int, channels: int, resize: Resize) -> tuple[np.ndarray, dict[int, str]]:
    """Files as (N, channels, size, size) uint8, and by place which are no usable images and why: their pixels mean nothing."""
    images = np.empty((len(paths), channels, size, size), np.uint8)
    return images, decode_into(images, paths, resize, A_THREAD)


def files_fingerprint(rule: tuple[object, ...], labels: np.ndarray, ids: Sequence[str], paths: list[Path]) -> str:
    """SHA-256 over class names and pixel rule, labels, and names and sizes of the files: none of them is opened."""

    def size(i: int) -> int:
        try:
            return paths[i].stat().st_size
        except OSError:  # a link that leads nowhere; decoding reports it
            return -1

    digest = hashlib.sha256(repr(rule).encode("utf-8", "surrogatepass"))
    digest.update(labels.astype(np.int64).tobytes())
    digest.update(repr(list(zip(ids, in_threads(size, len(paths))))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
