"""HCGNet-A1: Yang et al., "Gated Convolutional Networks with Hybrid Connectivity for Image Classification" (arXiv 1908.09699).

A hybrid block concatenates like a DenseNet, but the module that makes new maps (SMG) fades part of what it squeezed out of its
input and adds a summary of two receptive fields. Linear maps of pooled vectors are 1x1 convolutions of maps of one position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewshot_mcl.networks.backbone import Backbone, require_size
from fewshot_mcl.networks.densenet import norm_relu_conv

GROWTHS, MODULES, FIRST = (12, 24, 36), 8, 24


class _AttentivePool(nn.Module):
    """Maps (B, C, H, W) -> (B, C, 1, 1): an average over positions with weights that a 1x1 convolution scores."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        weights = self.score(maps).flatten(2).softmax(2)  # (B, 1, positions)
        return (maps.flatten(2) @ weights.transpose(1, 2))[..., None]


def _squeeze(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.BatchNorm2d(width), nn.Tanh())


class _ForgetAndUpdate(nn.Module):
    """Maps x (B, C, H, W) -> x * forget + update, of the same shape; forget and update are vectors (B, C, 1, 1).

    The forget gate reads a summary of x. The update mixes, channel by channel, the summaries of two depthwise convolutions of x,
    of which one is dilated; it is the summaries that are added, so each channel is raised alike at all positions.

    Args:
        channels: C.
        forget_width, update_width: hidden widths of the two gates.
    """

    def __init__(self, channels: int, forget_width: int, update_width: int) -> None:
        super().__init__()
        self.pool, self.near_pool, self.far_pool = (_AttentivePool(channels) for _ in range(3))
        self.forget = nn.Sequential(
            _squeeze(channels, forget_width), nn.Conv2d(forget_width, channels, 1), nn.Sigmoid()
        )
        self.near = norm_relu_conv(channels, channels, 3, groups=channels)
        self.far = norm_relu_conv(channels, channels, 3, dilation=2, groups=channels)
        self.compare = _squeeze(2 * channels, update_width)
        self.near_score, self.far_score = (nn.Conv2d(update_width, channels, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        near, far = self.near_pool(self.near(x)), self.far_pool(self.far(x))
        hidden = self.compare(torch.cat((near, far), 1))
        shares = torch.stack((self.near_score(hidden), self.far_score(hidden))).softmax(0)
        return x * self.forget(self.pool(x)) + shares[0] * near + shares[1] * far


class _SMG(nn.Module):
    """Maps (B, C, H, W) -> (B, C + growth, H, W): the input, and new maps computed from it."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm_relu_conv(in_channels, 4 * growth, 1),
            norm_relu_conv(4 * growth, growth, 3, groups=4),
            _ForgetAndUpdate(growth, growth // 2, growth),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


def _transition(in_channels: int) -> nn.Sequential:
    """Maps (B, C, H, W) -> (B, C/2, H/2, W/2), by way of 3C/4 channels."""
    out_channels = in_channels // 2
    middle = in_channels - (in_channels - out_channels) // 2
    return nn.Sequential(
        norm_relu_conv(in_channels, middle, 1),
        norm_relu_conv(middle, out_channels, 3, stride=2),
        _ForgetAndUpdate(out_channels, out_channels // 4, 2 * out_channels // 4),
    )


class HCGNetA1(Backbone):
    """Three stages, each a hybrid block of eight modules, the first two with the transition that follows; features (B, 414).

    The first convolution has no batch norm or ReLU after it. The last stage ends with both. PyTorch's own initialisation.

    Args:
        num_classes: outputs of the classifier; None for none.
        in_channels: channels of the images.
        image_size: side of the images; the feature does not depend on it, but too small ones are refused.

    Raises:
        UserError: for images that are a single position before the last stride.
    """

    def __init__(self, num_classes: int | None = None, in_channels: int = 3, image_size: int | None = None) -> None:
        require_size("hcgnet-a1", image_size, 3)
        channels, stages, stage_channels = FIRST, [], []
        modules: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
        for growth in GROWTHS:
            modules += [_SMG(channels + number * growth, growth) for number in range(MODULES)]
            channels += MODULES * growth
            if growth != GROWTHS[-1]:
                modules.append(_transition(channels))
                channels //= 2
            else:
                modules += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            stages.append(nn.Sequential(*modules))
            stage_channels.append(channels)
            modules = []
        super().__init__(stages, stage_channels=stage_channels, feature_dim=channels, num_classes=num_classes)
