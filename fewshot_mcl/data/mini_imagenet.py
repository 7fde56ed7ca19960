"""miniImageNet (Ravi and Larochelle: 64/16/20 classes of 600 images) in whatever form it lies at a root.

Found by looking: the two kinds of pickles (`mini_pickles`); torchmeta's HDF5 (`mini_hdf5`); lists `filename,label` over
images/ or over an ILSVRC tree; lists `class_name,image_name` over a class tree; class folders by split, or flat, to be
split by the published list.
A split whose classes are not the published ones is refused; a class of other than 600 images is noted.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fewshot_mcl.data.class_lists import split_lists
from fewshot_mcl.data.folder import by_class, find_folder
from fewshot_mcl.data.listing import SPLIT_NAMES, NamedFiles, class_files, class_tree, image_files, scan
from fewshot_mcl.data.mini_hdf5 import find_hdf5
from fewshot_mcl.data.mini_pickles import find_pickles
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import SPLITS, ImageOptions, Source
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.data.verified import VerifiedSource, published_lists
from fewshot_mcl.errors import UserError

IMAGES_PER_CLASS = 600


def find_mini_imagenet(root: Path, options: ImageOptions) -> VerifiedSource:
    """The miniImageNet at `root`, an existing folder.

    Raises:
        UserError: where none of the known forms is there.
    """
    ranked = RankedFiles(root)
    found = find_pickles(root) or find_hdf5(root) or _flat(root) or find_folder(root, options.split_seed, ranked)
    source = VerifiedSource(found, "mini-imagenet", "miniImageNet", published_lists("mini_imagenet"), IMAGES_PER_CLASS)
    source.notes += ranked.notes()
    return source


def _flat(root: Path) -> Source | None:
    """Flat class folders, split by the published lists; None where the folder says itself how it is split."""
    if split_lists(root) or set(SPLIT_NAMES) & set(scan(root)[0]):
        return None
    classes = {name: files for name, files in class_files(class_tree(root)).items() if files}
    source = by_class(root, {split: list(split_list("mini_imagenet", split)) for split in SPLITS}, classes)
    if not source.splits:
        raise UserError(
            f"{printable(root)} holds no miniImageNet: expected mini-imagenet-cache-SPLIT.pkl, "
            "miniImageNet_category_split_*.pickle, SPLIT_data.hdf5, SPLIT.csv with images/, or class folders such as n01532829."
        )
    source.note("classes split by the published lists")
    return source


class RankedFiles:
    """Finds files by name or, where a tree of ILSVRC files keeps their own names, by rank.

    `n0153282900000005.jpg` is then the fifth of `n01532829/n01532829_*.JPEG`, in the order of the number in the name.
    """

    def __init__(self, root: Path) -> None:
        self.tree, self.named = class_tree(root), NamedFiles(root)
        self._ranked: dict[str, list[Path]] = {}  # by class

    def __call__(self, label: str, file: str) -> Path | None:
        path = self.named(label, file)
        parts = re.fullmatch(r"(n\d{8})(\d{8})\.\w+", file)
        if path is not None or parts is None or parts[1] != label:
            return path
        if label not in self._ranked:
            files = image_files(self.tree / label) if os.path.isdir(self.tree / label) else []
            self._ranked[label] = sorted(files, key=_number)
        rank, ranked = int(parts[2]), self._ranked[label]
        return ranked[rank - 1] if 1 <= rank <= len(ranked) else None

    def notes(self) -> tuple[str, ...]:
        """What to know about the files that were found by rank, if any were."""
        if not any(self._ranked.values()):
            return ()
        sizes = sorted(len(files) for files in self._ranked.values())
        return (
            f"images found by rank among the {sizes[0]} to {sizes[-1]} files of a class folder: "
            "they are the listed ones only where no file is missing from it",
        )


def _number(path: Path) -> int:
    """The last number in a file's name."""
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0
