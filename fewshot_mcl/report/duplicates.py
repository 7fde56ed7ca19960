"""Images that are there more than once: equal pixel by pixel, or the same picture saved again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl.data.store import ImageStore

LOOKED_AT = 1024  # images that are read at once
BLOCK = 1024  # side of the parts of the matrix of all pairs: one stays in the cache
COARSE, FINE = 8, 32  # sides of the thumbnails whose edges are compared: first all pairs, then those that passed
ALIKE = 0.9  # cosine of the edges, at both sizes
MOST_PAIRS = 200_000  # that pass the first

Place = tuple[str, int]  # a split, and a row of its store


@dataclass(frozen=True)
class Group:
    """Images that are the same.

    Attributes:
        places: where they are.
        exact: whether all are equal pixel by pixel.
    """

    places: tuple[Place, ...]
    exact: bool

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(split for split, _ in self.places))


@dataclass(frozen=True)
class Duplicates:
    """All groups of two images or more, those across splits first; `complete` is False where there were too many pairs."""

    groups: tuple[Group, ...]
    complete: bool

    @property
    def leaks(self) -> list[Group]:
        """Those that lie in more than one split."""
        return [group for group in self.groups if len(group.splits) > 1]


@torch.inference_mode()
def duplicates(stores: dict[str, ImageStore]) -> Duplicates:
    """Find them within and across splits.

    An image's edges are the differences of neighbouring pixels of its grey thumbnail, of length 1. Two images are the same
    picture if the cosine of their edges is ALIKE or more for thumbnails of COARSE and of FINE pixels a side. Images without
    an edge are compared for equality only.
    """
    places = [(split, row) for split, store in stores.items() for row in range(len(store))]
    looked = [_look(store) for store in stores.values()]
    digests = [digest for each, _ in looked for digest in each]
    thumbnails = torch.cat([each for _, each in looked])
    first: dict[bytes, int] = {}
    same = [first.setdefault(digest, i) for i, digest in enumerate(digests)]  # the first image equal to each
    different = torch.tensor(sorted(first.values()))
    pairs, complete = near_pairs(thumbnails[different])
    return Duplicates(_groups(places, same, different[pairs]), complete)


def near_pairs(thumbnails: Tensor) -> tuple[Tensor, bool]:
    """(P, 2) pairs i < j of thumbnails (N, FINE, FINE) that show the same picture, and whether all pairs were looked at."""
    found, looked = [torch.empty(0, 2, dtype=torch.int64)], 0
    blocks = edges(thumbnails, COARSE).split(BLOCK)
    for i, j in combinations_with_replacement(range(len(blocks)), 2):
        near = blocks[i] @ blocks[j].T >= ALIKE
        pairs = (near.triu(1) if i == j else near).nonzero() + BLOCK * torch.tensor([i, j])
        looked += len(pairs)
        if looked > MOST_PAIRS:
            return torch.cat(found), False
        for part in pairs.split(BLOCK) if len(pairs) else ():
            a, b = (edges(thumbnails[rows], FINE) for rows in part.unbind(1))
            found.append(part[(a * b).sum(1) >= ALIKE])
    return torch.cat(found), True


def edges(thumbnails: Tensor, side: int) -> Tensor:
    """(N, FINE, FINE) grey thumbnails -> (N, 2 * side * (side - 1)) differences of neighbours, of length 1 or 0."""
    small = nnf.adaptive_avg_pool2d(thumbnails.float()[:, None], side)[:, 0]
    return nnf.normalize(torch.cat([small.diff(dim=1).flatten(1), small.diff(dim=2).flatten(1)], 1), dim=1)


def _look(store: ImageStore) -> tuple[list[bytes], Tensor]:
    """A digest of the pixels of each image, and (N, FINE, FINE) uint8 grey thumbnails."""
    digests: list[bytes] = []
    thumbnails = []
    for start in range(0, len(store), LOOKED_AT):
        images = store.images[start : start + LOOKED_AT].contiguous()
        shape = repr(images.shape[1:]).encode()
        digests += [hashlib.blake2b(each.data, digest_size=16, key=shape[:64]).digest() for each in images.numpy()]
        grey = images.float().mean(1, keepdim=True)
        thumbnails.append(nnf.adaptive_avg_pool2d(grey, FINE)[:, 0].round().to(torch.uint8))
    return digests, torch.cat(thumbnails) if thumbnails else torch.empty(0, FINE, FINE, dtype=torch.uint8)


def _groups(places: Sequence[Place], same: list[int], near: Tensor) -> tuple[Group, ...]:
    """Connected images, from the first equal one of each and pairs of near ones."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a = np.concatenate([np.arange(len(same)), near[:, 0].numpy()])
    b = np.concatenate([np.array(same, dtype=np.int64), near[:, 1].numpy()])
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(same), len(same)))
    _, component = connected_components(graph, directed=False)
    order = np.argsort(component, kind="stable")
    starts = np.flatnonzero(np.diff(component[order])) + 1
    groups = []
    for members in np.split(order, starts):
        if len(members) > 1:
            exact = len({same[i] for i in members}) == 1
            groups.append(Group(tuple(places[i] for i in members), exact))
    return tuple(sorted(groups, key=lambda group: (-len(group.splits), not group.exact)))
