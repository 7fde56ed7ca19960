"""miniImageNet as ready pickles, in the two forms that circulate.

Cache pickles, `mini-imagenet-cache-SPLIT.pkl`: {"image_data": (N, S, S, 3) uint8, "class_dict": {class: [row, ...]}}.
Category pickles, `miniImageNet_category_split_SPLIT.pickle`: {"data": (N, S, S, 3) uint8, "labels": [number, ...]}, of
Python 2, whose `train_phase_val` and `train_phase_test` are further images of *training* classes: never a split here.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from fewshot_mcl.data.images import resize_array, resize_rule
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.pickles import load_pickle
from fewshot_mcl.data.sources import SPLITS, ImageOptions, Source, refuse_test_in_training
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.data.store import ImageStore, allocate_images
from fewshot_mcl.errors import UserError

FIRST_NUMBER = {"train": 0, "val": 64, "test": 80}  # of the classes of a split, in the category pickles
CACHE = "mini-imagenet-cache-{split}.pkl"
CATEGORY = "miniImageNet_category_split_{split}.pickle"


class PickleSource(Source):
    """One pickle for each split. Naming the classes reads the file; its images are not kept."""

    images_key: str

    def __init__(self, root: Path, files: dict[str, Path]) -> None:
        self.name = printable(root.resolve().name)
        self._files = files
        self._names: dict[str, tuple[str, ...]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self._files)

    def class_names(self, split: str) -> tuple[str, ...]:
        if split not in self._names:
            self._names[split] = tuple(sorted(self._read(split)[1]))
        return self._names[split]

    def _read(self, split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The images (N, S, S, 3) of a split and the rows of each class, checked."""
        refuse_test_in_training(split)  # here too: naming the classes opens the file
        self.require(split)
        path = self._files[split]
        content = load_pickle(path)
        images = content.get(self.images_key) if isinstance(content, dict) else None
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[3:] != (3,):
            raise UserError(f"{printable(path)} is damaged: its images are no uint8 array of shape (N, side, side, 3).")
        if images.shape[1] != images.shape[2] or not images.size:
            raise UserError(f"{printable(path)} is damaged: its images are not square, or have no pixels.")
        rows = self._rows(split, content)
        if not rows or not all(len(each) for each in rows.values()):
            raise UserError(f"{printable(path)} is damaged: it names no classes, or classes without images.")
        used = np.concatenate(list(rows.values()))
        if used.min() < 0 or used.max() >= len(images) or len(np.unique(used)) != len(used):
            raise UserError(f"{printable(path)} is damaged: its classes do not divide its {len(images)} images.")
        return images, rows

    @abstractmethod
    def _rows(self, split: str, content: dict[str, Any]) -> dict[str, np.ndarray]:
        """The rows of each class; empty where the content does not say."""

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        stored, rows = self._read(split)
        names = tuple(sorted(rows))
        order = np.concatenate([rows[name] for name in names])
        side = stored.shape[1]
        images = allocate_images((len(order), 3, side, side), options.memory_share)
        for start in range(0, len(order), 1024):
            images[start : start + 1024] = stored[order[start : start + 1024]].transpose(0, 3, 1, 2)
        size, channels = options.pixels(side, 3)
        file = self._files[split].name
        return ImageStore(
            resize_array(images, size, channels, options.resize, options.memory_share),
            np.repeat(np.arange(len(names)), [len(rows[name]) for name in names]),
            names,
            split=split,
            source=self.name,
            resize="as stored" if size == side else resize_rule(size, options.resize),
            ids=[f"{file}[{row}]" for row in order.tolist()],
        )


class CacheSource(PickleSource):
    """`mini-imagenet-cache-SPLIT.pkl`: the pickle names its classes."""

    format = f"cache pickles ({CACHE.format(split='SPLIT')})"
    hint = f"Put {CACHE} beside the others."
    images_key = "image_data"

    def _rows(self, split: str, content: dict[str, Any]) -> dict[str, np.ndarray]:
        classes = content.get("class_dict")
        return {str(name): integers(rows) for name, rows in classes.items()} if isinstance(classes, dict) else {}


class CategorySource(PickleSource):
    """`miniImageNet_category_split_*.pickle`: the pickle numbers its classes, train from 0, val from 64, test from 80.

    Number to name follows the sorted class list of the split. Where the numbers are others, they are the names.
    """

    format = f"category pickles ({CATEGORY.format(split='SPLIT')})"
    hint = f"Put {CATEGORY} beside the others (of train: train_phase_train)."
    images_key = "data"

    def _rows(self, split: str, content: dict[str, Any]) -> dict[str, np.ndarray]:
        labels = integers(content.get("labels"))
        if len(labels) != len(content["data"]):
            return {}
        known, first = split_list("mini_imagenet", split), FIRST_NUMBER[split]
        numbers = np.unique(labels).tolist()
        if all(first <= number < first + len(known) for number in numbers):
            self.note("classes are numbered in the pickles; taken as the sorted class list of each split")
            names = {number: known[number - first] for number in numbers}
        else:
            self.note(f"{split}: class numbers are not {first} to {first + len(known) - 1}; classes go by their number")
            names = {number: f"{split}-{number:03d}" for number in numbers}
        return {names[number]: np.flatnonzero(labels == number) for number in numbers}


def integers(values: Any) -> np.ndarray:
    """(N,) int64 of a list or array of integers; empty where it is something else."""
    if isinstance(values, list) and all(isinstance(value, int) and abs(value) < 1 << 31 for value in values):
        return np.array(values, np.int64)
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64)
    return np.empty(0, np.int64)


def find_pickles(root: Path) -> PickleSource | None:
    """The pickles at `root`, or None where there are none."""
    cache = {"train": ["train"], "val": ["val", "validation"], "test": ["test"]}
    category = {"train": ["train_phase_train"], "val": ["val"], "test": ["test"]}
    kinds: tuple[tuple[type[PickleSource], str, dict[str, list[str]]], ...] = (
        (CacheSource, CACHE, cache),
        (CategorySource, CATEGORY, category),
    )
    for kind, pattern, names in kinds:
        paths = {split: [root / pattern.format(split=name) for name in names[split]] for split in SPLITS}
        files = {split: path for split in SPLITS for path in reversed(paths[split]) if path.is_file()}
        if files:
            return kind(root, files)
    return None
