"""N-way K-shot episodes as image indices, whole batches of them in one vectorised draw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewshot_mcl import draws
from fewshot_mcl.errors import UserError

BLOCK = 64  # episodes that are drawn at once where they are asked for one by one


@dataclass(frozen=True)
class Episodes:
    """A batch of E episodes.

    Attributes:
        classes: (E, way) int64 labels; position k is what the episode calls class k.
        support: (E, way, shot) int64 image indices.
        query: (E, way, query) int64 image indices; row k holds queries of `classes[:, k]`.

    Example:
        >>> labels = torch.arange(4).repeat_interleave(6)
        >>> episodes = EpisodeSampler(labels, way=3, shot=1, query=5).sample(10)
        >>> len(episodes), episodes.support.shape, episodes.query.shape
        (10, torch.Size([10, 3, 1]), torch.Size([10, 3, 5]))
        >>> bool((labels[episodes.query] == episodes.classes[:, :, None]).all())
        True
    """

    classes: Tensor
    support: Tensor
    query: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, part: slice) -> Episodes:
        return Episodes(self.classes[part], self.support[part], self.query[part])

    @property
    def digest(self) -> str:
        """SHA-256 of every index: two evaluations with equal digests used the same episodes."""
        parts = (self.classes, self.support, self.query)
        digest = hashlib.sha256(repr([tuple(part.shape) for part in parts]).encode())
        for part in parts:
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


class EpisodeSampler:
    """Draws episodes from labels; never looks at an image.

    Episode number e of a seed is the same whatever it is drawn with: `sample(10)[3:4]` equals `sample(1, start=3)`.

    Args:
        labels: (N,) integer labels, in any order; indices refer to this order.
        way, shot, query: classes in an episode, support images and query images of each class.
        seed: of the whole stream of episodes.
        class_names: for messages only.

    Raises:
        UserError: if there are fewer than `way` classes, or a class has fewer than `shot + query` images.

    Example:
        >>> sampler = EpisodeSampler(torch.arange(20).repeat_interleave(10), way=5, shot=1, query=5, seed=0)
        >>> sampler.sample(10)[3:4].digest == sampler.sample(1, start=3).digest
        True
    """

    def __init__(
        self, labels: Tensor, *, way: int, shot: int, query: int, seed: int = 0, class_names: Sequence[str] = ()
    ) -> None:
        if min(way, shot, query) < 1:
            raise UserError(f"way, shot and query must be at least 1, not {way}, {shot}, {query}.")
        self.way, self.shot, self.query, self.seed = way, shot, query, seed
        labels_np = torch.as_tensor(labels).numpy()
        self._order = np.argsort(labels_np, kind="stable")
        self._labels, first, sizes = np.unique(labels_np[self._order], return_index=True, return_counts=True)
        self._first = first.astype(np.int64)
        self._sizes: draws.UInts = sizes.astype(np.uint64)
        self._check(class_names)
        self._bounds = int(sizes.min()), int(sizes.max())
        self._block, self._drawn = -1, Episodes(*(torch.empty(0, dtype=torch.int64),) * 3)

    def _check(self, class_names: Sequence[str]) -> None:
        if len(self._labels) < self.way:
            raise UserError(
                f"{self.way}-way episodes need {self.way} classes; there are {len(self._labels)}. "
                f"Use --way {max(len(self._labels), 1)} or fewer."
            )
        needed, smallest = self.shot + self.query, int(self._sizes.min())
        small = np.flatnonzero(self._sizes < needed)
        if len(small):
            label = int(self._labels[small[np.argmin(self._sizes[small])]])
            name = class_names[label] if class_names else label
            others = f" (and {len(small) - 1} more classes have too few)" if len(small) > 1 else ""
            remedy = (
                f"use --query {smallest - self.shot} or fewer"
                if smallest > self.shot
                else f"use --shot {smallest - 1} --query 1"
                if smallest > 1
                else "add images to it or remove the class"
            )
            raise UserError(
                f"class '{name}' has {smallest} image{'s' * (smallest != 1)}; {self.shot}-shot with {self.query} "
                f"queries needs {needed}{others}: {remedy}."
            )

    def episode(self, number: int) -> Episodes:
        """`sample(1, start=number)`, a tenth of its time where numbers follow one another: a draw costs little for each more."""
        block, place = divmod(number, BLOCK)
        if self._block != block:
            self._block, self._drawn = block, self.sample(BLOCK, start=block * BLOCK)
        return self._drawn[place : place + 1]

    def sample(self, count: int, start: int = 0) -> Episodes:
        """Episodes number `start` to `start + count - 1`."""
        numbers = np.arange(start, start + count).astype(np.uint64)
        stream, total = draws.key(self.seed, "episode"), len(self._labels)
        classes = draws.distinct(stream, numbers, np.full(count, total, np.uint64), self.way, total, total)
        rows = (numbers[:, None] * np.uint64(self.way) + np.arange(self.way).astype(np.uint64)).ravel()
        chosen = classes.ravel()
        stream = draws.key(self.seed, "images")
        images = draws.distinct(stream, rows, self._sizes[chosen], self.shot + self.query, *self._bounds)
        images += self._first[chosen][:, None]
        images = self._order[images].reshape(count, self.way, -1)
        support, query = np.split(images, [self.shot], axis=2)
        return Episodes(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (self._labels[classes], support, query)))
