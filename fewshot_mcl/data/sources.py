"""Where images come from. A source knows its splits and class names before it decodes a single pixel.

A new source is one file with a class that has these four members, and one line in `open_source`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fewshot_mcl.data.store import MEMORY_SHARE, ImageStore


@dataclass(frozen=True)
class ImageOptions:
    """How files become pixels.

    `image_size` is the side in pixels (None: the source's own size); `color` "auto" is the source's own; `resize` "crop" keeps the
    aspect ratio (shorter side to `image_size`, then centre crop) and "squash" does not; images larger than `memory_share` of the
    machine's memory are memory-mapped.
    """

    image_size: int | None = None
    color: Literal["auto", "rgb", "grey"] = "auto"
    resize: Literal["crop", "squash"] = "crop"
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    memory_share: float = MEMORY_SHARE
    split_seed: int = 0


class Source(Protocol):
    """Images by split. `name` goes into result lines; `format` says what was found; `notes` what was decided on the way."""

    name: str
    format: str
    notes: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits this source has, of "train", "val", "test"."""
        ...

    def class_names(self, split: str) -> tuple[str, ...]:
        """Sorted class names of a split, without reading an image."""
        ...

    def load(self, split: str, options: ImageOptions) -> ImageStore:
        """Decode one split and nothing of any other."""
        ...


def open_source(data: str, root: Path | None = None, options: ImageOptions | None = None) -> Source:
    """The source named `data`: "glyphs", "mini-imagenet" (files under `root`), or the path of a folder.

    Raises:
        UserError: where nothing is found, or what is found cannot be used.
    """
    raise NotImplementedError
