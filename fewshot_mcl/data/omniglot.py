"""Omniglot (Lake et al.): 1,623 characters of 50 alphabets, 20 drawings each, as published or as torchvision leaves it.

`images_background` and `images_evaluation`, as folders or as the zips they come in, hold ALPHABET/characterNN/*.png of
105x105, black on white; both in one folder (`data/`, as prototypical-networks has them) are read as well. Drawings are
brought to 28x28 grey. Every character stands for four classes: it is turned by 0, 90, 180 and 270 degrees against the
clock, in training, validation and test alike, as Vinyals et al., Snell et al. and others do.

Splits by name: "vinyals" (1028/172/423 characters), and "background": 25 and 5 alphabets of the background set, and the
whole evaluation set as test.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from fewshot_mcl.data.images import Resize, file_content, resize_rule
from fewshot_mcl.data.listing import class_files, scan
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.rows import Rows, RowsSource, encoded_reader
from fewshot_mcl.data.sources import SPLITS
from fewshot_mcl.data.verified import VerifiedSource, published_lists
from fewshot_mcl.data.zips import Member, zip_folders
from fewshot_mcl.errors import UserError

SIDE, DRAWINGS = 28, 20
TURNS = ("rot000", "rot090", "rot180", "rot270")
PARTS = ("images_background", "images_evaluation")
FOLDERS = ("", "omniglot-py", "omniglot", "omniglot/python", "python")
TREES = ("data", "")  # of all alphabets
SPLIT_OF = {"omniglot": "vinyals", "omniglot-vinyals": "vinyals", "omniglot-background": "background"}

Characters = dict[str, list[Path | Member]]  # ALPHABET/characterNN -> its drawings


class Drawings(RowsSource):
    """Characters of every alphabet, each in four turns."""

    hint = "Omniglot is two parts, images_background and images_evaluation: put both there."

    def __init__(self, root: Path, kind: str, found: Characters, lists: dict[str, tuple[str, ...]]) -> None:
        self.name, self.format = printable(root.resolve().name), kind
        self.characters = {split: {name: found[name] for name in lists[split] if name in found} for split in SPLITS}
        self.note("each character is four classes, turned by 0, 90, 180 and 270 degrees")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if self.characters[split])

    def class_names(self, split: str) -> tuple[str, ...]:
        self.require(split)
        return turned(tuple(self.characters[split]))

    def rows(self, split: str) -> Rows:
        """Row 4 d + t is drawing d of the split in turn t."""
        characters = self.characters[split]
        drawings = [drawing for name in sorted(characters) for drawing in characters[name]]
        order = np.repeat(np.arange(len(characters)), [len(characters[name]) for name in sorted(characters)])
        labels = (order[:, None] * len(TURNS) + np.arange(len(TURNS))).reshape(-1)
        owners = [name for name in sorted(characters) for _ in characters[name]]

        def name(drawing: int) -> str:
            return printable(f"{owners[drawing]}/{drawings[drawing].name}")

        upright = encoded_reader(lambda row: _content(drawings[row]), name, "Fetch Omniglot again.")

        def read(rows: np.ndarray, size: int, channels: int, resize: Resize) -> np.ndarray:
            unique, where = np.unique(rows // len(TURNS), return_inverse=True)
            images = upright(unique, size, channels, resize)[where]
            for turn in range(1, len(TURNS)):
                chosen = rows % len(TURNS) == turn
                images[chosen] = np.rot90(images[chosen], turn, (2, 3))
            return images

        return Rows(
            self.class_names(split), labels, read, SIDE, 1, lambda row: f"{name(row // 4)} {TURNS[row % 4]}", resize_rule,
            ((self.format, len(drawings)),),
        )  # fmt: skip


def _content(drawing: Path | Member) -> bytes:
    return file_content(drawing) if isinstance(drawing, Path) else drawing.read_bytes()


def turned(characters: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that characters stand for, sorted."""
    return tuple(f"{name}/{turn}" for name in sorted(characters) for turn in TURNS)


def find_omniglot(data: str, root: Path) -> VerifiedSource:
    """The Omniglot at `root`, an existing folder, split as its name (`SPLIT_OF`) says.

    Raises:
        UserError: where there is none, or only one of its two parts.
    """
    split_name = SPLIT_OF[data]
    lists = published_lists(f"omniglot_{split_name}")
    for folder in FOLDERS:
        if (root / folder).is_dir() and (found := _find(root / folder, lists)):
            classes = {split: turned(names) for split, names in lists.items()}
            return VerifiedSource(found, f"omniglot-{split_name}", "Omniglot", classes, DRAWINGS)
    raise UserError(
        f"{printable(root)} holds no Omniglot: expected images_background.zip and images_evaluation.zip, or the folders "
        "they unpack to (ALPHABET/characterNN/*.png)."
    )


def _find(root: Path, lists: dict[str, tuple[str, ...]]) -> Drawings | None:
    """The two parts, each as a folder or a zip, or one tree of all alphabets; None where nothing is there."""
    near = {part: [p for p in (root / part, root / f"{part}.zip") if p.exists()] for part in PARTS}
    if any(near.values()):
        if missing := [part for part, places in near.items() if not places]:
            raise UserError(
                f"{printable(root)} lacks {missing[0]}: put that folder, or {missing[0]}.zip, beside the other part."
            )
        found: Characters = {}
        for place, *_ in near.values():
            found |= _folder(place) if place.is_dir() else _zip(place)
        kinds = sorted({"folders" if place.is_dir() else "zips" for place, *_ in near.values()})
        return Drawings(root, f"{' and '.join(kinds)} ({', '.join(PARTS)})", found, lists)
    known = {name.split("/")[0] for names in lists.values() for name in names}
    for tree in TREES:
        if (root / tree).is_dir() and known & set(scan(root / tree)[0]):
            return Drawings(root, "one tree (ALPHABET/characterNN/image)", _folder(root / tree), lists)
    return None


def _folder(root: Path) -> Characters:
    """The characters of a folder of alphabets; one that repeats its own name, as unpacked zips may, is looked into."""
    inner = root / root.name
    root = inner if inner.is_dir() else root
    return {
        f"{alphabet}/{character}": list(files)
        for alphabet in scan(root)[0]
        for character, files in class_files(root / alphabet).items()
    }


def _zip(path: Path) -> Characters:
    found: Characters = {}
    for folder, members in zip_folders(path).items():
        found[str(PurePosixPath(*folder.parts[-2:]))] = list(members)
    return found
