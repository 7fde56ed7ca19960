"""Image files as uint8 arrays: what is read, how, and what is refused.

Read: the kinds in `FORMATS`, whatever the suffix says. EXIF orientation is applied; CMYK, palettes and 1-bit images
become RGB or grey; transparency is laid over white; 16-bit grey is scaled to 8 bits; of an animation the first frame
counts. Refused with a reason (`BadImage`): other kinds, damaged or empty files, more than `MAX_PIXELS`, and pixels
without a fixed range (floating point, 32-bit). Resizing is antialiased bilinear, which cannot ring at edges; an image
that has the size already keeps its pixels untouched.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.store import allocate_images
from fewshot_mcl.errors import UserError
from fewshot_mcl.progress import tracked

Resize = Literal["crop", "squash"]
Content = bytes | memoryview
Result = TypeVar("Result")

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
MAX_PIXELS = 50_000_000
LARGEST = 1 << 29  # bytes of a file: more than so many pixels take in any form
MOST_SCANS = 64  # of a JPEG; encoders write about ten, and each goes through all pixels, however few bytes it has
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


logging.getLogger("PIL").addHandler(logging.NullHandler())  # or what it logs of a damaged file goes to the terminal


class BadImage(Exception):  # noqa: N818 (it names the file's state)
    """A file that is no usable image; the text is the reason, fit to print."""


@dataclass(frozen=True)
class Decoded:
    """Images (len(kept), C, S, S) uint8, the places in `paths` they come from, and which others were bad and why."""

    images: np.ndarray
    kept: list[int]
    bad: list[str]


def read_image(path: Path, at_least: int | None = None) -> Image.Image:
    """One file as an upright "L" or "RGB" image; JPEGs may come smaller, down to `at_least` on each side, to save time.

    Raises:
        BadImage: with the reason, where the file is no usable image.
    """
    try:
        content = file_content(path)
    except FileNotFoundError:
        raise BadImage("a link to a file that is not there") from None
    except OSError as error:
        raise BadImage(printable(f"damaged ({error})")[:200]) from error
    return image_of(content, at_least)


def image_of(content: Content, at_least: int | None = None) -> Image.Image:
    """`read_image` of a file that is in memory already."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:  # known from the header, before a pixel is decoded
                raise BadImage(f"{width}x{height} pixels are more than the {MAX_PIXELS // 1_000_000} million allowed")
            _refuse_toil(image, content)
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()
            return _flatten(_upright(image))
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"more than the {MAX_PIXELS // 1_000_000} million pixels allowed") from None
    except UnidentifiedImageError:
        raise BadImage(_why_unidentified(content)) from None
    except Exception as error:  # on hostile files the decoders raise nearly every kind of exception
        raise BadImage(printable(f"damaged ({error})")[:200]) from error


def file_content(path: Path) -> bytes:
    """A whole image file: of what is in memory, a decoder that believes a made-up length gets no more than there is."""
    if path.stat().st_size > LARGEST:
        raise BadImage(f"more than the {LARGEST >> 20} MB allowed")
    return path.read_bytes()


def _refuse_toil(image: Image.Image, content: Content) -> None:
    """Raise `BadImage` for a small file that would keep the decoder busy for minutes."""
    if image.format in ("JPEG", "MPO"):
        scans = bytes(content).count(b"\xff\xda")  # no image data has these two bytes side by side
        if scans > MOST_SCANS:
            raise BadImage(f"a JPEG of {scans} scans, more than the {MOST_SCANS} allowed")
    if image.format == "BMP" and image.info.get("compression") in (1, 2):
        raise BadImage("a run-length coded BMP; save it as PNG")


def _why_unidentified(content: Content) -> str:
    if not len(content):
        return "empty file"
    return f"not an image of a kind that is read ({', '.join(FORMATS).lower()})"


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # damaged metadata does not spoil the pixels
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode as "L" or "RGB"."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scaled_to_8_bits(image)
    if image.mode == "F":
        raise BadImage("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    if image.mode in ("L", "RGB"):
        return image.copy()  # the file behind `image` is about to be closed
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("32-bit grey values have no fixed range")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def fit(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """`image` at `size` x `size`: the centre square, scaled ("crop"), or all of it, each side scaled alone."""
    if resize == "crop" and image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def resize_rule(size: int, resize: Resize) -> str:
    """The rule of `fit` in words."""
    how = "shorter side scaled, centre crop" if resize == "crop" else "both sides scaled, aspect ratio not kept"
    return f"{how} to {size}x{size}, antialiased bilinear"


def to_array(image: Image.Image, channels: int) -> np.ndarray:
    """(channels, H, W) uint8, channels 1 or 3, of an "L" or "RGB" image."""
    if channels == 1:
        return np.asarray(image.convert("L"))[None]
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def decode(path: Path, size: int, channels: int, resize: Resize) -> np.ndarray:
    """One file as (channels, size, size) uint8. Raises `BadImage`."""
    return to_array(fit(read_image(path, at_least=2 * size), size, resize), channels)


def in_threads(function: Callable[[int], Result], count: int, chunk: int = 64) -> list[Result]:
    """[function(0), ..., function(count - 1)], side by side: Pillow and hashing release the interpreter lock."""

    def run(start: int) -> list[Result]:
        return [function(i) for i in range(start, min(start + chunk, count))]

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # a damaged file is refused in our own words or, if it can be read, in none
        starts = range(0, count, chunk)
        parts = tracked(pool.map(run, starts), "reading images", len(starts))
        return [result for results in parts for result in results]


def decode_into(images: np.ndarray, paths: list[Path], resize: Resize, chunk: int = 64) -> dict[int, str]:
    """Decode files into `images` (N, C, S, S) uint8; by place, which are no usable images and why: their pixels mean nothing."""
    _, channels, size, _ = images.shape

    def fill(i: int) -> str | None:
        try:
            images[i] = decode(paths[i], size, channels, resize)
        except BadImage as error:
            return f"{printable(paths[i])} ({error})"
        return None

    reasons = in_threads(fill, len(paths), chunk)
    return {i: reason for i, reason in enumerate(reasons) if reason is not None}


def decode_many(
    paths: list[Path],
    size: int,
    channels: int,
    resize: Resize,
    on_bad_image: Literal["refuse", "skip"],
    memory_share: float,
) -> Decoded:
    """Files as one array (N, channels, size, size), in the order of `paths`; with "skip", without the bad ones.

    Raises:
        UserError: with "refuse", where a file is no usable image; with "skip", where none is.
    """
    images = allocate_images((len(paths), channels, size, size), memory_share)
    reasons = decode_into(images, paths, resize)
    bad = list(reasons.values())
    if bad and (on_bad_image == "refuse" or len(bad) == len(paths)):
        advice = "" if len(bad) == len(paths) else " Mend or remove them, or go on without them: --on-bad-image skip."
        raise UserError(f"{len(bad)} of {len(paths)} images cannot be used: {first_few(bad)}.{advice}")
    kept = [i for i in range(len(paths)) if i not in reasons]
    for to, of in enumerate(kept if bad else ()):  # in place: a second array might not fit
        images[to] = images[of]
    return Decoded(images[: len(kept)], kept, bad)


def resize_array(images: np.ndarray, size: int, channels: int, resize: Resize, memory_share: float) -> np.ndarray:
    """(N, C, H, W) uint8 as (N, channels, size, size); the very same array where that is its shape already."""
    if images.shape[1:] == (channels, size, size):
        return images
    resized = allocate_images((len(images), channels, size, size), memory_share)

    def fill(i: int) -> None:
        pixels = images[i, 0] if len(images[i]) == 1 else images[i].transpose(1, 2, 0)
        resized[i] = to_array(fit(Image.fromarray(np.ascontiguousarray(pixels)), size, resize), channels)

    in_threads(fill, len(images))
    return resized
