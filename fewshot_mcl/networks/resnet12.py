"""ResNet-12, the residual network of few-shot learning.

The shape is that of Oreshkin et al., "TADAM" (arXiv 1805.10123); the 0.1 slope, the max-pool after every block and the wider
variant are those of Lee et al., "Meta-Learning with Differentiable Convex Optimization" (arXiv 1904.03758), here without
their DropBlock.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fewshot_mcl.errors import unknown
from fewshot_mcl.networks.backbone import Backbone, require_size
from fewshot_mcl.networks.resnet import Residual, conv_norm

WIDTHS = ("64-128-256-512", "64-160-320-640")
SLOPE = 0.1


def _block(in_channels: int, width: int) -> nn.Sequential:
    """Maps (B, C, H, W) -> (B, width, H/2, W/2)."""
    layers = conv_norm(in_channels, width, 3)
    for _ in range(2):
        layers += [nn.LeakyReLU(SLOPE, inplace=True), *conv_norm(width, width, 3)]
    residual = Residual(nn.Sequential(*layers), in_channels, width, activation=nn.LeakyReLU(SLOPE, inplace=True))
    return nn.Sequential(residual, nn.MaxPool2d(2))


def _initialise(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / (1 + slope^2) / (out_channels * kernel area)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")


class ResNet12(Backbone):
    """Four stages, each one residual block of three 3x3 convolutions and a max-pool; average pooling.

    Stages are 64, 128, 256 and 512 channels wide, so that features are (B, 512). With `widths` "64-160-320-640" they are
    (B, 640). The shortcut is a 1x1 convolution and batch norm.

    Args:
        num_classes: outputs of the classifier; None for none.
        in_channels: channels of the images.
        image_size: side of the images; the feature does not depend on it, but too small ones are refused.
        widths: one of `WIDTHS`.

    Raises:
        UserError: for other widths, or images of which four poolings leave nothing.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        in_channels: int = 3,
        image_size: int | None = None,
        widths: str = WIDTHS[0],
    ) -> None:
        require_size("resnet12", image_size, 16)
        if widths not in WIDTHS:
            raise unknown("widths", widths, WIDTHS)
        channels = [in_channels, *map(int, widths.split("-"))]
        super().__init__(
            [_block(before, after) for before, after in pairwise(channels)],
            stage_channels=channels[1:],
            feature_dim=channels[-1],
            num_classes=num_classes,
            initialise=_initialise,
        )
