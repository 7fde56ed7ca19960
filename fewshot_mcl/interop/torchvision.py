"""Data sets of torchvision's shape as our stores, and our stores as data sets of that shape.

That shape is `len(data)` and `data[i] == (image, label)`, perhaps with `classes`. torchvision itself is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fewshot_mcl.data.images import Resize, fit, resize_rule, to_array
from fewshot_mcl.data.store import ImageStore, allocate_images
from fewshot_mcl.errors import UserError

GREY = ("1", "L", "I", "I;16")


def store_of(
    dataset: Any,
    *,
    image_size: int | None = None,
    color: str = "auto",
    resize: Resize = "crop",
    split: str = "",
    source: str = "",
) -> ImageStore:
    """Every image of a labelled data set, decoded once, as a store sorted by class (stably: order inside a class is kept).

    Args:
        dataset: `dataset[i]` is a PIL image, or a tensor (C, H, W) that is uint8 or within [0, 1], and an integer.
            Leave random augmentation and normalisation out of its transform: they belong to training.
        image_size: side of the images; None where all are squares of one size.
        color: "rgb", "grey", or "auto": grey where every image is.
        resize: see `data.images.fit`.
        split, source: see `ImageStore`; by default the data set's class names it.

    Returns:
        Classes are named by `dataset.classes`, where there is such a list, or else by their labels, in their order.

    Raises:
        UserError: where an item is not as above, or sizes differ and none is asked for.
    """
    if not len(dataset):
        raise UserError("the data set is empty.")
    if color not in ("auto", "rgb", "grey"):
        raise UserError(f"color must be auto, rgb or grey, not '{color}'.")
    pictures: list[Image.Image] = []
    labels: list[int] = []
    for number in range(len(dataset)):
        image, label = _item(dataset, number)
        side = image_size or (pictures[0].width if pictures else image.width)
        if image_size is None and image.size != (side, side):
            raise UserError(
                f"item {number} has {image.width}x{image.height} pixels, not one size as all: give image_size=84, say."
            )
        pictures.append(fit(image, side, resize))
        labels.append(label)
    channels = {"rgb": 3, "grey": 1}.get(color) or (1 if all(p.mode in GREY for p in pictures) else 3)
    images = allocate_images((len(pictures), channels, side, side))
    for row, picture in zip(images, pictures):
        row[...] = to_array(picture, channels)
    places, names = _classes(np.array(labels), getattr(dataset, "classes", None))
    return ImageStore(
        images, places, names, split=split, source=source or type(dataset).__name__, resize=resize_rule(side, resize)
    )


def _item(dataset: Any, number: int) -> tuple[Image.Image, int]:
    image, label = dataset[number]
    if isinstance(label, np.ndarray | Tensor) and label.ndim == 0:
        label = label.item()
    if not isinstance(label, int | np.integer):
        raise UserError(
            f"item {number} has the label {label!r:.80}, and an integer is needed: give a target_transform."
        )
    if isinstance(image, Image.Image):
        return image, int(label)
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) not in (1, 3):
        raise UserError(f"item {number} is neither a PIL image nor a tensor of one or three channels (C, H, W).")
    if image.is_floating_point() and bool(((image >= 0) & (image <= 1)).all()):  # so that NaN is refused as well
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UserError(
            f"item {number} is {image.dtype} from {float(image.min()):g} to {float(image.max()):g}, and uint8 or [0, 1] is "
            "needed: leave Normalize out of the transform, or divide by 255."
        )
    pixels = image[0] if len(image) == 1 else image.movedim(0, -1)
    return Image.fromarray(pixels.cpu().numpy()), int(label)


def _classes(labels: np.ndarray, classes: Sequence[Any] | None) -> tuple[np.ndarray, list[str]]:
    """Labels as places in a list of names, and that list."""
    if classes is None:
        found, places = np.unique(labels, return_inverse=True)
        return places, [str(label) for label in found]
    if not 0 <= labels.min() <= labels.max() < len(classes):
        raise UserError(
            f"labels go from {labels.min()} to {labels.max()}, but the data set names {len(classes)} classes."
        )
    return labels, [each if isinstance(each, str) else str(each) for each in classes]


class StoreDataset(Dataset[tuple[Any, int]]):
    """A store as a torchvision data set: item i is (image (C, H, W) uint8, label), in the store's order.

    Args:
        store: the images.
        transform: what to make of an image, torchvision's v2 say.

    Attributes:
        classes, class_to_idx, targets: as torchvision's data sets have them.
    """

    def __init__(self, store: ImageStore, transform: Callable[[Tensor], Any] | None = None) -> None:
        self.store, self.transform = store, transform
        self.classes = list(store.class_names)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.targets: list[int] = store.labels.tolist()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.store.images[index]
        return (self.transform(image) if self.transform else image), self.targets[index]
