"""CIFAR-FS (Bertinetto et al.: 64/16/20 classes) and FC100 (Oreshkin et al.: 60/20/20), both CIFAR-100 split by class.

Every class has 600 images of 32x32: the 500 of CIFAR-100's training file and the 100 of its test file. Found by looking:
the pickles `CIFAR_FS_SPLIT.pickle` and `FC100_SPLIT.pickle`; CIFAR-100 itself, in any form that `cifar` reads; class
folders by split, with lists, flat, or in a zip.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from fewshot_mcl.data.cifar import SHAPE, CifarSource, find_files
from fewshot_mcl.data.images import resize_rule
from fewshot_mcl.data.mini_pickles import integers
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.pickles import load_pickle
from fewshot_mcl.data.published_folders import find_published
from fewshot_mcl.data.rows import Rows, RowsSource, array_reader, encoded_reader, stored_rule
from fewshot_mcl.data.sources import SPLITS, Source, existing_folder
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.data.verified import VerifiedSource, published_lists
from fewshot_mcl.data.zips import Member, zip_folders
from fewshot_mcl.errors import UserError

SIDE, IMAGES_PER_CLASS = 32, 600
SETS = {  # title, list, pickle
    "cifar-fs": ("CIFAR-FS", "cifar_fs", "CIFAR_FS_{split}.pickle"),
    "fc100": ("FC100", "fc100", "FC100_{split}.pickle"),
}
FOLDERS = ("", "data", "cifar100", "cifar100/data", "cifarfs/cifar100/data", "cifarfs/processed", "processed")
ZIPS = ("cifarfs.zip", "cifar-fs.zip", "CIFAR-FS.zip", "cifar100.zip", "FC100.zip", "fc100.zip")


def fine_names() -> tuple[str, ...]:
    """The 100 fine names of CIFAR-100 in the order of their numbers, which is that of the alphabet."""
    return tuple(sorted(name for split in SPLITS for name in split_list("cifar_fs", split)))


class CifarPickles(RowsSource):
    """`CIFAR_FS_SPLIT.pickle`: {"data": (N, 32, 32, 3) uint8, "labels": [number, ...]}, of Python 2 as a rule.

    The numbers are CIFAR-100's own where they are those of the split's classes; this is taken from programs that read
    the files, which were not at hand. Where they are others, classes go by their number.
    """

    def __init__(self, files: dict[str, Path], lists: dict[str, tuple[str, ...]], pattern: str) -> None:
        self.name, self.files, self.lists = pattern.format(split="SPLIT"), files, lists
        self.format = f"pickles ({self.name})"
        self.hint = f"Put {pattern} beside the others."
        self._rows: dict[str, Rows] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self.files)

    def numbered(self, split: str) -> bool:
        return not set(self.opened(split).names) <= set(fine_names())

    def rows(self, split: str) -> Rows:
        if split not in self._rows:
            self._rows[split] = self._read(split)
        return self._rows[split]

    def _read(self, split: str) -> Rows:
        path = self.files[split]
        content = load_pickle(path, mapped=True)
        found = content if isinstance(content, dict) else {}
        images, numbers = found.get("data"), integers(found.get("labels"))
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3):
            raise UserError(
                f"{printable(path)} is damaged: its data is no uint8 array of shape (N, {SIDE}, {SIDE}, 3)."
            )
        if not len(images) or len(numbers) != len(images):
            raise UserError(
                f"{printable(path)} is damaged: {len(images)} images, but {len(numbers)} whole numbers as labels."
            )
        names = self._names(split, np.unique(numbers).tolist())
        ordered = tuple(sorted(names.values()))
        places = {number: ordered.index(name) for number, name in names.items()}
        labels = np.array([places[number] for number in numbers.tolist()], np.int64)
        return Rows(
            ordered, labels, array_reader(images), SIDE, 3, lambda row: f"{path.name}[{row}]", stored_rule(SIDE),
            ((path.name, path.stat().st_size),),
        )  # fmt: skip

    def _names(self, split: str, numbers: list[int]) -> dict[int, str]:
        """The name of each number."""
        fine = dict(enumerate(fine_names()))
        if {fine.get(number) for number in numbers} == set(self.lists[split]):
            self.note("classes are numbered in the pickles, as those of CIFAR-100 are")
            return {number: fine[number] for number in numbers}
        self.note(f"{split}: class numbers are not CIFAR-100's for this split; classes go by their number, unverified")
        return {number: f"{split}-{number:03d}" for number in numbers}


class CifarByClass(RowsSource):
    """CIFAR-100's own files, both of which every split is taken from."""

    hint = ""

    def __init__(self, whole: CifarSource, lists: dict[str, tuple[str, ...]]) -> None:
        self.whole, self.lists = whole, lists
        self.name, self.format = whole.name, whole.format
        self.note(
            "classes split by the published lists; all images of a class: CIFAR-100's training and test files together"
        )

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def class_names(self, split: str) -> tuple[str, ...]:
        """The published classes of a split that the files name."""
        self.require(split)
        return tuple(sorted(set(self.lists[split]) & set(self.whole.class_names("train"))))

    def rows(self, split: str) -> Rows:
        names, whole = self.class_names(split), self.whole.class_names("train")
        place = np.array([names.index(name) if name in names else -1 for name in whole])
        images, labels, ids = [], [], []
        for part in self.whole.splits:
            pixels, numbers = self.whole.read(part)
            chosen = np.flatnonzero(place[numbers] >= 0)
            images.append(pixels[chosen])
            labels.append(place[numbers[chosen]])
            ids += [f"{part}[{row}]" for row in chosen.tolist()]
        pixels = np.concatenate(images).reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
        for note in self.whole.notes:
            self.note(note)
        return Rows(
            names,
            np.concatenate(labels),
            array_reader(pixels),
            SIDE,
            3,
            ids.__getitem__,
            stored_rule(SIDE),
            ((split, len(ids)),),
        )


class CifarZip(RowsSource):
    """Class folders of images in a zip, whatever folders they lie in there."""

    hint = "Give the zip, or the folder it unpacks to, as it was published."

    def __init__(self, path: Path, lists: dict[str, tuple[str, ...]]) -> None:
        self.path, self.lists, self.name = path, lists, printable(path.name)
        self.format = "class folders in a zip (CLASS/image)"
        self.classes: dict[str, list[Member]] = {}
        known = set(fine_names())
        for folder, members in zip_folders(path).items():
            if folder.name in known:
                if folder.name in self.classes:
                    raise UserError(
                        f"{printable(path)} holds two folders {printable(folder.name)}: unpack it, and keep one."
                    )
                self.classes[folder.name] = members
        self.note("classes split by the published lists")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if set(self.lists[split]) & set(self.classes))

    def class_names(self, split: str) -> tuple[str, ...]:
        self.require(split)
        return tuple(sorted(set(self.lists[split]) & set(self.classes)))

    def rows(self, split: str) -> Rows:
        names = self.class_names(split)
        members = [member for name in names for member in self.classes[name]]
        labels = np.repeat(np.arange(len(names)), [len(self.classes[name]) for name in names])

        def name(row: int) -> str:
            return printable(PurePosixPath(members[row].info.filename))

        advice = f"Fetch {self.name} again."
        read = encoded_reader(lambda row: members[row].read_bytes(), name, advice)
        files = ((self.path.name, self.path.stat().st_size),)
        return Rows(names, labels, read, SIDE, 3, name, resize_rule, files)


def find_cifar_few_shot(data: str, root: Path) -> VerifiedSource:
    """The CIFAR-FS or FC100 (`data`) at `root`: a folder, or an archive file.

    Raises:
        UserError: where none of the known forms is there, or only part of one.
    """
    title, name, pattern = SETS[data]
    lists = published_lists(name)
    looks: tuple[Callable[[], Source | None], ...] = (
        lambda: _pickles(root, lists, pattern),
        lambda: _zip(root, lists),
        lambda: _cifar(root, lists),
        lambda: _folders(root, lists),
    )
    found = next((source for look in looks if (source := look()) is not None), None)
    if found is None:
        raise UserError(
            f"no {title} at {printable(root)}: expected {pattern.format(split='SPLIT')} for train, val and test; CIFAR-100 "
            "(cifar-100-python.tar.gz, or what it unpacks to); or class folders such as aquarium_fish, perhaps in a zip."
        )
    return VerifiedSource(found, data, title, lists, IMAGES_PER_CLASS)


def _pickles(root: Path, lists: dict[str, tuple[str, ...]], pattern: str) -> CifarPickles | None:
    known = {split: [root / form.format(split=split) for form in (pattern, pattern.lower())] for split in SPLITS}
    files = {split: path for split in SPLITS for path in reversed(known[split]) if path.is_file()}
    return CifarPickles(files, lists, pattern) if files else None


def _zip(root: Path, lists: dict[str, tuple[str, ...]]) -> CifarZip | None:
    paths = [root] if root.is_file() and root.suffix == ".zip" else [root / name for name in ZIPS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    source = CifarZip(path, lists)
    if not source.splits:
        raise UserError(
            f"{printable(path)} holds no class folders of CIFAR-100 with images: unpack it, and give that folder."
        )
    return source


def _cifar(root: Path, lists: dict[str, tuple[str, ...]]) -> CifarByClass | None:
    whole = find_files(root)
    return CifarByClass(whole, lists) if whole else None


def _folders(root: Path, lists: dict[str, tuple[str, ...]]) -> Source | None:
    existing_folder(root)
    for folder in FOLDERS:
        if (root / folder).is_dir() and (source := find_published(root / folder, lists)):
            source.image_size = SIDE
            return source
    return None
