"""What a network costs: its parameters, and the multiply-adds of one image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Counts:
    """What `count` found.

    Attributes:
        parameters: numbers that are learned, each counted once however often it is used.
        multiply_adds: of one image's forward.
    """

    parameters: int
    multiply_adds: int


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode for a while: one image must not move running statistics, nor can batch norm train on it."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def count(network: nn.Module, image_size: int, in_channels: int = 3) -> Counts:
    """Parameters and multiply-adds of a backbone, or of peers with all that they share counted once.

    Multiply-adds are those of the weights of `Conv2d` and `Linear` modules at the sizes that they really see: no bias, norm,
    activation or pooling, and no product of two computed tensors, such as attention. A module that runs twice counts twice.

    Args:
        network: takes images (1, in_channels, image_size, image_size).
    """
    total = 0

    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        # Every output value sums as many products as its filter has weights.
        total += output.numel() * module.weight[0].numel()

    handles = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    like = next(network.parameters(), torch.empty(0))
    try:
        with _eval_mode(network), torch.no_grad():
            network(torch.zeros(1, in_channels, image_size, image_size, dtype=like.dtype, device=like.device))
    finally:
        for handle in handles:
            handle.remove()
    return Counts(sum(p.numel() for p in network.parameters()), total)
