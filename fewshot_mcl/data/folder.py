"""Folders of images: `{train,val,test}/CLASS/*`, class folders with lists beside them, or class folders alone.

Images are 84x84 RGB unless the options say otherwise. Class names are folder names, sorted; hidden files, files that
are no images by their suffix, and folders inside class folders are ignored. Opening looks at names only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fewshot_mcl.data.class_lists import Finder, read_lists, split_lists
from fewshot_mcl.data.images import decode_many, resize_rule
from fewshot_mcl.data.lazy import FileImages, decode_files, files_fingerprint
from fewshot_mcl.data.listing import (
    SPLIT_NAMES,
    Classes,
    NamedFiles,
    class_files,
    class_tree,
    scan,
    take_split,
    with_images,
)
from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.sources import SPLITS, ImageOptions, Source
from fewshot_mcl.data.store import CHUNK, Chunk, ImageStore
from fewshot_mcl.errors import UserError

IMAGE_SIZE, CHANNELS = 84, 3
SMALLEST_SPLIT = 2  # classes: an episode needs two


class FolderSource(Source):
    """Image files by split and class, of `image_size` pixels where the options name no size."""

    hint = "Put its classes into PATH/{split}/CLASS/, or list them in PATH/{split}.csv."
    image_size = IMAGE_SIZE

    def __init__(self, root: Path, kind: str, files: dict[str, Classes]) -> None:
        self.root, self.format = root, kind
        self.name = printable(root.resolve().name)
        self._files = files

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self._files)

    def files(self, split: str) -> Classes:
        """The image files of each class of a split."""
        self.require(split)
        return self._files[split]

    def class_names(self, split: str) -> tuple[str, ...]:
        return tuple(sorted(self.files(split)))

    def _listed(self, split: str) -> tuple[list[Path], np.ndarray]:
        """Every file of a split, sorted by class, and its label."""
        names, files = self.class_names(split), self.files(split)
        labels = np.repeat(np.arange(len(names)), [len(files[name]) for name in names])
        return [path for name in names for path in files[name]], labels

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        names, (paths, labels) = self.class_names(split), self._listed(split)
        size, channels = options.pixels(self.image_size, CHANNELS)
        rule = resize_rule(size, options.resize)
        if options.decode == "always":
            files, ids = FileImages(paths, size, channels, options.resize), self._ids(paths)
            key = files_fingerprint((names, channels, rule), labels, ids, paths)
            return ImageStore(
                files, labels, names, split=split, source=self.name, resize=rule, ids=ids, fingerprint=key
            )
        decoded = decode_many(paths, size, channels, options.resize, options.on_bad_image, options.memory_share)
        labels, ids = labels[decoded.kept], self._ids([paths[i] for i in decoded.kept])
        if decoded.bad:
            self.note(skipped_note(split, decoded.bad, len(paths)))
        require_images(split, names, labels)
        return ImageStore(decoded.images, labels, names, split=split, source=self.name, resize=rule, ids=ids)

    def _chunks(self, split: str, options: ImageOptions, start: int) -> Iterator[Chunk]:
        paths, labels = self._listed(split)
        size, channels = options.pixels(self.image_size, CHANNELS)
        while start < len(paths):
            pieces: list[np.ndarray] = []
            kept: list[int] = []
            skipped: list[str] = []
            while len(kept) < CHUNK and start < len(paths):  # files that are skipped make room for others
                piece = paths[start : start + CHUNK - len(kept)]
                images, bad = decode_files(piece, size, channels, options.resize)
                if bad and options.on_bad_image == "refuse":
                    advice = "Mend or remove them, or go on without them: --on-bad-image skip."
                    few = first_few(list(bad.values()))
                    raise UserError(f"{len(bad)} of {len(piece)} images cannot be used: {few}. {advice}")
                good = [i for i in range(len(piece)) if i not in bad]
                pieces.append(images[good])
                kept += [start + i for i in good]
                skipped += bad.values()
                start += len(piece)
            ids = self._ids([paths[i] for i in kept])
            yield Chunk(np.concatenate(pieces), labels[kept], ids, start, tuple(skipped))

    def _ids(self, paths: list[Path]) -> tuple[str, ...]:
        """Each path as seen from the root; each folder is looked at once, of which there are few."""
        folders = {folder: os.path.relpath(folder, self.root) for folder in {path.parent for path in paths}}
        folders = {folder: "" if name == "." else name for folder, name in folders.items()}
        return tuple(os.path.join(folders[path.parent], path.name) for path in paths)


def skipped_note(split: str, bad: Sequence[str], total: int) -> str:
    """The note on files of a split that are no usable images."""
    return f"{split}: {len(bad)} of {total} images skipped: {first_few(list(bad))}"


def require_images(split: str, names: Sequence[str], labels: np.ndarray) -> None:
    """Raise `UserError` where a class of a split has no image."""
    for empty in np.setdiff1d(np.arange(len(names)), labels):
        name = printable(names[empty])
        raise UserError(f"class '{name}' of {split} has no usable image: mend its images or remove the class.")


def find_folder(root: Path, split_seed: int, find: Finder | None = None) -> FolderSource:
    """The source that lies at `root`. What can be named one by one goes into its `problems`.

    Args:
        root: an existing folder.
        split_seed: splits the classes where neither folders nor lists do.
        find: how a file named in a list is found (default: as `NamedFiles` does).

    Raises:
        UserError: where nothing can be made of the folder.
    """
    folders = scan(root)[0]
    named = [name for name in folders if name in SPLIT_NAMES]
    # "train" among other folders may be a class of trains; one that holds folders is a split.
    if named and (len(named) == len(folders) or ("train" in named and scan(root / "train")[0])):
        source = _by_split(root, named)
    elif lists := split_lists(root):
        listed = read_lists(root, lists, find or NamedFiles(root))
        source = FolderSource(root, f"lists of {listed.kind} (SPLIT.csv)", listed.files)
        source.notes, source.problems = tuple(listed.notes), tuple(listed.problems)
    else:
        source = _by_seed(root, split_seed)
    source.problems += tuple(_empty_splits(source) + _shared_classes(source))
    return source


def by_class(root: Path, parts: dict[str, list[str]], classes: Classes) -> FolderSource:
    """Class folders at `root` whose classes go to the splits as `parts` says; those it does not name stay unused."""
    files = {split: {name: classes[name] for name in names if name in classes} for split, names in parts.items()}
    return FolderSource(root, "class folders (CLASS/image)", {split: part for split, part in files.items() if part})


def _by_split(root: Path, names: list[str]) -> FolderSource:
    folders: dict[str, Path] = {}
    for name in names:
        take_split(folders, root / name)
    found = {split: class_files(folder) for split, folder in folders.items()}
    files = {split: with_images(classes) for split, classes in found.items()}
    source = FolderSource(root, "split folders (SPLIT/CLASS/image)", files)
    for split, folder in folders.items():
        _note_empty(source, found[split], f"{folder.name}/")
    return source


def _by_seed(root: Path, seed: int) -> FolderSource:
    found = class_files(class_tree(root))
    classes = with_images(found)
    if not classes:
        raise UserError(_nothing_found(root))
    parts = split_classes(sorted(classes), seed)
    source = by_class(root, parts, classes)
    sizes = "/".join(str(len(names)) for names in parts.values())
    source.note(f"classes split {sizes} by seed {seed} (no split was given)")
    _note_empty(source, found, "")
    return source


def split_classes(names: list[str], seed: int) -> dict[str, list[str]]:
    """About 60/20/20 of the classes, at least two in each split, drawn by `seed`.

    The draw ranks classes by a hash of seed and name: the same on every machine, and a new class moves few others.

    Raises:
        UserError: where there are fewer than six.
    """
    if len(names) < 3 * SMALLEST_SPLIT:
        raise UserError(
            f"{len(names)} class folders ({_names(names)}) are too few for train, val and test splits of two or more "
            "classes each: add classes, or put them into train/, val/ and test/ yourself."
        )
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).digest())
    held_out = max(SMALLEST_SPLIT, round(len(names) / 5))
    train = len(names) - 2 * held_out
    return {
        "train": sorted(ranked[:train]),
        "val": sorted(ranked[train : train + held_out]),
        "test": sorted(ranked[train + held_out :]),
    }


def _nothing_found(root: Path) -> str:
    where, (folders, images) = printable(root), scan(root)
    if images:
        return f"{where} holds images but no class folders: sort them into {where}/CLASS/, one folder for each class."
    for name in folders:
        if any(class_files(root / name).values()):
            return f"{where} has no class folders with images, but {where}/{printable(name)} has: give that path."
    return (
        f"{where} holds no images: expected CLASS/ folders with image files, or train/CLASS/, val/CLASS/, test/CLASS/."
    )


def _note_empty(source: Source, found: Classes, prefix: str) -> None:
    empty = [prefix + name for name, files in found.items() if not files]
    if empty:
        source.note(f"folders without images stay unused: {_names(empty)}")


def _empty_splits(source: FolderSource) -> list[str]:
    where = printable(source.root)
    return [
        f"the {split} split has no class folder with images: give it CLASS/image files, or remove it from {where}"
        for split in source.splits
        if not source.files(split)
    ]


def _shared_classes(source: FolderSource) -> list[str]:
    """Few-shot splits share no class."""
    home: dict[str, str] = {}
    problems = []
    for split in source.splits:
        for name in source.class_names(split):
            if name in home:
                problems.append(f"class '{printable(name)}' is in both {home[name]} and {split}: splits share no class")
            home.setdefault(name, split)
    return problems


def _names(names: list[str]) -> str:
    return first_few([printable(name) for name in sorted(names)])
