"""Which part of a row of things belongs to which process."""

from __future__ import annotations

from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_mcl import parallel
from fewshot_mcl.data import augment


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 20))
def test_parts_are_consecutive_and_even(count: int, processes: int, unit: int) -> None:
    found = []
    for number in range(processes):
        with (
            mock.patch.object(parallel, "rank", return_value=number),
            mock.patch.object(parallel, "world", return_value=processes),
        ):
            found.append(parallel.part(count, unit))
    assert [i for each in found for i in range(count)[each]] == list(range(count))
    assert all(each.start % unit == 0 or each.start == count for each in found)
    units = [-(-(each.stop - each.start) // unit) for each in found]
    assert max(units) - min(units) <= 1


@settings(deadline=None)
@given(st.integers(1, 12), st.data())
def test_a_part_of_a_batch_is_augmented_as_in_all_of_it(batch: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, batch))
    part = slice(start, data.draw(st.integers(start, batch)))
    images = torch.randint(0, 256, (batch, 3, 10, 10), dtype=torch.uint8)
    for change in (
        lambda x, of: augment.shift(x, torch.Generator().manual_seed(1), most=2, flip=True, of=of),
        lambda x, of: augment.resized_crop(x, torch.Generator().manual_seed(1), size=8, of=of),
    ):
        torch.testing.assert_close(change(images[part], (part, batch)), change(images, None)[part])
