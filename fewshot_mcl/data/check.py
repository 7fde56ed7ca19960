"""What lies behind `data check` and `data convert`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fewshot_mcl.data.folder import FolderSource
from fewshot_mcl.data.images import BadImage, in_threads, read_image
from fewshot_mcl.data.labelled import class_problems, find_labelled, open_labelled
from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.packed import PackedSource, Written, packed_bytes, write_packed
from fewshot_mcl.data.sources import ImageOptions, Source, find_source, open_source
from fewshot_mcl.data.store import in_bytes
from fewshot_mcl.data.verified import VerifiedSource
from fewshot_mcl.errors import UserError

LISTED = 20  # lines of each kind of problem that are shown
FEW = 20  # images of a class: what an episode of 5 shots and 15 queries takes


@dataclass(frozen=True)
class SplitReport:
    """One split in numbers: usable images, and how many the smallest and the largest class have."""

    split: str
    classes: int
    images: int
    smallest: int
    largest: int
    sizes: str


@dataclass
class Report:
    """What `check` found. `problems` holds every one, by kind."""

    name: str
    format: str
    notes: tuple[str, ...] = ()
    splits: list[SplitReport] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, kind: str, problem: str) -> None:
        self.problems.setdefault(kind, []).append(problem)

    def lines(self) -> list[str]:
        """The report as text, at most 20 lines for each kind of problem."""
        lines = [f"{self.name}: {self.format}"]
        for each in self.splits:
            a_class = f"{each.smallest}" if each.smallest == each.largest else f"{each.smallest} to {each.largest}"
            counts = f"{each.classes} classes, {each.images} images ({a_class} a class)"
            lines.append(f"  {each.split}: {counts}, {each.sizes}")
        lines += [f"  note: {note}" for note in self.notes]
        for kind, problems in self.problems.items():
            lines.append(f"  {kind}: {len(problems)}")
            lines += [f"    {problem}" for problem in problems[:LISTED]]
            if len(problems) > LISTED:
                lines.append(f"    ... and {len(problems) - LISTED} more")
        lines.append("  no problem found" if self.ok else "  not ready to use: see the problems above")
        return [printable(line) for line in lines]


@dataclass(frozen=True)
class _Image:
    """A usable image: where it comes from, its class, (width, height), and a hash of its content."""

    name: str
    label: str
    size: tuple[int, int]
    digest: bytes


def check(data: str, root: Path | None, options: ImageOptions, task: str = "few-shot") -> Report:
    """Look at every image of every split of `data` (as its task opens it), and report all that is wrong.

    Images are counted and measured as they are: size, colour and bad-image options play no part.
    """
    labelled = is_labelled(data, task)
    try:
        source = (find_labelled if labelled else find_source)(data, root, options)
        problems = [*source.problems, *(class_problems(source) if labelled else [])]
    except UserError as error:
        return Report(printable(data), "not recognised", problems={"cannot be opened": [str(error)]})
    report = Report(source.name, source.format)
    for problem in problems:
        report.add("files and classes", problem)
    for problem in source.verify() if isinstance(source, PackedSource) else []:
        report.add("damaged", problem)
    found = {split: _look(source, split, options, report) for split in source.splits}
    _find_duplicates(found, report)
    report.notes = tuple(dict.fromkeys((*source.notes, *_inner(source).notes, *report.notes)))
    return report


def convert(
    data: str,
    root: Path | None,
    out: Path,
    options: ImageOptions,
    progress: Callable[[int, int], None] | None = None,
    task: str = "few-shot",
    say: Callable[[str], None] = lambda text: None,
    part: tuple[int, int] | None = None,
) -> Written:
    """Decode every split of `data`, as its task opens it, and write it packed to `out`, or one part of it (`write_packed`).

    `say` is told beforehand what disk it takes, and `progress` (images done, images in all) as the work goes on.

    Raises:
        UserError: where the data cannot be used, or `out` exists or cannot be written.
    """
    source = (open_labelled if is_labelled(data, task) else open_source)(data, root, options)
    say(f"{source.name}: the packed store takes {in_bytes(packed_bytes(source, options))} of disk")
    return write_packed(source, options, out, progress, part)


def is_labelled(data: str, task: str) -> bool:
    """Whether `data` is opened with splits of the same classes: for classification, or because there are no others."""
    return task == "classify" or data in ("cifar100", "fashion-mnist", "imagenet")


def _inner(source: Source) -> Source:
    return source.inner if isinstance(source, VerifiedSource) else source


def _look(source: Source, split: str, options: ImageOptions, report: Report) -> list[_Image]:
    """The usable images of a split; what is wrong with it goes into the report."""
    inner = _inner(source)
    try:
        names = source.class_names(split)
        if isinstance(source, VerifiedSource):
            for problem in source.class_problems(split):
                report.add("classes", problem)
        images = _files(inner, split, report) if isinstance(inner, FolderSource) else _arrays(inner, split, options)
    except UserError as error:
        report.add("files and classes", str(error))
        return []
    counts = Counter(image.label for image in images)
    _judge_counts(source, split, {name: counts[name] for name in names}, report)
    sizes = sorted({image.size for image in images}, key=lambda size: (size[0] * size[1], size))
    words = [f"{width}x{height}" for width, height in sizes[:1] + sizes[1:][-1:]]
    each = [counts[name] for name in names] or [0]
    report.splits.append(SplitReport(split, len(names), len(images), min(each), max(each), " to ".join(words)))
    return images


def _files(source: FolderSource, split: str, report: Report) -> list[_Image]:
    files = [(name, path) for name, paths in source.files(split).items() for path in paths]

    def look(i: int) -> _Image | str:
        label, path = files[i]
        name = printable(path.relative_to(source.root))
        try:
            size = read_image(path).size
            with path.open("rb") as file:
                return _Image(name, label, size, hashlib.file_digest(file, "sha256").digest())
        except BadImage as error:
            return f"{name} ({error})"

    images = in_threads(look, len(files))
    for image in images:
        if isinstance(image, str):
            report.add("bad images", image)
    return [image for image in images if isinstance(image, _Image)]


def _arrays(source: Source, split: str, options: ImageOptions) -> list[_Image]:
    store = source.load(split, ImageOptions(memory_share=options.memory_share))
    _, height, width = store.shape
    names = store.ids or [f"{split} image {i}" for i in range(len(store))]
    digests = in_threads(lambda i: hashlib.sha256(store.images[i : i + 1].numpy().tobytes()).digest(), len(store))
    labels = [store.class_names[label] for label in store.labels.tolist()]
    return [_Image(name, label, (width, height), digest) for name, label, digest in zip(names, labels, digests)]


def _judge_counts(source: Source, split: str, counts: dict[str, int], report: Report) -> None:
    for name, count in counts.items():
        words = f"{split}: class '{printable(name)}' has {count} usable image{'' if count == 1 else 's'}"
        if count < 2:
            report.add("tiny classes", f"{words}; an episode takes two or more")
        elif isinstance(source, VerifiedSource) and source.images_per_class not in (None, count):
            report.add("image counts", f"{words}, not {source.images_per_class}")
    if isinstance(source, VerifiedSource) and (problem := source.total_problem(split, sum(counts.values()))):
        report.add("image counts", problem)
    few = sum(2 <= count < FEW for count in counts.values())
    if few:
        report.notes += (f"{split}: {few} classes have fewer than {FEW} images, as 5 shots and 15 queries take",)


def _find_duplicates(found: dict[str, list[_Image]], report: Report) -> None:
    """Images of equal content. Across splits they give the answer away; within one they only weigh double."""
    twins: dict[str, list[str]] = {}
    first: dict[bytes, tuple[str, _Image]] = {}
    for split, images in found.items():
        for image in images:
            home, twin = first.setdefault(image.digest, (split, image))
            if home != split:
                report.add("same image in two splits", f"{home} {twin.name} = {split} {image.name}")
            elif twin is not image:
                twins.setdefault(split, []).append(f"{twin.name} = {image.name}")
    for split, pairs in twins.items():
        report.notes += (f"{split}: {len(pairs)} image(s) occur twice: {first_few(pairs)}",)
