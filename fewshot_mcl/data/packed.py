"""Packed stores: images decoded once and kept as plain arrays, `SPLIT/images.npy` and `SPLIT/labels.npy`.

`store.json` beside them says what they are, with a SHA-256 of every chunk of images. Images that are read into memory
are verified in full; of those that are memory-mapped, a spread of chunks on loading and all of them by `verify`.
Asked for another size or colour than is stored, a packed store is resized from the stored pixels, and notes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewshot_mcl.data import parts
from fewshot_mcl.data.images import in_threads, resize_array, resize_rule
from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.packing import DAMAGE, HEADER, SCHEMA, Packing, open_array, planned_bytes, read_header
from fewshot_mcl.data.sources import SPLITS, ImageOptions, Source, refuse_test_in_training
from fewshot_mcl.data.store import ImageStore, fingerprint_of, memory_bytes, pixel_hash
from fewshot_mcl.errors import UserError

SPREAD = 16  # chunks of a memory-mapped split that are verified whenever it is loaded


class Written(NamedTuple):
    """What was written.

    Attributes:
        folders: of the splits, once the store is complete.
        left: numbers of the parts that others have to write.
    """

    folders: list[Path]
    left: list[int]


def packed_bytes(source: Source, options: ImageOptions) -> int:
    """Bytes of disk that `write_packed` needs for all splits. Image files are counted, not decoded."""
    return planned_bytes(_plan(source, options))


def write_packed(
    source: Source,
    options: ImageOptions,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] | None = None,
) -> Written:
    """Decode every split of `source` chunk by chunk and write it.

    `folder` appears when it is complete, or not at all. What is written until then outlives every interruption, and
    the same call goes on behind it.

    Args:
        source: what to pack.
        options: how files become pixels; with `on_bad_image` "skip" the bad ones become a note.
        folder: the store to write; it must not exist.
        progress: told (images done, images in all) as the work goes on.
        part: (k, n): only part k, from 1, of n, which several jobs can write at once; the last one finishes the store.

    Raises:
        UserError: where an image cannot be used, `folder` exists or cannot be written, the disk is too small or full,
            the packing of something else lies unfinished beside it, or that part is just being written.
        Interrupted: at a keyboard interrupt.
    """
    if os.path.lexists(folder):
        raise UserError(f"{printable(folder)} exists already: give a new folder, or remove that one.")
    progress, plan = progress or (lambda done, total: None), _plan(source, options)
    if part:
        left = parts.write_part(source, options, folder, plan, part, progress)
        return Written([] if left else [folder / split for split in source.splits], left)
    packing = Packing(folder, plan)
    try:
        packing.resume(options)
        packing.run(source, options, progress)
    except OSError as error:
        raise packing.explained(error) from error
    return Written([folder / split for split in source.splits], [])


def _plan(source: Source, options: ImageOptions) -> dict[str, Any]:
    """What is to be packed, by split: the shape at most, and a digest of files (names and sizes) or pixels."""
    splits = {}
    for split in source.splits:
        store = source.load(split, replace(options, decode="always"))  # of files, this decodes none
        splits[split] = {
            "shape": list(store.images.shape),
            "resize": store.resize,
            "class_names": list(store.class_names),
            "digest": store.fingerprint,
        }
    return {"source": source.name, "splits": splits}


def is_packed(folder: Path) -> bool:
    """Whether a packed store lies at `folder`."""
    return (folder / HEADER).is_file()


class _Chunk(NamedTuple):
    """Rows [first, stop) of images.npy, and the SHA-256 of their pixels."""

    first: int
    stop: int
    sha256: str


class PackedSource(Source):
    """Reads what `write_packed` wrote, now or as schema 1 (which had one fingerprint for a whole split).

    Raises:
        UserError: where the header is damaged or of a newer version.
    """

    format = "packed store (SPLIT/images.npy)"
    hint = "Convert the original data again, with its {split} split."

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        where = printable(folder / HEADER)
        try:
            header = read_header(folder / HEADER)
            self.schema = int(header["schema"])
            if self.schema > SCHEMA:
                raise UserError(f"{where} is of version {self.schema}, newer than this fewshot-mcl: update it.")
            self.name, self._headers = printable(header["source"]), dict(header["splits"])
            self.notes = tuple(map(printable, header["notes"]))
            self._names = {split: tuple(map(str, each["class_names"])) for split, each in self._headers.items()}
            self._chunks_of = {split: _chunks(each.get("chunks", ())) for split, each in self._headers.items()}
        except (OSError, *DAMAGE) as error:
            raise UserError(f"{where} is damaged: convert the original data again.") from error

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self._headers)

    def class_names(self, split: str) -> tuple[str, ...]:
        self.require(split)
        return self._names[split]

    def verify(self) -> list[str]:
        """Read every image of every split; what has changed since it was written, by file and rows.

        Raises:
            ForbiddenSplitError: inside `training_only()`, where there is a test split.
        """
        found = []
        for split in self.splits:
            refuse_test_in_training(split)
            try:
                found += self._changes(self._open(split, memory_share=0), every=True)
            except UserError as error:
                found.append(str(error))
        return found

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        store = self._open(split, options.memory_share)
        changes = self._changes(store, every=_fits(store.images.numpy(), options.memory_share))
        if changes:
            raise UserError(f"{first_few(changes)}: convert the original data again.")
        return self._resized(store, options)

    def _open(self, split: str, memory_share: float) -> ImageStore:
        """What is stored of a split, if it has the form that the header tells; its pixels are not looked at."""
        where, header = self.folder / split, self._headers[split]
        try:
            images = _read_array(where / "images.npy", memory_share)
            labels = _read_array(where / "labels.npy", 1)
            if labels.dtype.kind not in "iu":
                raise ValueError(f"labels of type {labels.dtype}")
            if list(images.shape) != header["shape"]:
                raise ValueError(f"images of shape {images.shape}")
            return ImageStore(
                images,
                labels,
                self.class_names(split),
                split=split,
                source=self.name,
                resize=printable(header["resize"]),
                fingerprint=None if self.schema == 1 else str(header["fingerprint"]),
            )
        except (OSError, *DAMAGE) as error:
            raise UserError(
                f"{printable(where)} is damaged ({printable(error)[:200]}): convert the original data again."
            ) from error

    def _changes(self, store: ImageStore, every: bool) -> list[str]:
        """What has changed since it was written, in words; every chunk is read, or a spread of them."""
        images, labels, names = store.images.numpy(), store.labels.numpy(), store.class_names
        where, chunks = self.folder / store.split, self._chunks_of[store.split]
        if self.schema == 1:
            same = _fingerprint_1(images, labels, names) == self._headers[store.split].get("fingerprint")
            return [] if same else [f"{printable(where)} has changed since it was written"]
        if fingerprint_of(images.shape, labels, names, (each.sha256 for each in chunks)) != store.fingerprint:
            return [f"{printable(where / 'labels.npy')} (or {HEADER}) has changed since it was written"]
        last = len(chunks) - 1
        chosen = chunks if every or last < SPREAD else [chunks[i * last // (SPREAD - 1)] for i in range(SPREAD)]

        def change(i: int) -> str | None:
            first, stop, sha256 = chosen[i]
            if pixel_hash(images[first:stop]) == sha256:
                return None
            return f"{printable(where / 'images.npy')} has changed since it was written, in rows {first} to {stop - 1}"

        return [each for each in in_threads(change, len(chosen), chunk=1) if each is not None]

    def _resized(self, store: ImageStore, options: ImageOptions) -> ImageStore:
        own_channels, height, width = store.shape
        size, channels = options.pixels(height, own_channels)
        if (channels, size, size) == store.shape:
            return store
        self.note(f"{store.split}: stored {width}x{height} images of {own_channels} channels resized on loading")
        return ImageStore(
            resize_array(store.images.numpy(), size, channels, options.resize, options.memory_share),
            store.labels,
            store.class_names,
            split=store.split,
            source=store.source,
            resize=f"{store.resize}, then {resize_rule(size, options.resize)}" if size != height else store.resize,
        )


def _chunks(header: Any) -> list[_Chunk]:
    """The chunks of a split as they stand in a header."""
    stops = np.cumsum([int(each["rows"]) for each in header], dtype=int).tolist()
    hashes = [bytes.fromhex(each["sha256"]).hex() for each in header]
    return [_Chunk(*each) for each in zip([0, *stops], stops, hashes)]


def _fits(array: np.ndarray, memory_share: float) -> bool:
    return array.nbytes <= memory_share * memory_bytes()


def _read_array(path: Path, memory_share: float) -> np.ndarray:
    """An array, memory-mapped where it would take more than `memory_share` of the memory."""
    mapped = open_array(path, "c")  # "c": tensors are writable, the file is not
    if path.stat().st_size != mapped.offset + mapped.nbytes:
        raise ValueError(f"{path.name} is longer than its header says")
    return np.array(mapped) if _fits(mapped, memory_share) else mapped


def _fingerprint_1(images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> str:
    """The fingerprint in stores of schema 1: one digest over every pixel."""
    digest = hashlib.sha256(repr((images.shape, class_names)).encode())
    digest.update(labels.astype(np.int64).tobytes())
    for start in range(0, len(images), 4096):
        digest.update(images[start : start + 4096].tobytes())
    return digest.hexdigest()
