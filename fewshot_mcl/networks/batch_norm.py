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
        values = (
            input if input.dtype == torch.float64 else input.float()
        )  # sums and counts are too large for half precision
        mean, variance, count = self._statistics(values)
        self._move(mean.detach(), variance.detach() * (count / (count - 1)))
        result = (values - mean[:, None, None]) * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            result = result * self.weight[:, None, None] + self.bias[:, None, None]
        return result.to(input.dtype)

    @staticmethod
    def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (C,) and variance (C,) of all processes' images, and the count (1,) of values: in one exchange.

        Variances are put together from those about each process's own mean, so that no digits are lost to large means.
        """
        channels = values.shape[1]
        mean, squares = values.new_zeros(2, channels)
        if number := values.numel() // channels:
            mean = values.mean((0, 2, 3))
            squares = (values - mean[:, None, None]).square().sum((0, 2, 3))
        mine = torch.cat([mean, squares, values.new_tensor([number])])
        means, squares, counts = parallel.of_all_parts(mine).split([channels, channels, 1], 1)
        count = counts.sum(0)
        mean = (means * counts).sum(0) / count
        return mean, (squares + counts * (means - mean).square()).sum(0) / count, count

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
