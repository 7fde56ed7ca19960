"""Peers that are split over processes: gradients that several of them add to."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from fewshot_mcl import parallel
from fewshot_mcl.networks import PeerNetwork


@torch.no_grad()
def add_up(modules: nn.ModuleDict) -> None:
    """After a backward pass, make the gradients of what several processes have those of one process.

    The peers of each process send their own part into the stages that they share with others: these get the sum. The objective
    is computed alike in every process, and so are its gradients but for rounding, which would grow from step to step: these
    get the mean. Where peers are not split nothing is done.

    Args:
        modules: "peers", and others that are alike in all processes.
    """
    if not parallel.split_peers():
        return
    peers = cast(PeerNetwork, modules["peers"])
    summed = peers.parameters_of_several()
    averaged = [p for name, module in modules.items() if name != "peers" for p in module.parameters()]
    parameters = [*summed, *averaged]
    here = next((p for p in parameters if not p.is_meta), None)
    if here is None:
        return
    sizes = [p.numel() for p in parameters]
    nothing = here.new_zeros(())
    total = parallel.added(
        torch.cat([(nothing.expand(p.shape) if p.grad is None else p.grad).flatten() for p in parameters])
    )
    total[sum(sizes[: len(summed)]) :] /= parallel.world()
    for parameter, gradient in zip(parameters, total.split(sizes)):
        if parameter.grad is not None:
            parameter.grad.copy_(gradient.view_as(parameter))
