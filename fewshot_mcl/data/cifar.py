"""CIFAR-100 as published: python batches or the binary form, in a folder or still in their tar archive.

Python batches are pickles `train`, `test` and `meta`: "data" (N, 3072) uint8, 1024 red, 1024 green and 1024 blue values
of an image row by row, beside "fine_labels". Binary files hold 3074 bytes an image: coarse label, fine label, pixels.
Classes are the fine labels; how many there are is what `meta` names, so that a set in the same form opens as well.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fewshot_mcl.data.names import printable
from fewshot_mcl.data.pickles import loads_pickle
from fewshot_mcl.data.published import ArchiveFiles, FolderFiles, fetch, published_store
from fewshot_mcl.data.sources import ImageOptions, Source
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError

SHAPE = (3, 32, 32)
VALUES = 3 * 32 * 32  # of an image
OFFICIAL = {  # MD5, as the authors and torchvision give them
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
FOLDERS = ("", "cifar-100-python", "cifar-100-binary", "cifar-10-batches-py", "cifar-10-batches-bin")
ARCHIVES = ("cifar-100-python.tar.gz", "cifar-100-python.tar", "cifar-100-binary.tar.gz", "cifar-100-binary.tar")
CIFAR_10 = {"data_batch_1", "batches.meta", "data_batch_1.bin", "batches.meta.txt"}
CIFAR_10 |= {"cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"}


class CifarSource(Source):
    """CIFAR-100 in one of its forms. Opening reads the class names; loading a split reads its file and no other.

    Attributes:
        files: the file of "train", "test" and "meta" (the class names).

    Raises:
        UserError: where the class names cannot be read.
    """

    name = "cifar100"
    hint = "CIFAR-100 is published as train and test only."
    files: ClassVar[dict[str, str]]

    def __init__(self, place: FolderFiles | ArchiveFiles) -> None:
        self._place = place
        self._names = self._read_names()

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def class_names(self, split: str) -> tuple[str, ...]:
        """Names of the fine labels, in the order of their numbers."""
        self.require(split)
        return self._names

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, 3072) uint8 and fine labels (N,) int64 in published order, checked."""
        images, given = self._read_images(split)
        if not len(images):
            raise self._damaged(split, "it holds no images")
        return images, self._checked(split, given, len(images))

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        images, labels = self.read(split)
        return published_store(self, split, images.reshape(-1, *SHAPE), labels, options)

    @abstractmethod
    def _read_names(self) -> tuple[str, ...]:
        """The class names of `meta`, checked."""

    @abstractmethod
    def _read_images(self, split: str) -> tuple[np.ndarray, Any]:
        """Images (N, 3072) uint8 and what the file gives as their labels."""

    def _damaged(self, part: str, reason: str) -> UserError:
        where = self._place.where(self.files[part])
        return UserError(f"{where} is no usable file of CIFAR-100: {reason}. Fetch it again, or mend what wrote it.")

    def _distinct(self, names: Any) -> tuple[str, ...]:
        if not isinstance(names, list) or not any(names):
            raise self._damaged("meta", "it names no classes")
        texts = [_text(name) for name in names]
        if not all(isinstance(text, str) and text for text in texts) or len(set(texts)) < len(texts):
            raise self._damaged("meta", "its class names are not all different, or not all text")
        return tuple(texts)

    def _checked(self, split: str, labels: Any, count: int) -> np.ndarray:
        """(count,) int64 numbers of classes."""
        if isinstance(labels, np.ndarray) and labels.ndim == 1:
            labels = labels.tolist()
        if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
            raise self._damaged(split, "its fine labels are no list of integers")
        if len(labels) != count:
            raise self._damaged(split, f"it holds {count} images but {len(labels)} fine labels")
        classes = len(self._names)
        for row, label in enumerate(labels):
            if not 0 <= label < classes:
                raise self._damaged(split, f"fine label {label} of image {row} is none of the {classes} classes named")
        return np.array(labels, np.int64)


class PythonCifar(CifarSource):
    """Pickles, which are read by `loads_pickle` only."""

    format = "CIFAR-100 python batches (train, test, meta)"
    files: ClassVar[dict[str, str]] = {"train": "train", "test": "test", "meta": "meta"}
    _official = True  # as far as files were read

    def _read(self, part: str, *keys: str) -> list[Any]:
        content = self._place.read(self.files[part])
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != OFFICIAL[part]:
            self._official = False
        entries = loads_pickle(content, self._place.where(self.files[part]))
        entries = {_text(key): value for key, value in entries.items()} if isinstance(entries, dict) else {}
        for key in keys:
            if key not in entries:
                raise self._damaged(part, f"it has no '{key}'")
        return [entries[key] for key in keys]

    def _read_names(self) -> tuple[str, ...]:
        return self._distinct(*self._read("meta", "fine_label_names"))

    def _read_images(self, split: str) -> tuple[np.ndarray, Any]:
        images, labels = self._read(split, "data", "fine_labels")
        if not self._official:
            self.note("not the official CIFAR-100 files")
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (VALUES,):
            raise self._damaged(split, f"its data is no uint8 array with {VALUES} columns")
        return images, labels


class BinaryCifar(CifarSource):
    """Plain bytes, with the class names in a text file."""

    format = "CIFAR-100 binary files (train.bin, test.bin)"
    files: ClassVar[dict[str, str]] = {"train": "train.bin", "test": "test.bin", "meta": "fine_label_names.txt"}

    def _read_names(self) -> tuple[str, ...]:
        text = self._place.read(self.files["meta"]).decode("utf-8", "replace").strip()
        return self._distinct([line.strip() for line in text.split("\n")])

    def _read_images(self, split: str) -> tuple[np.ndarray, Any]:
        content = self._place.read(self.files[split])
        if len(content) % (2 + VALUES):
            raise self._damaged(split, f"it is cut short, {len(content)} bytes are not {2 + VALUES} for each image")
        rows = np.frombuffer(content, np.uint8).reshape(-1, 2 + VALUES)
        return rows[:, 2:], rows[:, 1]


FORMS: tuple[type[CifarSource], ...] = (PythonCifar, BinaryCifar)


def _text(value: Any) -> Any:
    """Text that Python 3 pickled as bytes, as text."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def find_cifar100(root: Path, download: bool = False) -> CifarSource:
    """The CIFAR-100 at `root`, a folder or an archive file.

    Args:
        root: its files, or the folder or archive that they were published in.
        download: fetch them into `root` by torchvision where they are not there.

    Raises:
        UserError: where there are none, some are missing, or the class names cannot be read.
    """
    source = find_files(root)
    # An archive of that name, whatever it is, is the user's: torchvision would write over it.
    if source is None and download and not root.is_file() and not os.path.lexists(root / ARCHIVES[0]):
        fetch("CIFAR100", root, ARCHIVES[0])
        source = find_files(root)
    if source is not None:
        return source
    if any(place.names & CIFAR_10 for place in _places(root)):
        raise UserError(f"{printable(root)}: this is CIFAR-10; cifar100 needs the CIFAR-100 files ({ARCHIVES[0]}).")
    raise UserError(
        f"no CIFAR-100 files at {printable(root)}: expected {ARCHIVES[0]}, cifar-100-python/ with train, test and meta, or "
        "cifar-100-binary/ with train.bin, test.bin and fine_label_names.txt. Where there is a network, "
        "--set download=true fetches them."
    )


def find_files(root: Path) -> CifarSource | None:
    """The first complete set in a folder or an archive file; None where there is nothing of any.

    Raises:
        UserError: where there is only part of one.
    """
    problem = ""
    for place in _places(root):
        for form in FORMS:
            missing = [file for file in form.files.values() if file not in place.names]
            if not missing:
                return form(place)
            if len(missing) < len(form.files):
                problem = problem or (
                    f"{printable(place.path)} lacks {' and '.join(missing)}: CIFAR-100 is {', '.join(form.files.values())} "
                    "together. Unpack or fetch it again."
                )
    if problem:
        raise UserError(problem)
    return None


def _places(root: Path) -> Iterator[FolderFiles | ArchiveFiles]:
    if root.is_file():
        yield ArchiveFiles(root)
        return
    known = CIFAR_10.union(*(form.files.values() for form in FORMS))
    yield from (FolderFiles(root / name, known) for name in FOLDERS)
    yield from (ArchiveFiles(root / name) for name in ARCHIVES if os.path.isfile(root / name))
