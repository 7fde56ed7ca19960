"""The image store."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_mcl.data import ImageStore
from fewshot_mcl.data.store import allocate_images


def store(**changes: object) -> ImageStore:
    values: dict[str, object] = {
        "images": torch.arange(5 * 12, dtype=torch.uint8).view(5, 3, 2, 2), "labels": [1, 0, 1, 0, 2],
        "class_names": ["a", "b", "c"], "ids": ["p", "q", "r", "s", "t"],
    }  # fmt: skip
    values |= changes
    return ImageStore(values.pop("images"), values.pop("labels"), values.pop("class_names"), **values)


def test_is_sorted_by_class_stably() -> None:
    s = store()
    assert s.labels.tolist() == [0, 0, 1, 1, 2]
    assert s.ids == ("q", "s", "p", "r", "t")
    assert s.images[:, 0, 0, 0].tolist() == [12, 36, 0, 24, 48]
    assert s.images.is_contiguous(memory_format=torch.channels_last)
    assert (len(s), s.num_classes, s.shape, s.class_sizes.tolist()) == (5, 3, (3, 2, 2), [2, 2, 1])


def test_what_is_given_sorted_stays_where_it_lies() -> None:
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    assert ImageStore(images, [0, 0, 1, 1], ["a", "b"]).images.data_ptr() == images.data_ptr()


def test_sorting_by_a_copy_does_not_change_the_fingerprint() -> None:
    images, labels = torch.randint(256, (1500, 3, 2, 3), dtype=torch.uint8), torch.arange(1500) % 7
    order = torch.argsort(labels, stable=True)
    copied, given_sorted = (
        ImageStore(*each, [str(c) for c in range(7)]) for each in ((images, labels), (images[order], labels[order]))
    )
    assert torch.equal(copied.images, given_sorted.images)
    assert copied.fingerprint == given_sorted.fingerprint


def test_fingerprint_sees_every_pixel_label_and_name() -> None:
    same, images = store().fingerprint, torch.arange(5 * 12, dtype=torch.uint8).view(5, 3, 2, 2)
    assert store().fingerprint == same
    images[3, 1, 1, 1] += 1
    changed = [store(images=images), store(labels=[1, 0, 1, 2, 2]), store(class_names=["a", "b", "d"])]
    assert len({same, *(s.fingerprint for s in changed)}) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.zeros(5, 3, 2, 2)}, "uint8"),
        ({"images": torch.zeros(5, 2, 2, dtype=torch.uint8)}, "N, C, H, W"),
        ({"labels": [0, 1]}, "5 images but labels"),
        ({"labels": [0, 1, 2, 3, 0]}, r"\[0, 3\)"),
        ({"labels": [0, -1, 2, 1, 0]}, r"\[0, 3\)"),
        ({"ids": ["p"]}, "1 ids"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        store(**changes)


def test_large_images_are_kept_on_disk() -> None:
    small, mapped = allocate_images((4, 1, 2, 2)), allocate_images((4, 1, 2, 2), memory_share=1e-12)
    assert not isinstance(small, np.memmap)
    assert isinstance(mapped, np.memmap)
    mapped[:] = 7
    s = ImageStore(mapped, [0, 0, 1, 1], ["a", "b"])
    assert s.images.unique().tolist() == [7]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.data())
def test_gathered_images_are_those_of_the_rows(
    count: int, channels: int, height: int, width: int, data: st.DataObject
) -> None:
    shape = (count, channels, height, width)
    mapped = allocate_images(shape, memory_share=1e-12)
    mapped[:] = np.random.default_rng(0).integers(256, size=shape)
    images = torch.from_numpy(np.array(mapped))
    last = images.contiguous(memory_format=torch.channels_last)
    stores = [ImageStore(each, torch.zeros(count), ["a"]) for each in (images, mapped, last, images.mT.contiguous().mT)]
    for _ in range(4):  # batches of any length follow one another
        rows = data.draw(st.lists(st.integers(0, count - 1), max_size=12))
        for s in stores:
            found = s.gather(torch.tensor(rows, dtype=torch.int64))
            assert (found.dtype, found.shape) == (torch.uint8, (len(rows), *shape[1:]))
            assert found.tolist() == [images[row].tolist() for row in rows]


def test_gathering_uses_one_buffer_in_the_layout_of_the_store_and_leaves_the_images_alone() -> None:
    s = store()
    before = s.images.clone()
    first = s.gather(torch.tensor([4, 0, 2]))
    assert first.stride() == s.images.stride()
    second = s.gather(torch.tensor([1, 1]))
    assert first.data_ptr() == second.data_ptr()
    second.zero_()
    assert torch.equal(s.images, before)


@pytest.mark.parametrize("row", [-1, 5])
def test_rows_that_do_not_exist_are_a_fault(row: int) -> None:
    with pytest.raises(IndexError):
        store().gather(torch.tensor([0, row]))
