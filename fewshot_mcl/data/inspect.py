"""What lies behind `data inspect`: a closer look at image data than `check` takes, before anything is trained on them.

Names and headers first; every image is decoded once, JPEGs at a fraction of their size.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewshot_mcl.data.check import FEW, Report, is_labelled
from fewshot_mcl.data.folder import FolderSource
from fewshot_mcl.data.images import FORMATS, BadImage, Result, in_threads, read_image, to_array
from fewshot_mcl.data.labelled import class_problems, find_labelled
from fewshot_mcl.data.likeness import Look, alike, look
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import ImageOptions, Source, find_source
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.data.verified import VerifiedSource

SHOTS = (1, 5, 10)  # for which the largest query is told
DECODED = 64  # pixels of the shorter side, where the decoder can give less than all
BLOCK = 256  # images between two words of progress
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Picture:
    """A usable image.

    Attributes:
        home: its file, or the store that holds it.
        row: in that store.
        kind: of file and pixels, such as "PNG RGB".
        digest: SHA-256 of the file, or of the pixels.
    """

    split: str
    label: str
    name: str
    home: Path | ImageStore
    row: int
    size: tuple[int, int]
    kind: str
    digest: bytes
    look: Look

    def pixels(self, side: int) -> Tensor:
        """(C, H, W) uint8, as a whole, neither side longer than `side`."""
        if isinstance(self.home, ImageStore):
            return self.home.images[self.row : self.row + 1][0]
        image = read_image(self.home, at_least=side)
        image.thumbnail((side, side))
        return torch.from_numpy(np.array(to_array(image, 1 if image.mode == "L" else 3)))


@dataclass(frozen=True)
class Twins:
    """Images that are the same, or look alike."""

    exact: bool
    pictures: tuple[Picture, ...]

    @property
    def leak(self) -> bool:
        """Whether they lie in more than one split."""
        return len({picture.split for picture in self.pictures}) > 1

    @property
    def contradiction(self) -> bool:
        """Whether they are said to be of more than one class."""
        return len({picture.label for picture in self.pictures}) > 1

    def __str__(self) -> str:
        return " = ".join(f"{each.split} {each.name}" for each in self.pictures)


@dataclass(frozen=True)
class Counts:
    """Usable images by class of one split."""

    split: str
    by_class: dict[str, int]

    @property
    def sizes(self) -> list[int]:
        return list(self.by_class.values()) or [0]

    @property
    def smallest(self) -> int:
        return min(self.sizes)

    @property
    def median(self) -> float:
        return statistics.median(self.sizes)

    @property
    def few(self) -> dict[str, int]:
        """The classes with fewer images than 5 shots and 15 queries take, the smallest first."""
        return dict(sorted(((n, c) for n, c in self.by_class.items() if c < FEW), key=lambda item: item[1]))

    def largest_query(self, shot: int) -> int | None:
        """Of episodes with any class of the split; None where the smallest class has no image left for a query."""
        return self.smallest - shot if self.smallest > shot else None


@dataclass
class Inspection:
    """What was found. `problems` is by kind, as of `check`.

    Attributes:
        task: "few-shot" or "classify", by which the splits are taken.
        files: whether images are files, which are resized when they are loaded.
    """

    name: str
    format: str
    task: str
    files: bool
    notes: tuple[str, ...] = ()
    problems: dict[str, list[str]] = field(default_factory=dict)
    counts: list[Counts] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    twins: list[Twins] = field(default_factory=list)

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """Images by (width, height)."""
        return Counter(picture.size for picture in self.pictures)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(picture.kind for picture in self.pictures)

    @property
    def sides(self) -> list[int]:
        """Shorter sides, sorted."""
        return sorted(min(picture.size) for picture in self.pictures)

    @property
    def bad(self) -> list[str]:
        return self.problems.get("bad images", [])

    def of(self, split: str) -> Counts | None:
        """The counts of a split."""
        return next((each for each in self.counts if each.split == split), None)

    def leaks(self, exact: bool) -> list[Twins]:
        """Images in more than one split."""
        return [each for each in self.twins if each.leak and each.exact == exact]


def inspect(
    data: str,
    root: Path | None,
    options: ImageOptions,
    task: str = "few-shot",
    progress: Progress = lambda done, total: None,
) -> Inspection:
    """Look closely at all images of `data`, as its task opens it.

    Raises:
        UserError: where no data is recognised.
    """
    labelled = is_labelled(data, task)
    source = (find_labelled if labelled else find_source)(data, root, options)
    inner = source.inner if isinstance(source, VerifiedSource) else source
    found = Inspection(source.name, source.format, "classify" if labelled else task, isinstance(inner, FolderSource))
    report = Report(source.name, source.format)
    for problem in [*source.problems, *(class_problems(source) if labelled else [])]:
        report.add("files and classes", problem)
    if isinstance(inner, FolderSource):
        found.pictures = _files(inner, source.splits, report, progress)
    else:
        found.pictures = _arrays(inner, source.splits, options, progress)
    for split in source.splits:
        counted = Counter(picture.label for picture in found.pictures if picture.split == split)
        found.counts.append(Counts(split, {name: counted[name] for name in source.class_names(split)}))
    found.problems = report.problems
    found.twins = _twins(found.pictures)
    found.notes = tuple(dict.fromkeys((*source.notes, *inner.notes)))
    return found


def _files(source: FolderSource, splits: tuple[str, ...], report: Report, progress: Progress) -> list[Picture]:
    files = [(split, label, path) for split in splits for label, own in source.files(split).items() for path in own]

    def see(i: int) -> Picture | str:
        split, label, path = files[i]
        name = printable(path.relative_to(source.root))
        try:
            seen = look(read_image(path, at_least=DECODED))
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            with Image.open(path, formats=FORMATS) as image:  # the header alone
                return Picture(split, label, name, path, 0, image.size, f"{image.format} {image.mode}", digest, seen)
        except BadImage as error:
            return f"{name} ({error})"

    seen = _in_blocks(see, len(files), progress)
    for each in seen:
        if isinstance(each, str):
            report.add("bad images", each)
    return [each for each in seen if isinstance(each, Picture)]


def _arrays(source: Source, splits: tuple[str, ...], options: ImageOptions, progress: Progress) -> list[Picture]:
    stores = [source.load(split, ImageOptions(memory_share=options.memory_share)) for split in splits]
    places = [(store, row) for store in stores for row in range(len(store))]

    def see(i: int) -> Picture:
        store, row = places[i]
        pixels = store.images[row : row + 1][0].contiguous().numpy()
        channels, height, width = pixels.shape
        image = Image.fromarray(pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        name = printable(store.ids[row]) if store.ids else f"image {row}"
        label, digest = store.class_names[int(store.labels[row])], hashlib.sha256(pixels.tobytes()).digest()
        kind = f"array {image.mode}"
        return Picture(store.split, label, name, store, row, (width, height), kind, digest, look(image))

    return _in_blocks(see, len(places), progress)


def _in_blocks(function: Callable[[int], Result], count: int, progress: Progress) -> list[Result]:
    found: list[Result] = []
    for start in range(0, count, BLOCK):
        progress(start, count)
        found += in_threads(partial(_shifted, function, start), min(BLOCK, count - start), 16)
    progress(count, count)
    return found


def _shifted(function: Callable[[int], Result], start: int, i: int) -> Result:
    return function(start + i)


def _twins(pictures: list[Picture]) -> list[Twins]:
    """Images of equal content, then those that look alike; what matters most first."""
    by_digest: dict[bytes, list[Picture]] = {}
    for picture in pictures:
        by_digest.setdefault(picture.digest, []).append(picture)
    first = [same[0] for same in by_digest.values()]  # of what is the same, one is enough to look like others
    found = [Twins(True, tuple(same)) for same in by_digest.values() if len(same) > 1]
    for group in alike([picture.look for picture in first]):
        members = [picture for i in group for picture in by_digest[first[i].digest]]
        found.append(Twins(False, tuple(members)))
    return sorted(found, key=lambda each: (not each.leak, not each.contradiction, not each.exact))
