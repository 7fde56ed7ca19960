"""EfficientNet-Lite0 with the ImageNet weights of the extra `pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fewshot_mcl.data.images import resize_rule
from fewshot_mcl.networks import Backbone, create_backbone
from fewshot_mcl.networks.efficientnet_lite import SHA256
from fewshot_mcl.runs import files

BESIDE = Path(__file__).with_name("efficientnet-lite0.json")  # measured by benchmarks/pretrained.py on drawings
SIZE = 224
MEAN, STD = 127 / 255, 128 / 255  # of each channel, as in the training of the weights: values lie between -1 and 1
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
    beside = (
        files.read_json(BESIDE, "centre", "calibration") if BESIDE.exists() else {"centre": None, "calibration": None}
    )
    card = {
        "task": "classify", "backbone": "efficientnet-lite0", "in_channels": 3, "image_size": SIZE, "stored_size": SIZE,
        "feature_dim": network.feature_dim, "mean": [MEAN] * 3, "std": [STD] * 3, "color": "rgb",
        "resize": resize_rule(SIZE, "crop"), "trained_on": "ImageNet (ILSVRC 2012)", "classes": [], "num_classes": None,
        "method": "supervised, by others", "seed": None, "sha256": SHA256, "metric": "euclidean", "scale": 1.0,
        "centre": beside["centre"], "calibration": beside["calibration"], "notes": [SEEN],
    }  # fmt: skip
    return network, card
