"""learn2learn tasksets over our images, learn2learn's tasks as our episodes, and our evaluation on any of its tasksets.

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
from torch import Tensor
from torch.utils.data import Dataset

from fewshot_mcl.data.episodes import Episodes, EpisodeSampler
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.draws import key
from fewshot_mcl.errors import UserError
from fewshot_mcl.interop.taskset_accuracy import evaluate_taskset

if TYPE_CHECKING:
    from learn2learn.data import MetaDataset, Taskset

__all__ = ["episodes_of", "evaluate_taskset", "taskset", "taskset_of"]


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


def episodes_of(tasks: Taskset, *, shot: int, episodes: int | None = None) -> Episodes:
    """Tasks 0 to episodes - 1 of a finite taskset as our episodes: equal, index by index, to those that `taskset_of` was given.

    Indices are rows of `interop.torchvision.store_of(tasks.dataset)`, whose images are sorted by label as a store's are; of
    a taskset over a store of ours they are that store's own rows. Within a task, classes stand in the order in which they
    first appear; of each the first `shot` images are support and all others queries.

    Args:
        tasks: drawn by index; what its transforms do to pixels afterwards is not looked at.
        shot: support images of each class.
        episodes: how many; None for all.

    Raises:
        UserError: where tasks have no numbers (num_tasks = -1), an image twice, or classes of unequal size.
    """
    count = tasks.num_tasks if episodes is None else episodes
    if not 1 <= count <= tasks.num_tasks:
        raise UserError(
            f"{count} episodes of {tasks.num_tasks} tasks: only a taskset made with num_tasks has numbered tasks; take as many "
            "or fewer."
        )
    of: dict[int, int] = tasks.dataset.indices_to_labels
    row = {index: place for place, index in enumerate(sorted(of, key=of.__getitem__))}
    number_of = {label: place for place, label in enumerate(sorted(set(of.values())))}
    if isinstance(
        tasks.dataset.dataset, _StoreImages
    ):  # whose labels are our numbers, also where a class has no images
        number_of = {label: label for label in number_of}
    classes, images = [], []
    for number in range(count):
        tasks[number]  # describes the task, where it is not yet
        by_label = _by_label([each.index for each in tasks.sampled_descriptions[number]], of, shot, number)
        classes.append([number_of[label] for label in by_label])
        images.append([[row[index] for index in indices] for indices in by_label.values()])
    if len({(len(each), len(each[0])) for each in images}) > 1:
        raise UserError("tasks differ in their classes or images, and episodes of one evaluation are all of one shape.")
    support, query = torch.tensor(images).tensor_split([shot], dim=2)
    return Episodes(torch.tensor(classes), support.contiguous(), query.contiguous())


def _by_label(indices: list[int], of: dict[int, int], shot: int, number: int) -> dict[int, list[int]]:
    """The images of a task by label, labels as they first appear."""
    found: dict[int, list[int]] = {}
    for index in indices:
        found.setdefault(of[index], []).append(index)
    sizes = {len(each) for each in found.values()}
    if len(set(indices)) < len(indices) or len(sizes) != 1 or min(sizes) <= shot:
        raise UserError(f"task {number} is no episode: every class needs as many images, each once, more than {shot}.")
    return found


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
