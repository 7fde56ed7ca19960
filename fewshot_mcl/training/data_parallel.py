"""Images that are split over processes: a step whose gradients are those of the whole batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from fewshot_mcl import parallel


class Step(nn.Module):
    """A step of training as a module, which is what DistributedDataParallel wants."""

    def __init__(self, modules: nn.ModuleDict, step: Callable[[int], Any]) -> None:
        super().__init__()
        self.all, self.step = modules, step

    def forward(self, number: int) -> Any:
        """What the task makes of step `number`."""
        return self.step(number)


def step_of(modules: nn.ModuleDict, step: Callable[[int], Any]) -> Callable[[int], Any]:
    """`step`, after whose backward the gradients of `modules` are those of the whole batch."""
    if parallel.parts() == 1:
        return step
    # Banks and batch statistics move in the same way everywhere, so they are not sent.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a newer name, which torch 2.6 lacks
        return nn.parallel.DistributedDataParallel(Step(modules, step), broadcast_buffers=False)
