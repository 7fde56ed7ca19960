"""Residual networks: ResNet-32 and -110 for images of 32 pixels, ResNet-18 and -34 for 224.

He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385). The two small ones follow the code that MCL
published: projections where the shape changes, and a ResNet-110 of bottleneck blocks (1.2 million parameters, not 1.7).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fewshot_mcl.networks.backbone import Backbone, require_size


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size but for its stride, and batch norm."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)): (B, C, H, W) -> (B, C', H/stride, W/stride).

    The shortcut is the identity, or a 1x1 convolution and batch norm where the shape changes.
    """

    def __init__(
        self, body: nn.Module, in_channels: int, out_channels: int, stride: int = 1, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        same = in_channels == out_channels and stride == 1
        self.body = body
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))
        self.activation = nn.ReLU(inplace=True) if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


def basic(in_channels: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions; `width` channels leave."""
    first, second = conv_norm(in_channels, width, 3, stride), conv_norm(width, width, 3)
    return Residual(nn.Sequential(*first, nn.ReLU(inplace=True), *second), in_channels, width, stride)


def bottleneck(in_channels: int, width: int, stride: int) -> Residual:
    """1x1, 3x3 (which has the stride) and 1x1 convolutions; 4 `width` channels leave."""
    narrow, middle, wide = (
        conv_norm(in_channels, width, 1),
        conv_norm(width, width, 3, stride),
        conv_norm(width, 4 * width, 1),
    )
    body = nn.Sequential(*narrow, nn.ReLU(inplace=True), *middle, nn.ReLU(inplace=True), *wide)
    return Residual(body, in_channels, 4 * width, stride)


def initialise(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / (out_channels * kernel area)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet(Backbone):
    """First layers, then stages of residual blocks whose width doubles and whose resolution halves.

    Its stages are those of the residual blocks; the first layers belong to the first.

    Args:
        num_classes: outputs of the classifier; None for none.
        in_channels: channels of the images.
        image_size: side of the images; the feature does not depend on it, but too small ones are refused.

    Raises:
        UserError: for images that are a single position before the last stride.
    """

    name: ClassVar[str]
    blocks: ClassVar[tuple[int, ...]]  # of each stage
    width = 16  # of the first stage
    bottlenecks = False
    smallest = 3

    def __init__(self, num_classes: int | None = None, in_channels: int = 3, image_size: int | None = None) -> None:
        require_size(self.name, image_size, self.smallest)
        block = bottleneck if self.bottlenecks else basic
        channels, stages, stage_channels = self.width, [], []
        modules = self.first_layers(in_channels)
        for stage, count in enumerate(self.blocks):
            width = self.width * 2**stage
            for number in range(count):
                modules.append(block(channels, width, 2 if stage and not number else 1))
                channels = 4 * width if self.bottlenecks else width
            stages.append(nn.Sequential(*modules))
            stage_channels.append(channels)
            modules = []
        super().__init__(
            stages, stage_channels=stage_channels, feature_dim=channels, num_classes=num_classes, initialise=initialise
        )

    def first_layers(self, in_channels: int) -> list[nn.Module]:
        """Images (B, C, H, W) -> maps (B, width, H, W)."""
        return [*conv_norm(in_channels, self.width, 3), nn.ReLU(inplace=True)]


class ResNet32(ResNet):
    """Three stages of five basic blocks; features (B, 64)."""

    name, blocks = "resnet32", (5, 5, 5)


class ResNet110(ResNet):
    """Three stages of twelve bottleneck blocks; features (B, 256)."""

    name, blocks, bottlenecks = "resnet110", (12, 12, 12), True


class ResNet18(ResNet):
    """Four stages of two basic blocks after a convolution and a max-pool that each halve the image; features (B, 512)."""

    name, blocks, width, smallest = "resnet18", (2, 2, 2, 2), 64, 17

    def first_layers(self, in_channels: int) -> list[nn.Module]:
        """Images (B, C, H, W) -> maps (B, 64, H/4, W/4)."""
        return [*conv_norm(in_channels, self.width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]


class ResNet34(ResNet18):
    """As ResNet-18, with three, four, six and three blocks."""

    name, blocks = "resnet34", (3, 4, 6, 3)
