"""Our evaluation on any learn2learn taskset, or whatever else hands out tasks as it does. It imports no learn2learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.networks.folding import batch_for, folded
from fewshot_mcl.objectives import functional as F

if TYPE_CHECKING:
    from learn2learn.data import Taskset


def evaluate_taskset(
    network: Backbone,
    tasks: Taskset,
    *,
    way: int,
    shot: int,
    mean: Tensor,
    std: Tensor,
    episodes: int = 600,
    metric: str = "euclidean",
    scale: float = 1.0,
) -> Result:
    """Accuracy of nearest prototypes on tasks 0 to episodes - 1 of any learn2learn taskset.

    In each task the first `shot` images of every label are its support and all others queries, in whatever order labels
    come. On `taskset_of(store, episodes)` this equals `evaluate_episodes(embed(network, store, ...), episodes)`.

    Tasks may be drawn at random: those of `taskset` have their own seed, others follow Python's global `random`.

    Args:
        network: looked through in evaluation mode; it is left as it is.
        tasks: their images are (B, C, H, W), uint8 or floating point within [0, 1], not normalised; labels are any integers.
        way: labels in every task.
        shot: support images of each label.
        mean, std: (C,) of the training images in [0, 1]; their device is the network's.
        episodes: how many tasks to use.
        metric, scale: see `functional.prototypical_logits`.

    Raises:
        UserError: where there are fewer tasks than `episodes`, or a task is not as above.
    """
    if min(way, shot, episodes) < 1:
        raise UserError(f"way, shot and episodes must be at least 1, not {way}, {shot}, {episodes}.")
    # Asked for more, learn2learn would draw new tasks beyond the end of the taskset.
    if 0 <= tasks.num_tasks < episodes:
        raise UserError(f"the taskset has {tasks.num_tasks} tasks: use episodes={tasks.num_tasks} or fewer.")
    accuracies, ready = [], folded(network)
    for number in range(episodes):
        images, labels = tasks[number]  # not in inference mode: what a data set keeps stays fit for training
        try:
            _check_images(images, labels, len(mean))
            support, query, targets = _split(labels, way, shot)
        except UserError as error:
            raise UserError(f"task {number}: {error}") from None
        features = _features(ready, images, mean, std)
        logits = F.prototypical_logits(features[query], F.prototypes(features[support]), metric, scale)
        accuracies.append(int((logits.argmax(-1).cpu() == targets).sum()) / len(query))
    return Result(torch.tensor(accuracies, dtype=torch.float64))


def _check_images(images: Tensor, labels: Tensor, channels: int) -> None:
    if images.ndim != 4 or images.shape[1] != channels or labels.shape != images.shape[:1]:
        raise UserError(
            f"images of shape {tuple(images.shape)} with labels of shape {tuple(labels.shape)}; "
            f"expected (B, {channels}, H, W), the channels of mean and std, and (B,)."
        )
    if labels.is_floating_point():
        raise UserError(f"labels must be integers, not {labels.dtype}.")
    if images.dtype == torch.uint8:
        return
    # Written so that NaN is refused as well.
    if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        raise UserError(
            f"images must be uint8 or floating point within [0, 1], not {images.dtype} from {float(images.min()):g} to "
            f"{float(images.max()):g}: leave out Normalize, or divide by 255; the network's mean and std are applied here."
        )


def _split(labels: Tensor, way: int, shot: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (B,) -> positions of support (way, shot) and queries (Q,), class by class, and the queries' classes (Q,)."""
    labels = labels.cpu()
    names, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
    if len(names) != way:
        raise UserError(f"it has {len(names)} labels, not {way}.")
    for name, size in zip(names.tolist(), sizes.tolist()):
        if size <= shot:
            raise UserError(
                f"label {name} has {size} image{'s' * (size != 1)}; {shot}-shot needs at least {shot + 1} (a query too)."
            )
    order = torch.argsort(classes, stable=True)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[classes[order]]  # place of each image in its class
    support, query = order[rank < shot], order[rank >= shot]
    return support.view(way, shot), query, classes[query]


@torch.inference_mode()
def _features(network: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images (B, C, H, W), uint8 or within [0, 1] -> (B, D), a batch at a time."""
    parts = []
    for batch in images.split(batch_for(mean.device)):
        batch = batch.to(mean.device)
        parts.append(network(normalise(batch if batch.dtype == torch.uint8 else batch.to(std.dtype) * 255, mean, std)))
    return torch.cat(parts)
