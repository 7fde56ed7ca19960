"""Augmentation of whole batches: equal to slicing, cropping and scaling image by image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl.data.augment import centre_crop, crop_boxes, pixels, resampling, resized_crop, shift, windows


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Random uint8 without a zero: zeros are what comes in."""
    return torch.randint(1, 256, (batch, channels, height, width), dtype=torch.uint8, generator=seeded(0))


def padded(image: Tensor, most: int) -> Tensor:
    """An image (C, H, W) with `most` zeros on every side."""
    channels, height, width = image.shape
    result = torch.zeros(channels, height + 2 * most, width + 2 * most, dtype=image.dtype)
    result[:, most : most + height, most : most + width] = image
    return result


def placements(image: Tensor, moved: Tensor, most: int) -> list[tuple[int, int, bool]]:
    """Every (row, column, mirrored) whose slice of the zero-padded image, perhaps mirrored, is `moved`."""
    _, height, width = image.shape
    whole = padded(image, most)
    return [
        (top, left, mirrored)
        for top in range(2 * most + 1)
        for left in range(2 * most + 1)
        for mirrored in (False, True)
        for part in [whole[:, top : top + height, left : left + width]]
        if torch.equal(part.flip(2) if mirrored else part, moved)
    ]


sides = st.integers(1, 7)


@given(st.integers(1, 5), sides, sides, st.integers(1, 3), st.integers(0, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_shifted_image_is_a_slice_of_the_zero_padded_one(
    batch: int, height: int, width: int, channels: int, most: int, flip: bool, seed: int
) -> None:
    images = pictures(batch, height, width, channels)
    before = images.clone()
    moved = shift(images, seeded(seed), most=most, flip=flip)
    assert (moved.shape, moved.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    for image, result in zip(images, moved):
        found = placements(image, result, most)
        assert found
        assert flip or not all(mirrored for _, _, mirrored in found)


def test_every_shift_occurs_each_image_has_its_own_and_half_are_mirrored() -> None:
    images, count = pictures(600, 6, 8, 1), 600
    moved = shift(images, seeded(1), most=2, flip=True)
    found = [placements(image, result, 2) for image, result in zip(images, moved)]
    assert all(len(each) == 1 for each in found)
    tops, lefts, mirrored = zip(*(each[0] for each in found))
    for values in (tops, lefts):
        counts = [values.count(place) for place in range(5)]
        assert sum(counts) == count
        assert all(abs(each - count / 5) < 5 * math.sqrt(count * 0.2 * 0.8) for each in counts)
    assert len(set(zip(tops, lefts))) == 25
    assert abs(sum(mirrored) - count / 2) < 5 * math.sqrt(count) / 2


def test_without_flip_nothing_is_mirrored() -> None:
    images = pictures(100, 5, 7)
    moved = shift(images, seeded(0), most=1, flip=False)
    assert not any(mirrored for image, result in zip(images, moved) for *_, mirrored in placements(image, result, 1))


def test_zeros_come_in_and_nothing_comes_in_twice() -> None:
    """An image of ones that is moved by (y, x) keeps (H - |y|)(W - |x|) of them; a border that repeats would keep all."""
    ones = torch.ones(200, 1, 6, 6, dtype=torch.uint8)
    kept = shift(ones, seeded(3), most=3, flip=True).sum((1, 2, 3)).tolist()
    assert set(kept) == {a * b for a in range(3, 7) for b in range(3, 7)}


@given(st.integers(0, 5), sides, sides, st.integers(1, 4), st.integers(0, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_both_forms_of_the_shift_are_the_explicit_slice(
    batch: int, height: int, width: int, channels: int, most: int, data: st.DataObject
) -> None:
    """That for the CPU, in every layout, and that for every device."""
    whole = pictures(batch, height + 2 * most, width + 2 * most, channels)
    places = st.lists(st.integers(0, 2 * most), min_size=batch, max_size=batch)
    top, left = data.draw(places), data.draw(places)
    mirrored = data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch))
    expected = torch.empty_like(whole[:, :, :height, :width])
    for i, (image, y, x, turn) in enumerate(zip(whole, top, left, mirrored)):
        part = image[:, y : y + height, x : x + width]
        expected[i] = part.flip(2) if turn else part
    drawn = torch.tensor(top).long(), torch.tensor(left).long(), torch.tensor(mirrored).bool()
    last, scattered = whole.contiguous(memory_format=torch.channels_last), whole.mT.contiguous().mT
    for form, source in [(windows, whole), (windows, last), (windows, scattered), (pixels, whole)]:
        assert torch.equal(form(source, *drawn, 2 * most), expected)


def test_the_shifts_behind_a_seed_are_frozen() -> None:
    """A run that is resumed by another version sees the same images."""
    images = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).repeat(4, 1, 1, 1)
    moved = shift(images, seeded(7), most=2, flip=True)
    assert moved[:, 0, 2].tolist() == [[0, 5, 4, 3, 2], [11, 12, 13, 14, 15], [6, 7, 8, 9, 10], [8, 9, 10, 0, 0]]


def test_shifts_of_none_without_flip_change_nothing() -> None:
    images = pictures(4, 5, 5)
    assert torch.equal(shift(images, seeded(0), most=0, flip=False), images)


def test_shifted_images_may_be_of_any_type() -> None:
    images = pictures(8, 9, 6).float()
    moved = shift(images, seeded(0), most=2, flip=True)
    assert torch.equal(moved, shift(images.byte(), seeded(0), most=2, flip=True).float())


@pytest.mark.parametrize("kind", ["shift", "resized_crop"])
def test_augmentation_is_a_function_of_images_and_generator(kind: str) -> None:
    def augmented(seed: int) -> Tensor:
        images = pictures(8, 16, 12)
        if kind == "shift":
            return shift(images, seeded(seed), most=3, flip=True)
        return resized_crop(images, seeded(seed), size=10)

    before = torch.get_rng_state()
    first = augmented(4)
    torch.rand(3)
    assert torch.equal(first, augmented(4))
    assert not torch.equal(first, augmented(5))
    torch.set_rng_state(before)
    augmented(4)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_generator_goes_on_from_batch_to_batch() -> None:
    generator, images = seeded(0), pictures(8, 16, 12)
    for augmented in (
        lambda: shift(images, generator, most=3, flip=True),
        lambda: resized_crop(images, generator, size=9),
    ):
        assert not torch.equal(augmented(), augmented())


# Random resized crops


def scaled(image: Tensor, top: int, left: int, tall: int, wide: int, size: int) -> Tensor:
    """The obvious way: cut it out, and let torch scale it."""
    part = image[None, :, top : top + tall, left : left + wide].float()
    return nnf.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]


def boxes(batch: int, height: int, width: int, seed: int) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of each image."""
    found = crop_boxes(batch, height, width, seeded(seed))
    for values in found:
        assert torch.equal(values, values.round())
    return [tuple(map(int, each)) for each in zip(*(values.tolist() for values in found))]  # type: ignore[misc]


@given(st.integers(4, 40), st.integers(4, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_a_resized_crop_is_the_cut_that_torch_scales(
    height: int, width: int, size: int, channels: int, seed: int
) -> None:
    images = pictures(6, height, width, channels)
    result = resized_crop(images, seeded(seed), size=size)
    assert (result.shape, result.dtype) == ((6, channels, size, size), torch.float32)
    for image, box, ours in zip(images, boxes(6, height, width, seed), result):
        expected = scaled(image, *box, size)
        errors = [float((ours - each).abs().max()) for each in (expected, expected.flip(2))]
        assert min(errors) < 1e-3


def test_half_of_the_resized_crops_are_mirrored() -> None:
    count = 300
    images = pictures(count, 20, 16, 1)
    result = resized_crop(images, seeded(5), size=8)
    expected = torch.stack([scaled(i, *box, 8) for i, box in zip(images, boxes(count, 20, 16, 5))])
    straight = (result - expected).abs().amax((1, 2, 3)) < 1e-3
    mirrored = (result - expected.flip(3)).abs().amax((1, 2, 3)) < 1e-3
    assert bool((straight ^ mirrored).all())
    assert abs(int(mirrored.sum()) - count / 2) < 5 * math.sqrt(count) / 2


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_the_matrices_scale_as_torch_does(data: st.DataObject) -> None:
    source, size = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    lengths = data.draw(st.lists(st.integers(1, source), min_size=1, max_size=4))
    starts = [data.draw(st.integers(0, source - length)) for length in lengths]
    matrices = resampling(torch.tensor(starts).float(), torch.tensor(lengths).float(), source, size)
    assert matrices.shape == (len(lengths), size, source)
    values = 255 * torch.rand(source, generator=seeded(0))
    for matrix, start, length in zip(matrices, starts, lengths):
        # As two equal columns: where one side of the result alone is 1, torch 2.15 scales wrongly on the CPU.
        cut = values[start : start + length, None].repeat(1, 2)[None, None]
        expected = nnf.interpolate(cut, (size, 2), mode="bilinear", antialias=True)[0, 0, :, 0]
        torch.testing.assert_close(matrix @ values, expected, rtol=0, atol=1e-3)
        outside = torch.ones(source, dtype=torch.bool)
        outside[start : start + length] = False
        assert not matrix[:, outside].any()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_boxes_lie_inside_and_have_allowed_areas_and_ratios(height: int, width: int, seed: int) -> None:
    fallback = largest(height, width)
    for top, left, tall, wide in boxes(20, height, width, seed):
        assert 0 <= top <= top + tall <= height
        assert 0 <= left <= left + wide <= width
        assert min(tall, wide) >= 1
        if (tall, wide) == fallback:
            continue
        # Each side was rounded: within half a pixel of it there are sides of an allowed area, and of an allowed ratio.
        assert (tall + 0.5) * (wide + 0.5) >= 0.08 * height * width
        assert (tall - 0.5) * (wide - 0.5) <= height * width
        assert (wide + 0.5) / (tall - 0.5) >= 3 / 4
        assert (wide - 0.5) / (tall + 0.5) <= 4 / 3


def largest(height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest box of a ratio between 3/4 and 4/3, in whole pixels: the obvious search."""
    ratios = [3 / 4 + (4 / 3 - 3 / 4) * step / 2000 for step in range(2001)]
    area, ratio = max((min(width, height * r) * min(height, width / r), r) for r in ratios)
    wide = math.sqrt(area * ratio)
    return round(wide / ratio), round(wide)


@pytest.mark.parametrize("height", [1, 2, 3, 4])
@pytest.mark.parametrize("upright", [False, True])
def test_where_no_draw_fits_the_box_is_the_largest_central_one(height: int, upright: bool) -> None:
    """100 pixels long, so that the smallest area allowed is too high for the image at every ratio."""
    shape = (100, height) if upright else (height, 100)
    expected = largest(*shape)
    assert expected == ((4 * height + 1) // 3, height)[:: 1 if upright else -1]
    for top, left, tall, wide in boxes(30, *shape, seed=0):
        assert (tall, wide) == expected
        assert abs((shape[0] - tall - top) - top) <= 1
        assert abs((shape[1] - wide - left) - left) <= 1


@pytest.mark.parametrize("shape", [(64, 64), (40, 100), (100, 40)])
def test_boxes_are_drawn_as_one_by_one(shape: tuple[int, int]) -> None:
    """Area, ratio and place beside those of a plain loop: means within five standard errors."""
    height, width = shape
    count, random = 4000, seeded(7)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random, dtype=torch.float64))

    def one() -> tuple[float, ...]:
        for _ in range(10):
            area, ratio = draw(0.08, 1) * height * width, math.exp(draw(math.log(3 / 4), math.log(4 / 3)))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 1 <= wide <= width and 1 <= tall <= height:
                top, left = int(draw(0, height - tall + 1)), int(draw(0, width - wide + 1))
                return top, left, tall, wide
        tall, wide = largest(height, width)
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def figures(each: list[tuple[float, ...]]) -> Tensor:
        top, left, tall, wide = torch.tensor(each, dtype=torch.float64).T
        return torch.stack([top, left, tall * wide, (wide / tall).log(), tall])

    ours, theirs = figures(boxes(count, height, width, seed=3)), figures([one() for _ in range(count)])  # type: ignore[arg-type]
    error = ((ours.var(1) + theirs.var(1)) / count).sqrt()
    assert bool(((ours.mean(1) - theirs.mean(1)).abs() < 5 * error).all())


# The middle


@given(st.integers(1, 12), st.integers(1, 12), st.data())
@settings(max_examples=40, deadline=None)
def test_the_centre_crop_is_the_middle(height: int, width: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(height, width)))
    images = pictures(2, height, width)
    middle = centre_crop(images, size)
    assert middle.shape == (2, 3, size, size)
    top, left = (height - size) // 2, (width - size) // 2
    for y in range(size):
        for x in range(size):
            assert torch.equal(middle[:, :, y, x], images[:, :, top + y, left + x])
    assert 0 <= (height - size - top) - top <= 1
    assert 0 <= (width - size - left) - left <= 1
