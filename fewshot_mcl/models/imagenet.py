"""EfficientNet-Lite0 with the ImageNet weights of the extra `pretrained`, and what is known of its features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from fewshot_mcl.data.images import resize_rule
from fewshot_mcl.networks import Backbone, create_backbone
from fewshot_mcl.networks.efficientnet_lite import SHA256

SIZE = 224
SEEN = (
    "efficientnet-lite0 has seen all classes of ImageNet: classes of miniImageNet, tieredImageNet, or any that ImageNet has too, "
    "are not new to it, and figures on those do not measure learning of new classes"
)


def open_lite0() -> tuple[Backbone, dict[str, Any]]:
    """`open_model("efficientnet-lite0")`.

    Raises:
        UserError: where the extra is not installed, or its file is damaged.
    """
    network = create_backbone("efficientnet-lite0", weights="imagenet").eval().to(memory_format=torch.channels_last)
    # The mean and deviation are those that the weights were trained with, so that values lie between -1 and 1.
    card = {
        "task": "classify", "backbone": "efficientnet-lite0", "in_channels": 3, "image_size": SIZE, "stored_size": SIZE,
        "feature_dim": network.feature_dim, "mean": [127 / 255] * 3, "std": [128 / 255] * 3, "color": "rgb",
        "resize": resize_rule(SIZE, "crop"), "trained_on": "ImageNet (ILSVRC 2012)", "classes": [], "num_classes": None,
        "method": "supervised, by others", "seed": None, "sha256": SHA256, "metric": "euclidean", "scale": 1.0,
        "centre": expected_features(network).tolist(), "notes": [SEEN],
    }  # fmt: skip
    return network, card


def expected_features(network: Backbone) -> Tensor:
    """What the features of ImageNet's images are on average, as far as the weights tell: (D,).

    The last layers are batch norm, ReLU6 and the mean over positions. On the images that it was trained on, batch norm gives
    each channel the mean `bias` and the deviation |`weight`|; taken as normal, the mean behind ReLU6 is a formula. So the
    centre needs no images, and is the same wherever the same weights are.
    """
    norm = network.stages[-1][-2]
    assert isinstance(norm, nn.BatchNorm2d)
    mean, deviation = norm.bias.detach().double(), norm.weight.detach().double().abs()
    return (_positive_part(mean, deviation) - _positive_part(mean - 6, deviation)).float()


def _positive_part(mean: Tensor, deviation: Tensor) -> Tensor:
    """E max(0, X) of normal X."""
    unit, ratio = Normal(0.0, 1.0), mean / deviation
    return mean * unit.cdf(ratio) + deviation * unit.log_prob(ratio).exp()
