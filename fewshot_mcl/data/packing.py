"""The writing of a packed store, chunk by chunk, so that it can stop at any point and go on later.

Until the store is complete it lies in `.NAME.partial`. A chunk counts once `progress.json` there names it, which is
written, like the chunk before it, through to the disk.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Literal

import numpy as np

from fewshot_mcl.data.folder import require_images, skipped_note
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import ImageOptions, Source
from fewshot_mcl.data.store import Chunk, fingerprint_of, in_bytes, pixel_hash
from fewshot_mcl.errors import Interrupted, UserError

SCHEMA = 2
HEADER = "store.json"
PROGRESS = "progress.json"
PARTS = "part-*"  # what stands for it, and a lock, where a store is packed in parts
LARGEST_HEADER = 1 << 26  # bytes
DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RecursionError, TokenError)


class Packing:
    """A store on its way to the disk.

    `plan` is what it will be, `chunks` the chunks of each split that are safe, `complete` the splits that lack nothing.
    """

    progress = PROGRESS  # the file that says how far it is

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, plan
        self.partial = folder.with_name(f".{folder.name}.partial")
        self.chunks: dict[str, list[dict[str, Any]]] = {split: [] for split in plan["splits"]}
        self.complete: list[str] = []
        self.notes: list[str] = []

    def resume(self, options: ImageOptions) -> None:
        """Go on behind an earlier attempt, or begin where there was none and the disk has room."""
        if self.partial.exists():
            self._go_on(options)
        self._require_room()
        self.partial.mkdir(parents=True, exist_ok=True)
        self._save()

    def _go_on(self, options: ImageOptions) -> None:
        """Take up what an earlier attempt left."""
        where = printable(self.partial)
        try:
            found = read_header(self.partial / self.progress)
            same, begun = found["plan"] == self.plan, printable(found["plan"]["source"])
            chunks, self.complete, self.notes = state_of(found)
        except (OSError, *DAMAGE) as error:
            parts = " It was begun in parts: go on with --part." if list(self.partial.glob(PARTS)) else ""
            raise UserError(f"{where} holds a packing that cannot be continued: remove that folder.{parts}") from error
        if not same:
            raise UserError(
                f"{where} holds an unfinished packing of something else (of '{begun}', with other images or options): "
                "finish that one, remove that folder, or give another --out."
            )
        if options.on_bad_image == "refuse" and any(chunk["skipped"] for each in chunks.values() for chunk in each):
            raise UserError(f"{where} was begun with --on-bad-image skip: give that again, or remove the folder.")
        self.chunks = {split: self._trusted(split, chunks[split]) for split in chunks}
        self.complete = [split for split in self.complete if len(self.chunks[split]) == len(chunks[split])]

    def _span(self, split: str) -> tuple[int, int]:
        """Where what is to be packed of a split begins and stops, in the source's own count."""
        return 0, self.plan["splits"][split]["shape"][0]

    def _trusted(self, split: str, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The chunks up to the last one that is on the disk as it was written."""
        file, begin = self.partial / split / "images.npy", self._span(split)[0]
        while chunks:
            first, stop = (begin + sum(chunk["rows"] for chunk in each) for each in (chunks[:-1], chunks))
            try:
                if pixel_hash(open_array(file, "r")[first:stop]) == chunks[-1]["sha256"]:
                    break
            except (OSError, *DAMAGE):
                pass
            chunks = chunks[:-1]
        return chunks

    def run(self, source: Source, options: ImageOptions, progress: Callable[[int, int], None]) -> None:
        """Write all that is lacking."""
        try:
            for split in source.splits:
                if split not in self.complete:
                    self._write_chunks(source, split, options, progress)
                    self._close(split)
                    self.complete.append(split)
                    self._save(source)
            self._finish(source)
        except UserError as error:
            raise UserError(f"{error}{self._kept()}") from error
        except KeyboardInterrupt:
            raise Interrupted(f"stopped.{self._kept()}") from None

    def _kept(self) -> str:
        """Where the chunks lie that are safe, in words; where there are none, nothing stays behind."""
        if self._written():
            return f" What is packed so far is kept in {printable(self.partial)}: packing the same files goes on from there."
        shutil.rmtree(self.partial, ignore_errors=True)
        return ""

    def _write_chunks(
        self, source: Source, split: str, options: ImageOptions, progress: Callable[[int, int], None]
    ) -> None:
        """Write the images that a split still lacks."""
        shape, chunks, (begin, stop) = self.plan["splits"][split]["shape"], self.chunks[split], self._span(split)
        total = sum(stop - begin for begin, stop in map(self._span, self.plan["splits"]))
        (self.partial / split).mkdir(exist_ok=True)
        (self.partial / split / "images.npy").touch()
        with (self.partial / split / "images.npy").open("r+b") as file:
            data = _set_shape(file, shape)
            start = chunks[-1]["stop"] if chunks else begin
            for chunk in source.chunks(split, options, start) if start < stop else ():
                file.seek(data + (begin + sum(each["rows"] for each in chunks)) * math.prod(shape[1:]))
                _write(file, np.ascontiguousarray(chunk.images).data)
                chunks.append(_record(chunk))
                self._save(source)
                progress(self._done(), total)
                if chunk.stop >= stop:
                    break

    def _close(self, split: str) -> None:
        """Write what a split needs beside its images, all of which are safe."""
        plan, chunks = self.plan["splits"][split], self.chunks[split]
        with (self.partial / split / "images.npy").open("r+b") as file:
            _set_shape(file, [sum(each["rows"] for each in chunks), *plan["shape"][1:]])
            _write(file)
        labels = _labels(chunks)
        require_images(split, plan["class_names"], labels)
        with (self.partial / split / "labels.npy").open("wb") as file:
            np.save(file, labels, allow_pickle=False)
            _write(file)
        skipped = [reason for chunk in chunks for reason in chunk["skipped"]]
        self.notes += [skipped_note(split, skipped, plan["shape"][0])] if skipped else []

    def _finish(self, source: Source) -> None:
        """Write the header and give the store its name."""
        splits = {}
        for split, plan in self.plan["splits"].items():
            # A chunk of nothing but skipped images is not one of the store.
            chunks = [{"rows": each["rows"], "sha256": each["sha256"]} for each in self.chunks[split] if each["rows"]]
            shape = [sum(each["rows"] for each in chunks), *plan["shape"][1:]]
            names, labels = tuple(plan["class_names"]), _labels(self.chunks[split])
            fingerprint = fingerprint_of(shape, labels, names, (each["sha256"] for each in chunks))
            splits[split] = {
                "shape": shape, "resize": plan["resize"], "class_names": names, "fingerprint": fingerprint, "chunks": chunks,
            }  # fmt: skip
        header = {"schema": SCHEMA, "source": source.name, "notes": self.notes, "splits": splits}
        with (self.partial / HEADER).open("wb") as file:
            _write(file, json.dumps(header, indent=1).encode())
        self.partial.rename(self.folder)
        for path in (self.folder / PROGRESS, *self.folder.glob(PARTS)):  # of how far it was
            path.unlink(missing_ok=True)

    def _done(self) -> int:
        return sum(chunks[-1]["stop"] - self._span(split)[0] for split, chunks in self.chunks.items() if chunks)

    def _written(self) -> int:
        """Bytes of images that are safe."""
        rows = {split: sum(chunk["rows"] for chunk in chunks) for split, chunks in self.chunks.items()}
        return sum(rows[split] * math.prod(plan["shape"][1:]) for split, plan in self.plan["splits"].items())

    def _free(self) -> int:
        """Bytes free where the store is to lie."""
        return shutil.disk_usage(next(path for path in self.partial.absolute().parents if path.exists())).free

    def _planned(self) -> int:
        """Bytes of all images that are to be written."""
        return planned_bytes(self.plan)

    def _require_room(self) -> None:
        needed, free = self._planned() - self._written(), self._free()
        if needed > free:
            raise UserError(
                f"{printable(self.folder)} needs {in_bytes(needed)} of disk, but only {in_bytes(free)} are free there: "
                "free some, give --out on another disk, or a smaller --image-size."
            )

    def _save(self, source: Source | None = None) -> None:
        """Note how far the packing has come, and what the source has noted on the way."""
        self.notes = list(dict.fromkeys((*self.notes, *(source.notes if source else ()))))
        state = {"plan": self.plan, "chunks": self.chunks, "complete": self.complete, "notes": self.notes}
        new = self.partial / f"{self.progress}.new"
        with new.open("wb") as file:
            _write(file, json.dumps(state).encode())
        new.replace(self.partial / self.progress)

    def explained(self, error: OSError) -> UserError:
        """What an error on writing means for the user."""
        where = printable(self.folder)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"{where} cannot be written: {error.strerror}.")
        missing = max(self._planned() - self._written() - self._free(), 1)
        return UserError(
            f"the disk is full: {where} lacks {in_bytes(missing)} more. What is packed so far is kept in "
            f"{printable(self.partial)}: free some disk, and the same command goes on from there."
        )


def read_header(path: Path) -> Any:
    """A JSON file of a store. Raises `OSError` or one of `DAMAGE` where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(LARGEST_HEADER + 1)
    if len(content) > LARGEST_HEADER:
        raise ValueError(f"{path.name} has more than {LARGEST_HEADER:,} bytes")
    return json.loads(content)


def open_array(path: Path, mode: Literal["r", "c"]) -> np.memmap:
    """A memory-mapped array of a store. Raises `OSError` or one of `DAMAGE` where it is none.

    Stores are written in the first version of the format: later ones let a header be as long as it says, up to 4 GB.
    """
    with path.open("rb") as file:
        if file.read(8) != np.lib.format.magic(1, 0):
            raise ValueError(f"{path.name} is no array file of version 1.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a header as Python 2 wrote it
        return np.lib.format.open_memmap(path, mode=mode)


def state_of(found: dict[str, Any]) -> tuple[dict[str, list[dict[str, Any]]], list[str], list[str]]:
    """Chunks, complete splits and notes as they were saved. Raises one of `DAMAGE` where they have another form."""
    splits = set(found["plan"]["splits"])
    chunks = {split: [_checked(chunk) for chunk in each] for split, each in found["chunks"].items()}
    if set(chunks) != splits or not splits.issuperset(found["complete"]):
        raise ValueError("it names other splits")
    return chunks, [str(split) for split in found["complete"]], [str(note) for note in found["notes"]]


def _checked(chunk: dict[str, Any]) -> dict[str, Any]:
    """What `_record` made."""
    runs = [[int(label), int(count)] for label, count in chunk["runs"]]
    rows, stop = int(chunk["rows"]), int(chunk["stop"])
    if rows < 0 or stop < 0 or sum(count for _, count in runs) != rows:
        raise ValueError("a chunk that cannot be")
    return {
        "rows": rows, "sha256": str(chunk["sha256"]), "runs": runs, "stop": stop,
        "skipped": [str(each) for each in chunk["skipped"]],
    }  # fmt: skip


def planned_bytes(plan: dict[str, Any]) -> int:
    """Bytes of all images of a plan."""
    return sum(math.prod(split["shape"]) for split in plan["splits"].values())


def _write(file: BinaryIO, content: Any = b"") -> None:
    """Write bytes through to the disk."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _set_shape(file: BinaryIO, shape: list[int]) -> int:
    """Make `file` an array file of `shape`, its pixels as they are; where they start.

    The header of any number of images has one length. Images that are not yet written are holes, which take no disk.
    """
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    start = file.tell()
    file.truncate(start + math.prod(shape))
    return start


def _record(chunk: Chunk) -> dict[str, Any]:
    """What is kept of a chunk: its labels as (label, how many in a row)."""
    edges = [0, *(np.flatnonzero(np.diff(chunk.labels)) + 1).tolist(), len(chunk.labels)]
    runs = [[int(chunk.labels[first]), stop - first] for first, stop in pairwise(edges) if stop > first]
    sha256 = pixel_hash(chunk.images)
    return {
        "rows": len(chunk.images), "sha256": sha256, "runs": runs, "stop": chunk.stop, "skipped": list(chunk.skipped),
    }  # fmt: skip


def _labels(chunks: list[dict[str, Any]]) -> np.ndarray:
    """(N,) int64 of the chunks of a split."""
    runs = np.array([run for chunk in chunks for run in chunk["runs"]], np.int64).reshape(-1, 2)
    return np.repeat(runs[:, 0], runs[:, 1])
