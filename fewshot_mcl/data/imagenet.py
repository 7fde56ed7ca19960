"""ImageNet (ILSVRC 2012) as class folders: `train/CLASS/*` and `val/CLASS/*`, 256x256 RGB unless the options say otherwise.

The labels of its real test set were never published: the field calls the 50,000 images of val/ its test set, and so
does this source. Its splits share their classes, as those of a classification task do.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from fewshot_mcl.data.folder import FolderSource
from fewshot_mcl.data.listing import Classes, class_files, scan
from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.data.store import ImageStore, in_bytes, memory_bytes
from fewshot_mcl.errors import UserError
from fewshot_mcl.resources import program

CLASSES = 1000
FOLDERS = {"train": "train", "test": "val"}  # where each split lies


class ImageNet(FolderSource):
    """Image files by class; decoded into memory only where they fit."""

    hint = "ImageNet is read as train/ and, as the test split, val/."
    image_size = 256

    def __init__(self, root: Path, files: dict[str, Classes]) -> None:
        super().__init__(root, "ImageNet (train/CLASS/image, val/CLASS/image)", files)
        self.name = "imagenet"

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        if options.decode == "once":
            self._require_memory(split, options)
        return super()._load(split, options)

    def _require_memory(self, split: str, options: ImageOptions) -> None:
        """Refuse what would be decoded into a temporary file, and again for every run."""
        images, (size, channels) = sum(map(len, self.files(split).values())), options.pixels(self.image_size, 3)
        needed = math.prod((images, channels, size, size))
        if needed > options.memory_share * memory_bytes():
            root = shlex.quote(printable(self.root))
            raise UserError(
                f"{images:,} images at {size}x{size} need {in_bytes(needed)} of memory: pack them once, `{program()} data "
                f"convert imagenet --root {root} --out PACKED`, and use --data PACKED; or read the folder directly, "
                "--set decode=always; or give a smaller --image-size."
            )


def find_imagenet(root: Path, options: ImageOptions) -> ImageNet:
    """The ImageNet at `root`, an existing folder. What can be named one by one goes into its `problems`.

    Raises:
        UserError: where train/ or val/ is missing.
    """
    lacking = [f"{folder}/" for folder in FOLDERS.values() if not (root / folder).is_dir()]
    if lacking:
        raise UserError(
            f"{printable(root)} has no {' and no '.join(lacking)}: give the folder that holds train/CLASS/ and val/CLASS/."
        )
    found = {split: class_files(root / folder) for split, folder in FOLDERS.items()}
    source = ImageNet(root, {split: {name: each for name, each in found[split].items() if each} for split in FOLDERS})
    source.problems = tuple(_folder_problems(root, found)) or tuple(_class_problems(found))
    classes, images = len(found["train"]), sum(map(len, found["test"].values()))
    source.note(f"test: the {images:,} images of val/, which the field calls ImageNet's test set")
    if classes != CLASSES:
        source.note(f"{classes} classes, not the {CLASSES} of ImageNet")
    if options.decode == "always":
        source.note(
            "images are decoded whenever they are used (decode = always): a packed store is faster to train from"
        )
    return source


def _folder_problems(root: Path, found: dict[str, Classes]) -> list[str]:
    """Folders that hold no classes, or classes that hold no images."""
    problems = []
    for split, folder in FOLDERS.items():
        empty = [f"{folder}/{name}" for name, files in found[split].items() if not files]
        if empty:
            problems.append(f"class folders without images: {_names(empty)}; fill or remove them")
        if not found[split]:
            images = len(scan(root / folder)[1])
            what = f"{images:,} images but no class folders: sort them into" if images else "no class folders: it takes"
            source = ", by the classes in LOC_val_solution.csv or the development kit" if folder == "val" else ""
            problems.append(f"{folder}/ holds {what} {folder}/CLASS/, such as {folder}/n01440764/{source}")
    return problems


def _class_problems(found: dict[str, Classes]) -> list[str]:
    """Classes that only one of the splits has."""
    return [
        f"{len(alone)} class(es) of {FOLDERS[here]}/ are not in {FOLDERS[there]}/: {_names(alone)}"
        for here, there in (("train", "test"), ("test", "train"))
        if (alone := sorted(set(found[here]) - set(found[there])))
    ]


def _names(names: list[str]) -> str:
    return first_few([printable(name) for name in names])
