"""A user's own images: where they lie, and what a network is shown of them."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewshot_mcl.data.images import BadImage, Resize, fit, in_threads, read_image, to_array
from fewshot_mcl.data.listing import Classes, class_files, class_tree, scan, with_images
from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.errors import UserError

Item = Any  # a path, or pixels: (H, W) or (H, W, 1 or 3) uint8, or what numpy makes into such
COLOURED = 12  # of 255: channels of a grey picture differ by less, after JPEG


@dataclass(frozen=True)
class Looks:
    """What a network wants to see: `seen` x `seen` pixels, the middle of an image brought to `size` x `size`."""

    size: int
    seen: int
    channels: int
    resize: Resize

    @classmethod
    def of(cls, card: dict[str, Any]) -> Looks:
        """That of a model's card."""
        seen = card["image_size"]
        kept = "not kept" not in str(card.get("resize", ""))  # the rule is there in words
        size = max(seen, int(card.get("stored_size", seen)))
        return cls(size, seen, card["in_channels"], "crop" if kept else "squash")

    def pixels(self, item: Item) -> np.ndarray:
        """(channels, seen, seen) uint8 of one image. Raises `BadImage`."""
        whole = to_array(fit(open_image(item, 2 * self.size), self.size, self.resize), self.channels)
        first = (self.size - self.seen) // 2
        return whole[:, first : first + self.seen, first : first + self.seen]


def open_image(item: Item, at_least: int) -> Image.Image:
    """A path or an array of pixels as an "L" or "RGB" image. Raises `BadImage`."""
    if isinstance(item, str | os.PathLike):
        return read_image(Path(item), at_least)
    pixels = np.asarray(item)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    good = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not good or pixels.dtype != np.uint8 or not pixels.size:
        raise BadImage(f"pixels must be (H, W) or (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def name_of(item: Item, number: int) -> str:
    """What an image is called: its path, or its place in the list."""
    return os.fspath(item) if isinstance(item, str | os.PathLike) else f"image {number}"


def show(items: Sequence[Item], looks: Looks) -> tuple[np.ndarray, dict[int, str]]:
    """Images as a network sees them, (N, C, S, S) uint8; by place, which cannot be used and why: their pixels mean nothing."""
    images = np.zeros((len(items), looks.channels, looks.seen, looks.seen), np.uint8)

    def fill(i: int) -> str | None:
        try:
            images[i] = looks.pixels(items[i])
        except BadImage as error:
            return str(error)
        return None

    reasons = in_threads(fill, len(items), chunk=4)
    return images, {i: reason for i, reason in enumerate(reasons) if reason is not None}


def labelled_files(folder: Path, least: int = 2) -> Classes:
    """The image files of each class folder, of which `least` must have some.

    Raises:
        UserError: where `folder` is none, or holds fewer.
    """
    where = printable(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{where} {what}: give a folder that holds a folder of images for each class.")
    classes = with_images(class_files(class_tree(folder)))
    if len(classes) >= least:
        return classes
    for name in scan(folder)[0]:
        if len(with_images(class_files(folder / name))) >= 2:
            raise UserError(f"{where} has no class folders, but {where}/{printable(name)} has: give that path.")
    found = f"one class with images ({printable(next(iter(classes)))})" if classes else "no class folder with images"
    raise UserError(f"{where} has {found}; give {least} or more, as {where}/CLASS/image.")


def query_files(places: Sequence[Path]) -> list[Path]:
    """The image files in folders (however deep) and files, in the order given; each once.

    Raises:
        UserError: where a place does not exist, or there is no image in all of them.
    """
    found: dict[str, Path] = {}
    for place in places:
        if not os.path.lexists(place):
            raise UserError(f"--query {printable(place)} does not exist: give image files, or folders of them.")
        for path in _below(place) if place.is_dir() else [place]:
            found.setdefault(os.path.realpath(path), path)
    if not found:
        where = first_few([printable(place) for place in places])
        raise UserError(f"--query {where} holds no image files: give image files, or folders of them.")
    return list(found.values())


def _below(folder: Path) -> list[Path]:
    """Image files of a folder and all below it; a loop of links is walked once."""
    files, waiting, known = [], [folder], set()
    while waiting:
        here = waiting.pop()
        if (real := os.path.realpath(here)) in known:
            continue
        known.add(real)
        folders, images = scan(here)
        files += [here / name for name in images]
        waiting += [here / name for name in reversed(folders)]
    return files


def refuse_bad(bad: list[str], total: int, advice: str) -> None:
    """Raise `UserError` where there are bad images."""
    if bad:
        raise UserError(f"{len(bad)} of {total} images cannot be used: {first_few(bad)}. {advice}")


def has_colour(items: Sequence[Item], some: int = 20) -> bool:
    """Whether most of the first `some` images have colour."""
    coloured = []
    for item in items[:some]:
        try:
            pixels = np.asarray(open_image(item, 32).convert("RGB").resize((32, 32)), dtype=np.int64)
        except BadImage:
            continue
        coloured.append(float((pixels.max(2) - pixels.min(2)).mean()) > COLOURED)
    return sum(coloured) * 2 > len(coloured)


def thumbnail(item: Item, side: int) -> str:
    """The whole image, its longer side at most `side`, as the address of a JPEG that holds itself."""
    image, out = open_image(item, side), io.BytesIO()
    image.thumbnail((side, side))
    image.save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
