"""What sets that were published as a few files share: reading them from a folder or a tar, fetching them, their images."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fewshot_mcl.data.images import resize_array, resize_rule
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import ImageOptions, Source
from fewshot_mcl.data.store import ImageStore, allocate_images
from fewshot_mcl.errors import UserError

LARGEST = 1 << 30  # bytes of a file that is read as a whole
LARGEST_HEADER = 1 << 20  # bytes of a long name or of other things that a tar says of a file
MOST_BYTES = 2 << 30  # of all files in a tar
MOST_FILES = 10_000  # in a tar, of which a published set has ten
HEADERS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}


class FolderFiles:
    """Those of `known` that lie in a folder; `names` says which."""

    def __init__(self, path: Path, known: Iterable[str]) -> None:
        self.path = path
        self.names = {name for name in known if os.path.isfile(path / name)}

    def where(self, name: str) -> str:
        """What a message calls a file."""
        return printable(self.path / name)

    def read(self, name: str) -> bytes:
        """The content of a file. Raises `UserError` where it cannot be read."""
        path = self.path / name
        try:
            if path.stat().st_size > LARGEST:
                raise UserError(
                    f"{printable(path)} is larger than the {LARGEST >> 30} GiB that are read of a file: fetch it again."
                )
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{printable(path)} cannot be read: {error.strerror}.") from error


class _Member(tarfile.TarInfo):
    """A tar header that is refused, before anything behind it is read, where it announces too much."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        member.require_size()
        return member

    def require_size(self) -> None:
        if self.size > LARGEST:
            raise tarfile.ReadError(f"it holds a file of {self.size} bytes, more than {LARGEST >> 30} GiB")
        if self.type in HEADERS and self.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"it holds a header of {self.size} bytes")


class ArchiveFiles:
    """The regular files in a tar, by the last part of their path. Nothing is unpacked to disk; links are not followed.

    Raises:
        UserError: where it is no tar, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._members() as members:
            self.names = {name for name, _, _ in members}

    def where(self, name: str) -> str:
        """What a message calls a file."""
        return f"{name} in {printable(self.path)}"

    def read(self, name: str) -> bytes:
        """The content of a file. Raises `UserError` where it cannot be read."""
        with self._members() as members:
            for found, member, tar in members:
                if found == name:
                    member.require_size()  # again: an extended header may have changed it
                    return tar.extractfile(member).read()  # type: ignore[union-attr]  # of a regular file, it is one
            raise tarfile.ReadError(f"{name} is no longer in it")

    @contextmanager
    def _members(self) -> Iterator[Iterator[tuple[str, _Member, tarfile.TarFile]]]:
        try:
            with self.path.open("rb") as file:
                mode = "r:gz" if file.read(2) == b"\x1f\x8b" else "r:"
            with tarfile.open(self.path, mode, tarinfo=_Member) as tar:  # type: ignore[call-overload]
                yield ((PurePosixPath(each.name).name, each, tar) for each in _listed(tar) if each.isreg())
        except Exception as error:  # damage shows as nearly every kind of exception
            reason = printable(error)[:200]
            raise UserError(
                f"{printable(self.path)} cannot be read as a tar archive ({reason}): fetch it again, or give the folder it "
                "unpacks to."
            ) from error


def _listed(tar: tarfile.TarFile) -> Iterator[Any]:
    """What is in a tar, as long as that is no more than a published set holds: a few bytes can stand for any number."""
    for number, member in enumerate(tar):
        if number >= MOST_FILES or tar.offset > MOST_BYTES:
            raise tarfile.ReadError(f"it holds more than {MOST_FILES:,} files, or {MOST_BYTES >> 30} GiB")
        yield member


def fetch(dataset: str, root: Path, files: str) -> None:
    """Download a data set of torchvision, by the name of its class, into `root`.

    Raises:
        UserError: where torchvision is missing or fails; it says to put `files` there instead.
    """
    otherwise = f"put {files} into {printable(root)} yourself"
    try:
        datasets = import_module("torchvision").datasets
    except ImportError as error:
        raise UserError(
            f"downloading needs torchvision: pip install 'fewshot-mcl[torchvision]', or {otherwise}."
        ) from error
    try:
        getattr(datasets, dataset)(str(root), download=True)
    except Exception as error:  # whatever the network and the archive raise
        raise UserError(
            f"the download of {dataset} failed ({printable(error)[:200]}): try again, or {otherwise}."
        ) from error


def published_store(
    source: Source, split: str, published: np.ndarray, labels: np.ndarray, options: ImageOptions
) -> ImageStore:
    """Images (N, C, S, S) uint8 in published order, with labels (N,), sorted and as the options ask for them."""
    order = np.argsort(labels, kind="stable")
    images = allocate_images((len(order), *published.shape[1:]), options.memory_share)
    for start in range(0, len(order), 1024):
        images[start : start + 1024] = published[order[start : start + 1024]]
    side = published.shape[2]
    size, channels = options.pixels(side, published.shape[1])
    return ImageStore(
        resize_array(images, size, channels, options.resize, options.memory_share),
        labels[order],
        source.class_names(split),
        split=split,
        source=source.name,
        resize="as stored" if size == side else resize_rule(size, options.resize),
        ids=[f"{split}[{row}]" for row in order.tolist()],
    )
