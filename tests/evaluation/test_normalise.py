"""Normalised images: equal to the formula in float64, whatever layout they come in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_mcl.evaluation.fewshot import Normaliser, normalise


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 4), channels=st.integers(1, 4), height=st.integers(1, 6), width=st.integers(1, 6),
    layout=st.sampled_from(["rows", "channels last", "part", "turned"]), kind=st.sampled_from([torch.uint8, torch.float32]),
)  # fmt: skip
def test_is_the_formula(batch: int, channels: int, height: int, width: int, layout: str, kind: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, channels, height, width), dtype=torch.uint8, generator=random).to(kind)
    if layout == "channels last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "part":
        images = images[:, :, height // 2 :, : (width + 1) // 2]
    elif layout == "turned":
        images = images.mT
    before = images.clone()
    mean, std = torch.rand(channels, generator=random), torch.rand(channels, generator=random) + 0.1
    result = normalise(images, mean, std)
    expected = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_is_a_tensor_of_its_own_in_the_type_of_the_statistics(layout: torch.memory_format) -> None:
    images = torch.full((2, 3, 4, 4), 255.0, dtype=torch.float64).contiguous(memory_format=layout)
    statistics = torch.full((3,), 0.5, dtype=torch.float64)
    result = normalise(images, statistics, statistics)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, torch.ones_like(result), rtol=0, atol=1e-12)
    assert bool((images == 255).all())


def test_a_normaliser_gives_the_same_for_batches_of_any_shape_in_one_buffer() -> None:
    mean, std = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.3, 0.2, 0.1])
    kept = Normaliser(mean, std)
    for shape in [(4, 3, 5, 7), (2, 3, 5, 7), (4, 3, 7, 5), (0, 3, 7, 5), (5, 3, 7, 5), (1, 3, 1, 1)]:
        images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(kept(images), normalise(images, mean, std))
    pair = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert kept(pair).data_ptr() == kept(pair[:1]).data_ptr()
    assert normalise(pair, mean, std).data_ptr() != kept(pair).data_ptr()
