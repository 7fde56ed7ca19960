"""A store that is packed in parts, by several jobs or machines at once. The one that finds all parts done gives it its name.

All write into one file of images for each split, each where its own chunks belong. That is known before any of them is decoded,
because no image may be skipped. How far a part is stands in a file of its own, and nothing of a part is touched by another.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from fewshot_mcl.data.names import printable
from fewshot_mcl.data.packing import DAMAGE, PARTS, PROGRESS, Packing, read_header, state_of
from fewshot_mcl.data.sources import ImageOptions, Source
from fewshot_mcl.data.store import CHUNK
from fewshot_mcl.errors import UserError


class Part(Packing):
    """Part `number` (from 1) of `of`: as many chunks of every split as the others have."""

    def __init__(self, folder: Path, plan: dict[str, Any], number: int, of: int) -> None:
        super().__init__(folder, plan)
        self.number, self.of, self.progress = number, of, _name(number, of)

    def _span(self, split: str) -> tuple[int, int]:
        rows = self.plan["splits"][split]["shape"][0]
        chunks = math.ceil(rows / CHUNK)
        first, stop = (min(rows, chunks * (self.number - 1 + i) // self.of * CHUNK) for i in (0, 1))
        return first, stop

    def _planned(self) -> int:
        spans = {split: self._span(split) for split in self.plan["splits"]}
        return sum(
            (stop - first) * math.prod(self.plan["splits"][s]["shape"][1:]) for s, (first, stop) in spans.items()
        )

    @contextlib.contextmanager
    def begun(self, options: ImageOptions) -> Iterator[None]:
        """Go on behind an earlier attempt at this part, or begin it; nobody else can while this is entered."""
        lock = filelock.FileLock(self.partial / f"{Path(self.progress).stem}.lock")
        try:
            with self.alone():
                self._require_parts(options)
                self.partial.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
                self.resume(options)
            yield
        except filelock.Timeout as error:
            part = f"part {self.number}/{self.of} of {printable(self.folder)}"
            raise UserError(f"{part} is being packed by another process: wait for it, or take another part.") from error
        finally:
            lock.release()

    def alone(self) -> filelock.BaseFileLock:
        """Entered, no other part begins or ends."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.folder.with_name(f".{self.folder.name}.lock"))

    def resume(self, options: ImageOptions) -> None:
        if (self.partial / self.progress).exists():
            self._go_on(options)
        self._require_room()
        self._save()

    def _require_parts(self, options: ImageOptions) -> None:
        """Refuse what lies there and is not the packing of the same in as many parts."""
        where = printable(self.partial)
        if options.on_bad_image == "skip":
            raise UserError(
                "--part and --on-bad-image skip do not go together: where the images of a part belong is known only if all are "
                "usable. `data check` names those that are not: mend or remove them."
            )
        if not self.partial.exists():
            return
        found = sorted(path.name for path in self.partial.glob(f"{PARTS}.json"))
        if not found and (others := set(self.partial.iterdir()) - set(self.partial.glob(PARTS))):
            whole = self.partial / PROGRESS in others
            what = "a packing that was begun without --part: finish it so, or" if whole else "no packing:"
            raise UserError(f"{where} holds {what} remove that folder.")
        of = {name.removesuffix(".json").split("-")[-1] for name in found} - {str(self.of)}
        if of:
            raise UserError(f"{where} is being packed in {of.pop()} parts, not {self.of}: name one of them.")
        states = [self._read(name) for name in {*found[:1], *({self.progress} & set(found))}]
        if any(each["plan"] != self.plan for each in states):
            raise UserError(
                f"{where} holds parts of something else (of other images, or with other options): finish those, remove that "
                "folder, or give another --out."
            )

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = read_header(self.partial / name)
            state_of(found)
        except (OSError, *DAMAGE) as error:
            raise UserError(
                f"{printable(self.partial / name)} is damaged: remove it, and pack that part again."
            ) from error
        return found

    def _close(self, split: str) -> None:
        """Nothing, before all parts are done."""

    def _kept(self) -> str:
        return f" What is packed of part {self.number}/{self.of} is kept: the same command goes on from there."

    def _finish(self, source: Source) -> None:
        """Nothing, before all parts are done."""

    def finish(self, source: Source) -> list[int]:
        """Make the store of all parts; where some are not done, their numbers instead."""
        with self.alone() as lock:
            if self.folder.exists():  # by another job that had waited for this one
                return []
            names = [_name(number, self.of) for number in range(1, self.of + 1)]
            states = [self._read(name) if (self.partial / name).exists() else None for name in names]
            splits = set(self.plan["splits"])
            left = [i for i, each in enumerate(states, 1) if each is None or set(each["complete"]) != splits]
            if left:
                return left
            parts = [state_of(each) for each in states if each is not None]
            self.chunks = {split: [chunk for chunks, _, _ in parts for chunk in chunks[split]] for split in splits}
            self.notes = list(dict.fromkeys(note for _, _, notes in parts for note in notes))
            for split in self.plan["splits"]:
                super()._close(split)
            super()._finish(source)
            Path(lock.lock_file).unlink(missing_ok=True)
        return []


def _name(number: int, of: int) -> str:
    return f"part-{number}-of-{of}.json"


def parse(text: str) -> tuple[int, int]:
    """ "2/8" as (2, 8).

    Raises:
        UserError: where it is not one of so many parts.
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UserError(f"--part {text}: write which of how many, from 1, for example --part 2/8.")
    return int(number), int(of)


Progress = Callable[[int, int], None]


def write_part(
    source: Source, options: ImageOptions, folder: Path, plan: dict[str, Any], part: tuple[int, int], progress: Progress
) -> list[int]:
    """Write one part of a store, and the store itself where it was the last one; the numbers of the parts that are left.

    Raises:
        UserError, Interrupted: as `packed.write_packed`; further where the part is just being packed.
    """
    packing = Part(folder, plan, *part)
    try:
        with packing.begun(options):
            packing.run(source, options, progress)
        return packing.finish(source)
    except OSError as error:
        raise packing.explained(error) from error
