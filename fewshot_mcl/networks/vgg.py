"""VGG-16 with batch norm and a single linear layer.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556).
"""

from __future__ import annotations

from torch import nn

from fewshot_mcl.networks.backbone import Backbone, require_size

GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and number of convolutions


def _group(in_channels: int, width: int, count: int) -> nn.Sequential:
    """Maps (B, C, H, W) -> (B, width, H/2, W/2)."""
    layers: list[nn.Module] = []
    for number in range(count):
        convolution = nn.Conv2d(width if number else in_channels, width, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _initialise(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / (out_channels * kernel area), linear normal with 0.01^2, biases zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)


class VGG16(Backbone):
    """Five stages, each a group of 3x3 convolutions (with bias, batch norm, ReLU) and a max-pool; features (B, 512).

    Images of 32 pixels end at 1x1; larger ones are averaged.

    Args:
        num_classes: outputs of the classifier; None for none.
        in_channels: channels of the images.
        image_size: side of the images; the feature does not depend on it, but too small ones are refused.

    Raises:
        UserError: for images of which five poolings leave nothing.
    """

    def __init__(self, num_classes: int | None = None, in_channels: int = 3, image_size: int | None = None) -> None:
        require_size("vgg16", image_size, 32)
        widths = [width for width, _ in GROUPS]
        super().__init__(
            [_group(before, width, count) for before, (width, count) in zip([in_channels, *widths], GROUPS)],
            stage_channels=widths,
            feature_dim=widths[-1],
            num_classes=num_classes,
            initialise=_initialise,
        )
