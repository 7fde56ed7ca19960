"""The image store."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
    assert (len(s), s.num_classes, s.shape, s.class_sizes.tolist()) == (5, 3, (3, 2, 2), [2, 2, 1])


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


def test_gathered_images_are_the_images_of_those_rows_until_the_next_call() -> None:
    s = store()
    first = s.gather(torch.tensor([4, 0, 4]))
    assert torch.equal(first, s.images[[4, 0, 4]])
    second = s.gather(torch.tensor([2, 1]))
    assert torch.equal(second, s.images[[2, 1]])
    assert first.data_ptr() == second.data_ptr()
    larger = s.gather(torch.arange(5).flip(0))
    assert torch.equal(larger, s.images.flip(0))
    with pytest.raises(IndexError):
        s.gather(torch.tensor([5]))
