"""The embedded set "glyphs": 452 characters of ten scripts, 20 images of 28x28 each; no script is in two splits.

`glyphs.npz` holds clean drawings (white on black, 16 grey levels); texture, contrast and noise are added on loading.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from fewshot_mcl.data.images import resize_array, resize_rule
from fewshot_mcl.data.sources import SPLITS, ImageOptions, Source
from fewshot_mcl.data.store import ImageStore

SIDE = 28
FILE = Path(__file__).with_name("glyphs.npz")


class GlyphSource(Source):
    """Grey 28x28 unless the options say otherwise."""

    name = "glyphs"
    format = "embedded"
    hint = ""

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def class_names(self, split: str) -> tuple[str, ...]:
        self.require(split)
        return tuple(sorted(_class_names()[_class_splits() == split].tolist()))

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        names, chosen = self.class_names(split), np.flatnonzero(_class_splits() == split)
        chosen = chosen[np.argsort(_class_names()[chosen])]
        images = _finished()[chosen]
        size, channels = options.pixels(SIDE, 1)
        return ImageStore(
            resize_array(images.reshape(-1, 1, SIDE, SIDE), size, channels, options.resize, options.memory_share),
            np.repeat(np.arange(len(names)), images.shape[1]),
            names,
            split=split,
            source=self.name,
            resize="as stored" if size == SIDE else resize_rule(size, options.resize),
            ids=[f"{name}[{i}]" for name in names for i in range(images.shape[1])],
        )


def finish(clean: np.ndarray) -> np.ndarray:
    """Clean drawings (..., 28, 28) uint8 with a smooth background, a contrast and pixel noise of their own; same shape.

    The stream is frozen: NumPy promises that `RandomState(0)` draws the same numbers for ever, and results that were
    published on this set rest on them. The order of the draws, their number and every constant must stay as they are.
    """
    random = np.random.RandomState(0)
    ink = clean.reshape(-1, SIDE, SIDE).astype(np.float32) / 255
    coarse = random.random_sample((len(ink), 8, 8)).astype(np.float32)
    background = _enlarge(_enlarge(coarse, 1), 2) * 0.35
    contrast = random.uniform(0.55, 1, (len(ink), 1, 1)).astype(np.float32)
    noise = 0.12 * random.standard_normal(ink.shape).astype(np.float32)
    images = background * (1 - ink) + contrast * ink + noise
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8).reshape(clean.shape)


def _enlarge(grid: np.ndarray, axis: int) -> np.ndarray:
    """8 values along an axis, linearly interpolated to 28."""
    position = np.linspace(0, 6.999, SIDE)
    left = position.astype(int)
    share = np.expand_dims((position - left).astype(np.float32), axis=(0, 3 - axis))
    return np.take(grid, left, axis) * (1 - share) + np.take(grid, left + 1, axis) * share


@cache
def _finished() -> np.ndarray:
    """(classes, 20, 28, 28) of all splits: the frozen stream runs through the whole set, in the order of the file."""
    with np.load(FILE, allow_pickle=False) as file:
        return finish(file["images"])


@cache
def _class_names() -> np.ndarray:
    """(classes,) such as "Latin U+0041 A", in the order of the file."""
    with np.load(FILE, allow_pickle=False) as file:
        characters = zip(file["script"].tolist(), file["codepoint"].tolist())
        return np.array([f"{script} U+{point:04X} {chr(point)}" for script, point in characters])


@cache
def _class_splits() -> np.ndarray:
    """(classes,) "train", "val" or "test", in the order of the file."""
    with np.load(FILE, allow_pickle=False) as file:
        return file["split"]
