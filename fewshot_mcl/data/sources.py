"""Where images come from. A source knows its splits and class names before it decodes a single pixel.

A new source is one file with a subclass of `Source`, and one line in `find_source`. Every load of every source goes
through `Source.load`, which is where the test split is kept from training code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.store import CHUNK, MEMORY_SHARE, Chunk, ImageStore
from fewshot_mcl.errors import UserError, unknown

SPLITS = ("train", "val", "test")
FEW_SHOT = (  # named sets whose splits have different classes; `find_few_shot` finds them
    "mini-imagenet", "tiered-imagenet", "cifar-fs", "fc100", "cub", "cub-closer-look", "cub-meta-dataset", "cub-feat",
    "omniglot", "omniglot-vinyals", "omniglot-background",
)  # fmt: skip
USUAL_SPLIT = {
    "cub": "cub-closer-look",
    "omniglot": "omniglot-vinyals",
}  # what a source calls itself where none is named

_training = ContextVar("training_only", default=False)


class ForbiddenSplitError(RuntimeError):
    """Training code asked for the test split. A fault of the program, never of the user."""


@contextmanager
def training_only() -> Iterator[None]:
    """Inside, no source opens its test split: `Source.load("test", ...)` raises `ForbiddenSplitError`.

    It covers the code called inside; a thread started inside begins with a fresh context and is not covered.
    """
    token = _training.set(True)
    try:
        yield
    finally:
        _training.reset(token)


def refuse_test_in_training(split: str) -> None:
    """Raise `ForbiddenSplitError` where `split` is the test split and training is going on."""
    if split == "test" and _training.get():
        raise ForbiddenSplitError("the test split cannot be opened while training: selection is on validation")


@dataclass(frozen=True)
class ImageOptions:
    """How files become pixels.

    `image_size` is the side in pixels (None: the source's own size); `color` "auto" is the source's own; `resize`
    "crop" keeps the aspect ratio (shorter side to `image_size`, then centre crop) and "squash" does not; images larger
    than `memory_share` of the machine's memory are memory-mapped; `split_seed` splits a folder of unsplit classes.

    `decode` "always" keeps image files as they are and decodes them whenever they are asked for (`lazy.FileImages`);
    bad ones are then found, and refused, only when they are read. What is no folder of files knows only "once".
    """

    image_size: int | None = None
    color: Literal["auto", "rgb", "grey"] = "auto"
    resize: Literal["crop", "squash"] = "crop"
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    memory_share: float = MEMORY_SHARE
    split_seed: int = 0
    decode: Literal["once", "always"] = "once"

    def pixels(self, own_size: int, own_channels: int) -> tuple[int, int]:
        """(side, channels) asked for, of a source whose own are `own_size` and `own_channels`."""
        size = own_size if self.image_size is None else self.image_size
        if size < 1:
            raise UserError(f"an image size of {size} is no size: give a positive number of pixels, such as 84.")
        return size, {"auto": own_channels, "rgb": 3, "grey": 1}[self.color]


class Source(ABC):
    """Images by split.

    `name` goes into result lines; `format` says what was found; `notes` what was decided on the way (loading may add to
    it); `problems` what makes it unusable, found by looking at names only; `hint` how a missing "{split}" is supplied.
    """

    name: str
    format: str
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    hint: str

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits this source has, of "train", "val", "test"."""

    @abstractmethod
    def class_names(self, split: str) -> tuple[str, ...]:
        """Sorted class names of a split, without decoding an image."""

    @abstractmethod
    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        """`load`, for a split that exists and may be opened."""

    def load(self, split: str, options: ImageOptions) -> ImageStore:
        """Decode one split and nothing of any other.

        Raises:
            UserError: where this source has no such split, or its images cannot be used.
            ForbiddenSplitError: for the test split inside `training_only()`.
        """
        refuse_test_in_training(split)
        self.require(split)
        return self._load(split, options)

    def chunks(self, split: str, options: ImageOptions, start: int = 0) -> Iterator[Chunk]:
        """The images of `load`, in its order, as consecutive pieces of `CHUNK` images; the last may have fewer.

        Args:
            split: one of `splits`.
            options: as for `load`; `memory_share` and `decode` play no part.
            start: 0, or the `stop` of an earlier chunk, to go on behind it.

        Raises:
            UserError: as `load` does; where an image cannot be used, not before its chunk is asked for.
            ForbiddenSplitError: for the test split inside `training_only()`.
        """
        refuse_test_in_training(split)
        self.require(split)
        return self._chunks(split, options, start)

    def _chunks(self, split: str, options: ImageOptions, start: int) -> Iterator[Chunk]:
        """`chunks`, for a split that exists and may be opened. A source too large for the memory overrides it."""
        store = self._load(split, options)
        for first in range(start, len(store), CHUNK):
            rows = slice(first, min(first + CHUNK, len(store)))
            yield Chunk(store.images[rows].numpy(), store.labels[rows].numpy(), store.ids[rows], rows.stop)

    def require(self, split: str) -> None:
        """Raise `UserError` where this source has no such split."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if split not in self.splits:
            found = ", ".join(self.splits) or "none"
            raise UserError(f"{self.name} has no {split} split (found: {found}). {self.hint.format(split=split)}")

    def note(self, text: str) -> None:
        """Add a line to `notes`, once."""
        if text not in self.notes:
            self.notes = (*self.notes, text)


def open_source(data: str, root: Path | None = None, options: ImageOptions | None = None) -> Source:
    """The source named `data`: "glyphs", one of `FEW_SHOT` (files under `root`), or the path of a folder.

    `root` is read for `FEW_SHOT` only.

    Raises:
        UserError: where nothing is found, or what is found cannot be used.

    Example:
        >>> source = open_source("glyphs")
        >>> source.splits
        ('train', 'val', 'test')
        >>> store = source.load("val", ImageOptions())
        >>> store.num_classes, store.shape
        (97, (1, 28, 28))
    """
    source = find_source(data, root, options or ImageOptions())
    if source.problems:
        raise UserError(f"{source.name}: {first_few(list(source.problems), 1)}. `data check` lists every problem.")
    return source


def find_source(data: str, root: Path | None, options: ImageOptions) -> Source:
    """`open_source`, but a source whose `problems` make it unusable is returned all the same, for a report on them."""
    from fewshot_mcl.data import folder, glyphs, mini_pickles, packed  # each imports this module

    if data == "glyphs":
        return glyphs.GlyphSource()
    if data in FEW_SHOT:
        if root is None:
            raise UserError(f"{data} needs the folder its files lie in: give it with --root DIR.")
        return find_few_shot(data, root, options)
    if not Path(data).exists() and len(Path(data).parts) == 1:
        raise unknown("data source or folder", printable(data), ("glyphs", *FEW_SHOT, "the path of a folder"))
    path = existing_folder(Path(data))
    if packed.is_packed(path):
        return packed.PackedSource(path)
    return mini_pickles.find_pickles(path) or folder.find_folder(path, options.split_seed)


def find_few_shot(data: str, root: Path, options: ImageOptions) -> Source:
    """The source named `data`, one of `FEW_SHOT`, at `root`."""
    from fewshot_mcl.data import cifar_fs, cub, mini_imagenet, omniglot, tiered_imagenet  # as above

    if data in cifar_fs.SETS:  # which may be one archive
        return cifar_fs.find_cifar_few_shot(data, root if root.is_file() else existing_folder(root))
    root = existing_folder(root)
    if data in cub.SPLIT_OF:
        return cub.find_cub(data, root)
    if data in omniglot.SPLIT_OF:
        return omniglot.find_omniglot(data, root)
    if data == "tiered-imagenet":
        return tiered_imagenet.find_tiered_imagenet(root)
    return mini_imagenet.find_mini_imagenet(root, options)


def existing_folder(path: Path) -> Path:
    """`path`, where it is a folder; otherwise a `UserError`."""
    if not path.exists():
        raise UserError(f"{printable(path)} does not exist: give the path of a folder of class folders.")
    if not path.is_dir():
        raise UserError(f"{printable(path)} is a file: give the folder that holds the class folders or the data files.")
    return path
