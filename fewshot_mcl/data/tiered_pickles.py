"""tieredImageNet as published by Ren et al., and as it was unpacked from that: images of 84x84, labels beside them.

Images: `SPLIT_images_png.pkl`, a list of PNG files as uint8 arrays; or `SPLIT_images.npz`, the array "images"
(N, 84, 84, 3) uint8, which OpenCV made of them, so that its channels are blue, green, red: they are turned round here.
Labels: `SPLIT_labels.pkl` with "label_specific" (N,) and "label_specific_str", the words of each number in WordNet; or, in
a later copy, with nothing but "labels", whose numbers follow the order in which somebody's folders were listed.
(Taken from programs that write and read the files, which were not at hand.)
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fewshot_mcl.data.images import Content, resize_rule
from fewshot_mcl.data.mini_pickles import integers
from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.npz import open_images
from fewshot_mcl.data.pickles import load_pickle
from fewshot_mcl.data.rows import Rows, RowsSource, array_reader, encoded_reader, stored_rule
from fewshot_mcl.data.sources import SPLITS
from fewshot_mcl.errors import UserError
from fewshot_mcl.resources import resource_dir

SIDE = 84
NPZ, PNG, LABELS = "{split}_images.npz", "{split}_images_png.pkl", "{split}_labels.pkl"


@cache
def wnids_by_word() -> dict[str, str]:
    """WordNet identifier by first word; the first words of the 608 classes differ."""
    text = (resource_dir("splits") / "tiered_imagenet_words.txt").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines()]
    return {first_word(words): wnid for wnid, words in lines}


def first_word(words: str) -> str:
    """What a class is called by first, whatever its case: "tench" of "tench, Tinca tinca"."""
    return words.split(",")[0].strip().casefold()


class TieredPickles(RowsSource):
    """Images and labels of each split."""

    format = f"pickles ({NPZ.format(split='SPLIT')} or {PNG.format(split='SPLIT')}, {LABELS.format(split='SPLIT')})"
    hint = f"Put {NPZ} (or {PNG}) and {LABELS} beside the others."

    def __init__(self, root: Path, files: dict[str, Path]) -> None:
        self.root, self.files = root, files
        self.name = printable(root.resolve().name)
        self._rows: dict[str, Rows] = {}
        lacking = [LABELS.format(split=split) for split in files if not self._labels(split).is_file()]
        self.problems = tuple(f"{name} is missing: put it beside the images it belongs to" for name in lacking)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self.files)

    def numbered(self, split: str) -> bool:
        return all(name.startswith(f"{split}-") for name in self.opened(split).names)

    def rows(self, split: str) -> Rows:
        if split not in self._rows:
            self._rows[split] = self._read(split)
        return self._rows[split]

    def _labels(self, split: str) -> Path:
        return self.root / LABELS.format(split=split)

    def _read(self, split: str) -> Rows:
        path = self.files[split]
        names, labels = self._classes(split)
        files = tuple((each.name, each.stat().st_size) for each in (path, self._labels(split)))
        if path.suffix == ".npz":
            images = open_images(path, "images")
            count, read, rule = len(images), array_reader(images, bgr=True), stored_rule(images.shape[1])
        else:
            encoded = _encoded(path)
            count, rule = len(encoded), resize_rule
            where = f"of {printable(path)}"
            read = encoded_reader(lambda row: encoded[row], lambda row: f"image {row} {where}", "Fetch the file again.")
        if count != len(labels):
            raise UserError(
                f"{printable(path)} holds {count:,} images, but {self._labels(split).name} has {len(labels):,} labels: they are "
                "not of one set. Fetch both again."
            )
        return Rows(names, labels, read, SIDE, 3, lambda row: f"{path.name}[{row}]", rule, files)

    def _classes(self, split: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Class names, sorted, and the (N,) places of the images' classes among them."""
        path = self._labels(split)
        content = load_pickle(path)
        found = content if isinstance(content, dict) else {}
        numbers = integers(found.get("label_specific", found.get("labels")))
        if not len(numbers) or numbers.min() < 0:
            raise UserError(
                f"{printable(path)} is damaged: it has no whole numbers under 'label_specific' or 'labels'."
            )
        used = np.unique(numbers)
        words = found.get("label_specific_str")
        names = self._numbered(split, used) if words is None else self._worded(split, path, used, words)
        order = sorted(names)
        place = {number: order.index(name) for number, name in zip(used.tolist(), names)}
        return tuple(order), np.array([place[number] for number in numbers.tolist()], np.int64)

    def _numbered(self, split: str, used: np.ndarray) -> list[str]:
        self.note(
            f"{split}: {LABELS.format(split=split)} numbers its classes; which they are it does not say, only how many"
        )
        return [f"{split}-{number:03d}" for number in used.tolist()]

    def _worded(self, split: str, path: Path, used: np.ndarray, words: Any) -> list[str]:
        if not isinstance(words, list) or not all(isinstance(each, str) for each in words) or used[-1] >= len(words):
            raise UserError(
                f"{printable(path)} is damaged: 'label_specific_str' does not name its {used[-1] + 1} classes."
            )
        names = [wnids_by_word().get(first_word(words[number]), words[number]) for number in used.tolist()]
        if twice := [printable(name) for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{printable(path)} is damaged: it names classes twice ({first_few(twice)}).")
        return names


def _encoded(path: Path) -> list[Content]:
    """The images of a pickled list, each as the bytes of its file; they stay in the pickle, mapped into memory."""
    content = load_pickle(path, mapped=True)
    if not isinstance(content, list) or not content:
        raise UserError(f"{printable(path)} is damaged: it is no list of images.")
    encoded: list[Content] = []
    for row, each in enumerate(content):
        if isinstance(each, np.ndarray) and each.dtype == np.uint8:
            encoded.append(each.reshape(-1).data)
        elif isinstance(each, bytes | memoryview):
            encoded.append(each)
        elif isinstance(each, str):  # the bytes of a Python 2 pickle, where they are few
            encoded.append(each.encode("latin1", "replace"))
        else:
            raise UserError(f"{printable(path)} is damaged: image {row} is no array of bytes.")
    return encoded
