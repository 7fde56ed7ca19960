"""Batch norm over the images of all processes, or with statistics that do not move. torch's SyncBatchNorm refuses the CPU."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fewshot_mcl import parallel

BatchNorm = Literal["synchronised", "per-process", "frozen"]


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are of the whole batch, whichever process its images are in.

    Attributes:
        always: compute as several processes do where there is one, too: to find out how long that takes.
    """

    always = False

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) of this process -> the same shape."""
        if not self.training or (parallel.parts() == 1 and not self.always):
            return super().forward(input)
        count = parallel.total(input.new_tensor(input.numel() / input.shape[1]))
        mean = parallel.total_with_gradient(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        variance = parallel.total_with_gradient(centred.square().sum((0, 2, 3))) / count
        self._move(mean.detach(), variance.detach() * (count / (count - 1)))
        result = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            result = result * self.weight[:, None, None] + self.bias[:, None, None]
        return result

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean += share * (mean.to(self.running_mean.dtype) - self.running_mean)
        self.running_var += share * (variance.to(self.running_var.dtype) - self.running_var)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm by its running statistics, in training too."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """Never in training mode."""
        super().train(False)
        return self


KINDS: dict[str, type[nn.BatchNorm2d]] = {"synchronised": SynchronisedBatchNorm, "frozen": FrozenBatchNorm}


def set_batch_norm(network: nn.Module, kind: BatchNorm) -> None:
    """Make every `BatchNorm2d` of a network one of that kind; its values stay."""
    if kind not in KINDS or (kind == "synchronised" and parallel.parts() == 1):
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = KINDS[kind]
            module.train(module.training)
