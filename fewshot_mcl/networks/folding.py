"""A network made ready to be looked through, not trained: equal values, less work."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CPU_BATCH, GPU_BATCH = 16, 512  # a batch whose maps stay in the cache of a processor; one that fills a GPU


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode, its weights channels-last and batch norm folded into convolutions.

    Batch norm in evaluation is a constant scale and shift of each channel, so where it follows a convolution in an
    `nn.Sequential` the weights take it over. Features differ from those of the network by rounding (1e-6).
    """
    network = copy.deepcopy(network).eval()
    for modules in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for number in range(len(modules) - 1):
            convolution, norm = modules[number], modules[number + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                modules[number] = fuse_conv_bn_eval(convolution, norm)
                modules[number + 1] = nn.Identity()
    return network.to(memory_format=torch.channels_last)


def batch_for(device: torch.device) -> int:
    """Images at a time that a network looks through fastest."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH
