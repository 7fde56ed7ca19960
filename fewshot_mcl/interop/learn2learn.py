"""learn2learn tasksets over our images, and our evaluation on any learn2learn taskset.

In both directions a task is learn2learn's own pair `(images, labels)`: images (B, C, H, W), labels (B,) integers. Our
tasksets hand out the store's uint8 pixels, neither scaled nor normalised: whoever trains on them does both once, as
`evaluate_taskset` does.

learn2learn is imported inside the functions that need it, so this module can be imported without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewshot_mcl.data.episodes import Episodes, EpisodeSampler
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.draws import key
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.networks.folding import batch_for, folded
from fewshot_mcl.objectives import functional as F

if TYPE_CHECKING:
    from learn2learn.data import MetaDataset, Taskset


def taskset(store: ImageStore, *, way: int, shot: int, query: int, num_tasks: int = -1, seed: int = 0) -> Taskset:
    """Random tasks of a store, drawn by learn2learn: `way` classes with `shot + query` different images each.

    The images of a class stand together, classes in the store's order; their labels are 0 to way - 1 in a random order.

    Task i depends on (seed, i) alone, where i is the index for a finite taskset, whatever the order of access, and counts
    the tasks drawn so far for an endless one. learn2learn draws from Python's global `random`; it is seeded for each draw
    and put back as it was, so nothing outside can change a task and no task changes anything outside. (Threads share
    that global state: draw from one.)

    Args:
        store: images of one split.
        way, shot, query: classes in a task; images of each class are `shot + query`.
        num_tasks: how many tasks there are; -1 for a new one each time.
        seed: of all tasks.

    Raises:
        UserError: without learn2learn; where the store has too few classes, or a class too few images.
    """
    if num_tasks != -1 and num_tasks < 1:
        raise UserError(f"num_tasks must be positive, or -1 for tasks without end, not {num_tasks}.")
    # It draws nothing here; it refuses what no task could be drawn from, naming the class.
    EpisodeSampler(store.labels, way=way, shot=shot, query=query, class_names=store.class_names)
    transforms = _learn2learn().data.transforms
    dataset = _meta_dataset(store)
    steps = [
        transforms.NWays(dataset, n=way),
        transforms.KShots(dataset, k=shot + query),
        transforms.LoadData(dataset),
        transforms.RemapLabels(dataset),
        transforms.ConsecutiveLabels(dataset),
    ]
    return _seeded_taskset(dataset, steps, num_tasks, seed)


def taskset_of(store: ImageStore, episodes: Episodes) -> Taskset:
    """A taskset whose task i is exactly episode i: way * (shot + query) images, class by class, support first in a class.

    Labels are the episode's own: class k of an episode has label k. `tasks[i]` and iteration draw nothing;
    `tasks.sample()` picks one of the episodes with Python's global `random`, as learn2learn does.

    Raises:
        UserError: without learn2learn; where the episodes are not over this store, or there are none.
    """
    images = torch.cat([episodes.support, episodes.query], dim=2)  # (E, way, shot + query)
    if not len(episodes):
        raise UserError("a taskset needs at least one episode.")
    inside = 0 <= int(images.min()) <= int(images.max()) < len(store)
    if not inside or not bool((store.labels[images] == episodes.classes[..., None]).all()):
        raise UserError("these episodes were not drawn from this store: sample them with its labels.")
    data = _learn2learn().data
    tasks = data.Taskset(_meta_dataset(store), partial(_no_more_tasks, len(images)), num_tasks=len(images))
    # How an image becomes an item depends only on its class's place in the episode: all tasks share these lists.
    loads = [[partial(_item, store.images, label)] for label in range(images.shape[1])]
    for number, episode in enumerate(images.tolist()):
        task = tasks.sampled_descriptions[number] = []
        for load, indices in zip(loads, episode):
            described = [data.DataDescription(index) for index in indices]
            for description in described:
                description.transforms = load
            task += described
    return tasks


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


class _StoreImages(Dataset[tuple[Tensor, int]]):
    """A store as a torch data set: item i is (image (C, H, W) uint8, label)."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.store.images[index], int(self.store.labels[index])


def _learn2learn() -> Any:
    try:
        import learn2learn
    except ImportError as error:
        raise UserError(
            f"this needs learn2learn, which cannot be imported ({error}). Install the extra: "
            "pip install 'fewshot-mcl[learn2learn]'. On Python 3.11 and later learn2learn 0.2.0 only builds with the "
            "settings this project gives uv: README.md, 'learn2learn', has the command."
        ) from error
    return learn2learn


def _meta_dataset(store: ImageStore) -> MetaDataset:
    """learn2learn's index of classes, given rather than found: finding it would load every image."""
    ends = store.class_sizes.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    ranges = {label: list(range(*bounds)) for label, bounds in enumerate(zip(starts, ends)) if bounds[0] < bounds[1]}
    return _learn2learn().data.MetaDataset(_StoreImages(store), labels_to_indices=ranges)


@contextmanager
def _python_random(seed: int) -> Iterator[None]:
    """Within it Python's global `random` is seeded; afterwards it is as before."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _seeded_taskset(dataset: MetaDataset, steps: list[Callable[[Any], Any]], num_tasks: int, seed: int) -> Taskset:
    from learn2learn.data import Taskset  # here: extending a class of the library's takes the library

    class SeededTaskset(Taskset):
        drawn = 0  # tasks described in turn: by an endless taskset, or for learn2learn's own samplers
        sampled = 0  # calls of `sample`

        def describe(self, number: int) -> Any:
            with _python_random(key(seed, "learn2learn task", number)):
                return super().sample_task_description()

        def sample_task_description(self) -> Any:
            self.drawn += 1
            return self.describe(self.drawn - 1)

        def __getitem__(self, number: int) -> Any:
            if self.num_tasks != -1 and number not in self.sampled_descriptions:
                self.sampled_descriptions[number] = self.describe(number)
            return super().__getitem__(number)

        def sample(self) -> Any:
            self.sampled += 1
            with _python_random(key(seed, "learn2learn sample", self.sampled)):
                return super().sample()

    return SeededTaskset(dataset, steps, num_tasks=num_tasks)


def _item(images: Tensor, label: int, index: int) -> tuple[Tensor, int]:
    return images[index], label


def _no_more_tasks(count: int, _: Any) -> Any:
    """Called by learn2learn for the description of a task that was not filled in."""
    raise IndexError(f"there are {count} tasks, numbered from 0")


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
