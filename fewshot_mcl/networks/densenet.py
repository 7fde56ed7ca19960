"""DenseNet-40-12 with bottlenecks and compression.

Huang et al., "Densely Connected Convolutional Networks" (arXiv 1608.06993), the variant they call DenseNet-BC; it has a fifth
of the parameters of the plain network of that depth and growth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewshot_mcl.networks.backbone import Backbone, require_size

GROWTH, LAYERS, BLOCKS = 12, 6, 3


def norm_relu_conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Batch norm, ReLU and a convolution without bias that keeps the size but for its stride: pre-activation order."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), convolution)


class _Layer(nn.Module):
    """Maps (B, C, H, W) -> (B, C + growth, H, W): the input, and new maps computed from it."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(norm_relu_conv(in_channels, 4 * GROWTH, 1), norm_relu_conv(4 * GROWTH, GROWTH, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


def _initialise(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / fan_in; the linear bias zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class DenseNet40(Backbone):
    """Three stages, each a dense block of six layers, the first two with the transition that follows; features (B, 132).

    The first convolution has no batch norm or ReLU after it: the first dense layer begins with them. A transition halves
    channels and resolution. The last stage ends with batch norm and ReLU.

    Args:
        num_classes: outputs of the classifier; None for none.
        in_channels: channels of the images.
        image_size: side of the images; the feature does not depend on it, but too small ones are refused.

    Raises:
        UserError: for images of which two poolings leave nothing.
    """

    def __init__(self, num_classes: int | None = None, in_channels: int = 3, image_size: int | None = None) -> None:
        require_size("densenet40-12", image_size, 4)
        channels, stages, stage_channels = 2 * GROWTH, [], []
        modules: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
        for block in range(BLOCKS):
            modules += [_Layer(channels + number * GROWTH) for number in range(LAYERS)]
            channels += LAYERS * GROWTH
            if block < BLOCKS - 1:
                modules += [norm_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
            else:
                modules += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            stages.append(nn.Sequential(*modules))
            stage_channels.append(channels)
            modules = []
        super().__init__(
            stages, stage_channels=stage_channels, feature_dim=channels, num_classes=num_classes, initialise=_initialise
        )
