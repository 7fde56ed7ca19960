"""Fashion-MNIST as published: IDX files of images and labels, gzipped or not.

An IDX file is two zero bytes, the kind of number (8: uint8), how many dimensions, their sizes as big-endian 32-bit
numbers, and the values. MNIST comes in files of the same names and sizes: which of the two it is, no file says.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from fewshot_mcl.data.names import printable
from fewshot_mcl.data.published import fetch, published_store
from fewshot_mcl.data.sources import ImageOptions, Source
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SIDE = 28
FILES = {  # images and labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FOLDERS = ("", "raw", "FashionMNIST/raw")  # the last is torchvision's
UINT8 = 8
LARGEST = 1 << 30  # bytes of values that are read of a file
CHUNK = 1 << 20


class FashionMnist(Source):
    """Grey 28x28 images of ten kinds of clothes. Opening reads no file; loading a split reads its two files."""

    name = "fashion-mnist"
    format = "IDX files (train-images-idx3-ubyte)"
    hint = "Fashion-MNIST is published as train and test only."

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def class_names(self, split: str) -> tuple[str, ...]:
        """The ten names, in the order of their labels."""
        self.require(split)
        return CLASSES

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        images_path, labels_path = (self._files[name] for name in FILES[split])
        images = read_idx(images_path, (SIDE, SIDE))
        labels = read_idx(labels_path, ()).astype(np.int64)
        if len(labels) != len(images):
            raise UserError(
                f"{printable(images_path)} holds {len(images)} images but {labels_path.name} {len(labels)} labels: fetch "
                "both again."
            )
        if not len(labels) or labels.max() >= len(CLASSES):
            what = f"a label {labels.max()}, which is none of 0 to 9" if len(labels) else "no labels"
            raise UserError(f"{printable(labels_path)} holds {what}: fetch it again.")
        return published_store(self, split, images[:, None], labels, options)


def read_idx(path: Path, sides: tuple[int, ...]) -> np.ndarray:
    """The values (N, *sides) uint8 of an IDX file, gzipped where it is called .gz. No more is read than it announces.

    Raises:
        UserError: where it is damaged, or of another shape.
    """
    try:
        with _opened(path) as file:
            header = file.read(4 * (2 + len(sides)))
            if header[:4] != bytes((0, 0, UINT8, 1 + len(sides))) or len(header) < 4 * (2 + len(sides)):
                raise _damaged(path, f"it does not begin as an IDX{1 + len(sides)} file of bytes does")
            shape = struct.unpack(f">{1 + len(sides)}I", header[4:])
            if shape[1:] != sides:
                raise _damaged(path, f"its images are {'x'.join(map(str, shape[1:]))}, not {'x'.join(map(str, sides))}")
            size = math.prod(shape)
            if size > LARGEST:
                raise _damaged(
                    path, f"it announces {size} bytes of values, more than the {LARGEST >> 30} GiB that are read"
                )
            content = _at_most(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, printable(error)[:200]) from error
    if len(content) != size:
        held = f"holds {len(content)}" if len(content) < size else "holds more"
        raise _damaged(path, f"it announces {size} bytes of values and {held}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _at_most(file: BinaryIO, size: int) -> bytearray:
    """The next `size` bytes, or those that are there: memory is taken for what comes, not for what is announced."""
    content = bytearray()
    while part := file.read(min(CHUNK, size - len(content))):
        content += part
    return content


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{printable(path)} is no usable file of Fashion-MNIST: {reason}. Fetch it again.")


def find_fashion_mnist(root: Path, download: bool = False) -> FashionMnist:
    """The Fashion-MNIST at `root`, in its folder raw, or in FashionMNIST/raw.

    Args:
        root: a folder.
        download: fetch the files by torchvision where none of them is there.

    Raises:
        UserError: where there are none, or some are missing.
    """
    needed = [name for split in FILES.values() for name in split]
    files = _look(root, needed)
    if files is None and download and not root.is_file():
        fetch("FashionMNIST", root, f"{needed[0]}.gz and the three others")
        files = _look(root, needed)
    if files is None:
        raise UserError(
            f"no Fashion-MNIST files at {printable(root)}: expected {', '.join(needed)}, each with or without .gz. Where "
            "there is a network, --set download=true fetches them."
        )
    return FashionMnist(files)


def _look(root: Path, needed: list[str]) -> dict[str, Path] | None:
    """The files of the first complete folder; None where no folder has any. Raises `UserError` where all lack some."""
    problem = ""
    for folder in FOLDERS:
        paths = {name: _plain_or_gzipped(root / folder / name) for name in needed}
        found = {name: path for name, path in paths.items() if path is not None}
        if len(found) == len(needed):
            return found
        if found:
            missing = " and ".join(name for name in needed if name not in found)
            problem = problem or (
                f"{printable(root / folder)} lacks {missing} (with or without .gz): put it beside the others."
            )
    if problem:
        raise UserError(problem)
    return None


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((each for each in (path, Path(f"{path}.gz")) if os.path.isfile(each)), None)
