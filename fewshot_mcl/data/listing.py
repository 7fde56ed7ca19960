"""Looking at folders of images by name, without opening a file."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from fewshot_mcl.data.images import SUFFIXES
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError

Classes = dict[str, list[Path]]  # class name -> its image files

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def scan(folder: Path) -> tuple[list[str], list[str]]:
    """(folders, image files) in a folder by name, sorted, without the hidden ones.

    A link counts as what it leads to; one that leads nowhere counts as an image, so that decoding reports it.

    Raises:
        UserError: where the folder cannot be read.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES) and _is_file(entry):
                    images.append(entry.name)
    except OSError as error:
        raise UserError(f"{printable(folder)} cannot be read: {error.strerror}.") from error
    return sorted(folders), sorted(images)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # a link to itself makes is_dir raise


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether to open it as an image: pipes and devices would never end."""
    if entry.is_symlink():
        return os.path.isfile(entry) or not os.path.exists(entry)
    return entry.is_file()


def class_files(folder: Path) -> Classes:
    """The class folders in `folder` with their image files, which may be none. One level: a loop of links ends here."""
    return {name: image_files(folder / name) for name in scan(folder)[0]}


def with_images(classes: Classes) -> Classes:
    """Those of the classes that have image files."""
    return {name: files for name, files in classes.items() if files}


def image_files(folder: Path) -> list[Path]:
    """The image files in `folder`, sorted by name."""
    return [folder / name for name in scan(folder)[1]]


def class_tree(root: Path) -> Path:
    """Where the class folders of `root` lie: in images/, where that holds folders, or at the root itself."""
    images = root / "images"
    return images if images.is_dir() and scan(images)[0] else root


def take_split(found: dict[str, Path], path: Path) -> None:
    """Note `path`, a folder or list named after a split, under that split; two for one split are a `UserError`."""
    split = SPLIT_NAMES[path.stem]
    if split in found:
        raise UserError(f"{printable(path.parent)} holds both {found[split].name} and {path.name}: keep one of them.")
    found[split] = path


class NamedFiles:
    """Finds the files that a list names, under `root`: in images/, images/LABEL/, LABEL/ or beside the list."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, set[str]] = {}  # one look into each folder, not one for each of many thousand files

    def __call__(self, label: str, file: str) -> Path | None:
        name = PurePosixPath(file)
        if name.is_absolute() or ".." in name.parts or "/" in label or label == "..":
            return None  # a list names files of its own folder only
        for base in ("images", f"images/{label}", label, "."):
            path = self.root / base / name
            if path.name in self._names(path.parent):
                return path
        return None

    def _names(self, folder: Path) -> set[str]:
        if folder not in self._listed:
            self._listed[folder] = set(scan(folder)[1]) if os.path.isdir(folder) else set()
        return self._listed[folder]
