"""Conv4-64, the four-block network of Snell et al., "Prototypical Networks for Few-shot Learning" (arXiv 1703.05175)."""

from __future__ import annotations

from torch import nn

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks.backbone import Backbone

WIDTH = 64


def _block(in_channels: int) -> nn.Sequential:
    # Max-pooling commutes with ReLU, value and gradient alike; pooling first leaves ReLU a quarter of the work.
    return nn.Sequential(
        nn.Conv2d(in_channels, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.MaxPool2d(2), nn.ReLU(inplace=True)
    )


class Conv4(Backbone):
    """Four blocks of convolution, batch norm, max-pool and ReLU; the feature is the flattened last map: 1600 long at 84x84.

    Raises:
        UserError: for images smaller than 16x16, of which four poolings leave nothing.
    """

    default_image_size = 84

    def __init__(self, num_classes: int | None = None, in_channels: int = 3, image_size: int = 84) -> None:
        side = image_size // 16
        if side < 1:
            raise UserError(
                f"conv4 halves an image four times: images must be at least 16 pixels wide, not {image_size}."
            )
        stages = [_block(channels) for channels in (in_channels, WIDTH, WIDTH, WIDTH)]
        super().__init__(
            stages,
            stage_channels=(WIDTH,) * 4,
            feature_dim=WIDTH * side * side,
            num_classes=num_classes,
            pool="flatten",
        )
