"""Backbones by name, and peers of any of them. Importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewshot_mcl.errors import unknown

if TYPE_CHECKING:
    from fewshot_mcl.networks.backbone import Backbone
    from fewshot_mcl.networks.peers import PeerNetwork, PeerOutputs

__all__ = ["BACKBONES", "Backbone", "PeerNetwork", "PeerOutputs", "create_backbone"]

BACKBONES = {  # name -> module:class
    "conv4": "conv4:Conv4",
    "resnet12": "resnet12:ResNet12",
    "resnet18": "resnet:ResNet18",
    "resnet32": "resnet:ResNet32",
    "resnet34": "resnet:ResNet34",
    "resnet110": "resnet:ResNet110",
    "vgg16": "vgg:VGG16",
    "densenet40-12": "densenet:DenseNet40",
    "hcgnet-a1": "hcgnet:HCGNetA1",
    "efficientnet-lite0": "efficientnet_lite:EfficientNetLite0",
}
"""Where the class of each backbone stands, by the name that users type.

Example:
    >>> BACKBONES["conv4"]
    'conv4:Conv4'
"""
PRETRAINED = ("efficientnet-lite0",)  # those that `weights = "imagenet"` can start
_LAZY = {"Backbone": "backbone", "PeerNetwork": "peers", "PeerOutputs": "peers"}


def create_backbone(name: str, num_classes: int | None = None, **options: Any) -> Backbone:
    """A freshly initialised backbone.

    Args:
        name: one of `BACKBONES`, or `torchvision/NAME` or `timm/NAME` for a model of those libraries.
        num_classes: outputs of the classifier; None for a network that ends at its features.
        **options: `in_channels` (default 3) and `image_size` (default the backbone's own); `widths` for resnet12;
            `weights`: "imagenet" for one of `PRETRAINED`, a local file for a library's model.

    Raises:
        UserError: if there is no such backbone, or images are too small for it.

    Example:
        >>> import torch
        >>> network = create_backbone("conv4", num_classes=10, in_channels=1, image_size=28)
        >>> network(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> network.features(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 64])
    """
    if "/" in name:
        return import_module(f"{__name__}.external").External(name, num_classes=num_classes, **options)
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    module, cls = BACKBONES[name].split(":")
    return getattr(import_module(f"{__name__}.{module}"), cls)(num_classes=num_classes, **options)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
