"""What is planted as a copy is found, and nothing else is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fewshot_mcl.data.likeness import MOST_BITS, _close, alike, look


def scene(seed: int, side: int = 96) -> Image.Image:
    """A smooth picture of its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def recompressed(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=60)
    return Image.open(out).convert("RGB")


def groups(*images: Image.Image) -> list[list[int]]:
    return alike([look(image) for image in images])


@pytest.mark.parametrize(
    "copied",
    [recompressed, lambda image: image.resize((60, 60)), lambda image: image.point(lambda value: min(255, value + 3))],
    ids=["recompressed", "smaller", "lighter"],
)
def test_a_copy_is_found_among_others(copied) -> None:
    others = [scene(seed) for seed in range(40)]
    assert groups(*others, copied(others[7])) == [[7, 40]]


def test_several_copies_make_one_group() -> None:
    image = scene(1)
    assert groups(scene(2), image, image.resize((64, 64)), scene(3), recompressed(image)) == [[1, 2, 4]]


@pytest.mark.parametrize(
    "other",
    [
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: Image.merge("RGB", image.split()[::-1]),
        lambda image: image.resize((96, 64)),
        lambda image: image.crop((0, 0, 60, 60)),
    ],
    ids=["mirrored", "other colours", "stretched", "a part"],
)
def test_what_only_resembles_is_not_the_same(other) -> None:
    image = scene(1)
    assert groups(image, other(image)) == []


def test_images_of_one_colour_have_no_shape_to_go_by() -> None:
    assert groups(*(Image.new("L", (32, 32), value) for value in (200, 201, 200))) == []
    assert groups() == []


def test_small_marks_on_a_large_page_are_told_apart() -> None:
    pages = []
    for left, top in ((30, 40), (34, 40)):
        page = Image.new("RGB", (128, 128), "white")
        page.paste("black", (left, top, left + 8, top + 8))
        pages.append(page)
    assert groups(*pages) == []


def test_close_hashes_are_those_of_a_slow_search() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 60, dtype=np.uint64)
    for i in range(0, 60, 3):  # neighbours at all distances
        flips = random.choice(64, i // 6, replace=False)
        hashes[i + 1] = hashes[i] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    slow = {
        (i, j) for i in range(60) for j in range(i + 1, 60) if bin(int(hashes[i] ^ hashes[j])).count("1") <= MOST_BITS
    }
    assert len(slow) > 10
    assert set(zip(*(each.tolist() for each in _close(hashes)))) == slow
