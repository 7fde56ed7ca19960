"""Packed stores: images decoded once and kept as plain arrays, `SPLIT/images.npy` and `SPLIT/labels.npy`.

`store.json` beside them says what they are, with a fingerprint of each split that is checked whenever it is loaded.
Asked for another size or colour than is stored, a packed store is resized from the stored pixels, and notes it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fewshot_mcl.data.images import resize_array, resize_rule
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import SPLITS, ImageOptions, Source
from fewshot_mcl.data.store import ImageStore, memory_bytes
from fewshot_mcl.errors import UserError

SCHEMA = 1
HEADER = "store.json"


def write_packed(source: Source, options: ImageOptions, folder: Path) -> list[Path]:
    """Decode every split of `source`, one after the other, and write it; the folders of the splits.

    `folder` appears when it is complete, or not at all.

    Raises:
        UserError: where a split cannot be loaded, or `folder` exists or cannot be written.
    """
    if os.path.lexists(folder):
        raise UserError(f"{printable(folder)} exists already: give a new folder, or remove that one.")
    splits: dict[str, Any] = {}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for split in source.splits:
                splits[split] = _write_split(source.load(split, options), unfinished)
            # The notes last: loading adds to them.
            header = {"schema": SCHEMA, "source": source.name, "notes": source.notes, "splits": splits}
            (unfinished / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")
            unfinished.chmod(0o755)  # mkdtemp made it private
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{printable(folder)} cannot be written: {error.strerror}.") from error
    return [folder / split for split in splits]


def _write_split(store: ImageStore, folder: Path) -> dict[str, Any]:
    (folder / store.split).mkdir()
    np.save(folder / store.split / "images.npy", store.images.numpy(), allow_pickle=False)
    np.save(folder / store.split / "labels.npy", store.labels.numpy(), allow_pickle=False)
    return {
        "shape": list(store.images.shape),
        "resize": store.resize,
        "class_names": list(store.class_names),
        "fingerprint": store.fingerprint,
    }


def is_packed(folder: Path) -> bool:
    """Whether a packed store lies at `folder`."""
    return (folder / HEADER).is_file()


class PackedSource(Source):
    """Reads what `write_packed` wrote.

    Raises:
        UserError: where the header is damaged or of a newer version.
    """

    format = "packed store (SPLIT/images.npy)"
    hint = "Convert the original data again, with its {split} split."

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        where = printable(folder / HEADER)
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            version = int(header["schema"])
            if version > SCHEMA:
                raise UserError(f"{where} is of version {version}, newer than this fewshot-mcl: update it.")
            self.name, self._headers = str(header["source"]), dict(header["splits"])
            self.notes = tuple(map(str, header["notes"]))
            self._names = {split: tuple(map(str, each["class_names"])) for split, each in self._headers.items()}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{where} is damaged: convert the original data again.") from error

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self._headers)

    def class_names(self, split: str) -> tuple[str, ...]:
        self.require(split)
        return self._names[split]

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        header, names = self._headers[split], self.class_names(split)
        where = printable(self.folder / split)
        try:
            images = _read_array(self.folder / split / "images.npy", options.memory_share)
            labels = _read_array(self.folder / split / "labels.npy", options.memory_share)
            store = ImageStore(images, labels, names, split=split, source=self.name, resize=str(header["resize"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{where} is damaged ({printable(error)[:200]}): convert the original data again."
            ) from error
        if store.fingerprint != header.get("fingerprint"):
            raise UserError(f"{where} has changed since it was written: convert the original data again.")
        return self._resized(store, options)

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


def _read_array(path: Path, memory_share: float) -> np.ndarray:
    """An array, memory-mapped where it would take more than `memory_share` of the memory."""
    mapped: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)  # "c": tensors are writable, the file is not
    return mapped if mapped.nbytes > memory_share * memory_bytes() else np.array(mapped)
