"""What every backbone is: a list of stages, a pooling to one vector per image, and perhaps a linear classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fewshot_mcl.errors import UserError


class Backbone(nn.Module):
    """Stages, then pooling, then (where `num_classes` is given) a linear classifier.

    It knows nothing of peers, methods or tasks. A subclass passes its stages to this constructor and adds nothing else.

    Args:
        stages: modules applied in turn; the first takes images (B, C, H, W), the others feature maps.
        stage_channels: channels that leave each stage.
        feature_dim: length D of the vector after pooling.
        num_classes: outputs of the classifier; None for a network that ends at its features.
        pool: "average" (over positions) or "flatten" (positions are part of the feature).
        initialise: called on every module, classifier included, to replace PyTorch's own initialisation; None keeps it.

    Example:
        >>> import torch
        >>> small = Backbone(
        ...     [nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)],
        ...     stage_channels=(8, 16), feature_dim=16, num_classes=None,
        ... )
        >>> small(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        stage_channels: Sequence[int],
        feature_dim: int,
        num_classes: int | None,
        pool: str = "average",
        initialise: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.stage_channels, self.feature_dim = tuple(stage_channels), feature_dim
        flatten = nn.Flatten()
        self.pool = flatten if pool == "flatten" else nn.Sequential(nn.AdaptiveAvgPool2d(1), flatten)
        self.classifier = None if num_classes is None else nn.Linear(feature_dim, num_classes)
        if initialise is not None:
            self.apply(initialise)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, D)."""
        for stage in self.stages:
            images = stage(images)
        return self.pool(images)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes), or features (B, D) where there is no classifier."""
        features = self.features(images)
        return features if self.classifier is None else self.classifier(features)


def require_size(backbone: str, image_size: int | None, least: int) -> None:
    """Refuses images of which the backbone's strides and poolings leave nothing to work on. None is not checked.

    Raises:
        UserError: if `image_size` is below `least`.
    """
    if image_size is not None and image_size < least:
        raise UserError(f"{backbone} needs images at least {least} pixels wide, not {image_size}.")
