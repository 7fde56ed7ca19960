"""A part of the report: the same images as every peer sees them, as maps side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from fewshot_mcl import draws
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.pages.page import PALETTE, fragment, picture
from fewshot_mcl.report.material import Material

HEADING = "Maps of the images, peer by peer"
ANCHOR = "maps"
CLASSES, IMAGES = 20, 20  # at most, and of each class
FEWEST = 12  # images that make a map
SEED = 0  # of t-SNE
PERPLEXITY = 30  # at most; a third of the images where there are few
NEIGHBOURS = 5  # k of trustworthiness
WIDE, HIGH, PICTURE = 1100, 640, 34  # the map of pictures and the side of one, in pixels
PICTURED = 10  # images of each class in it
# Drawn around (0, 0). Their number and that of the colours have no common divisor: 63 classes look different.
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",  # disc
    "M-3.6 -3.6h7.2v7.2h-7.2z",  # square
    "M0 -4.8L4.6 3.4H-4.6z",  # triangle
    "M0 -5.2L4.4 0L0 5.2L-4.4 0z",  # diamond
    "M0 4.8L4.6 -3.4H-4.6z",  # triangle upside down
    "M-1.5 -4.6h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1v-3h3.1z",  # plus
    "M-4.8 0L3.4 -4.6V4.6z",  # triangle to the left
    "M-4.6 -2.4L-2.4 -4.6L0 -2.2L2.4 -4.6L4.6 -2.4L2.2 0L4.6 2.4L2.4 4.6L0 2.2L-2.4 4.6L-4.6 2.4L-2.2 0z",  # cross
    "M4.8 0L-3.4 -4.6V4.6z",  # triangle to the right
)

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """A peer's map of n images.

    Attributes:
        points: (n, 2), centred.
        trust: trustworthiness (Venna and Kaski 2001) at k = NEIGHBOURS: 1 where all neighbours in the map are neighbours in
            the features, about 0.5 where a map knows nothing of them.
        apart: what is left of the last peer's map after the best rotation, mirroring and scaling onto it: 0 (the same) to 1.
    """

    points: Points
    trust: float
    apart: float


def sample(store: ImageStore, seed: int) -> Tensor:
    """Rows of up to IMAGES images of each of up to CLASSES classes, class by class, chosen by a seed."""
    chance = draws.generator(seed, "report", "maps")
    there = store.class_sizes.nonzero()[:, 0]
    chosen = there[torch.randperm(len(there), generator=chance)[:CLASSES]].sort().values
    rows = []
    for label in chosen:
        own = (store.labels == label).nonzero()[:, 0]
        rows.append(own[torch.randperm(len(own), generator=chance)[:IMAGES]].sort().values)
    return torch.cat(rows)


def maps(features: Tensor) -> list[Map]:
    """t-SNE of features (M, n, D), each turned so that it lies as the last one does.

    Raises:
        UserError: if scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE, trustworthiness
    except ImportError as error:
        raise UserError("maps of images need scikit-learn: install fewshot-mcl[report].") from error
    found = []
    for each in features.double().numpy():
        perplexity = min(PERPLEXITY, (len(each) - 1) / 3)
        init = "pca" if np.ptp(each, axis=0).any() else "random"  # what is equal has no main direction
        flat = TSNE(2, perplexity=perplexity, init=init, random_state=SEED, n_jobs=1).fit_transform(each)
        found.append((flat.astype(np.float64), float(trustworthiness(each, flat, n_neighbors=NEIGHBOURS))))
    last = upright(found[-1][0])
    return [Map(points, trust, apart) for flat, trust in found for points, apart in [aligned(flat, last)]]


def upright(points: Points) -> Points:
    """Points (n, 2) centred and turned so that they are widest from left to right."""
    points = points - points.mean(0)
    return points @ np.linalg.svd(points, full_matrices=False)[2].T


def aligned(points: Points, to: Points) -> tuple[Points, float]:
    """Points (n, 2) centred and turned or mirrored to lie as `to` does, at their own scale, and `Map.apart`."""
    from scipy.linalg import orthogonal_procrustes

    points, to = points - points.mean(0), to - to.mean(0)
    size = np.linalg.norm(points) * np.linalg.norm(to)
    turn, overlap = orthogonal_procrustes(points, to)
    return points @ turn, float(np.clip(1 - (overlap / size) ** 2, 0, 1)) if size else 1.0


def section(material: Material) -> Markup:
    """Maps of all peers, and the deployed one's with pictures; empty where there are too few images."""
    store = material.store
    rows = sample(store, material.protocol.seed)
    if len(rows) < FEWEST:
        return Markup()
    features = material.measured[:, rows]
    if material.config.metric == "cosine":
        features = torch.nn.functional.normalize(features, dim=-1)
    found, labels = maps(features), store.labels[rows]
    kinds = labels.unique().tolist()
    classes = [
        {"name": store.class_names[label], "colour": PALETTE[i % len(PALETTE)], "shape": i % len(SHAPES)}
        for i, label in enumerate(kinds)
    ]
    members = [(labels == label).nonzero()[:, 0].tolist() for label in kinds]
    shown = [
        {"name": name, "trust": each.trust, "apart": each.apart, "classes": _placed(each.points, members, 260, 240, 8)}
        for name, each in zip(material.networks, found)
    ]
    return fragment(
        "report/embedding.html",
        shapes=SHAPES,
        classes=classes,
        maps=shown,
        pictures=_pictures(store, rows, found[-1].points, members),
        size=(WIDE, HIGH),
        each_class=PICTURED,
        images=len(rows),
        k=NEIGHBOURS,
        seed=SEED,
        perplexity=min(PERPLEXITY, (len(rows) - 1) / 3),
        metric=material.config.metric,
        protocol=material.protocol,
    )


def _scaled(points: Points, width: int, height: int, edge: int) -> list[tuple[float, float]]:
    """Points as SVG coordinates that fill a box, the same scale both ways."""
    low, span = points.min(0), np.ptp(points, axis=0)
    room = np.array([width - 2 * edge, height - 2 * edge])
    scale = (room / np.maximum(span, 1e-12)).min()
    offset = edge + (room - span * scale) / 2
    places = (points - low) * scale + offset
    return [(round(x, 1), round(height - y, 1)) for x, y in places.tolist()]


def _placed(points: Points, members: list[list[int]], *box: int) -> list[list[tuple[float, float]]]:
    places = _scaled(points, *box)
    return [[places[i] for i in each] for each in members]


def _pictures(store: ImageStore, rows: Tensor, points: Points, members: list[list[int]]) -> list[dict[str, object]]:
    """PICTURED images of each class where the map has them, and what they are."""
    places, shown = _scaled(points, WIDE, HIGH, PICTURE), []
    for kind, each in enumerate(members):
        for i in each[:PICTURED]:
            row = int(rows[i])
            where = store.ids[row] if store.ids else f"image {row}"
            shown.append({
                "left": round(places[i][0] - PICTURE / 2, 1), "top": round(places[i][1] - PICTURE / 2, 1),
                "picture": picture(store.images[row : row + 1][0], "", PICTURE), "colour": PALETTE[kind % len(PALETTE)],
                "title": f"{printable(store.class_names[store.labels[row]])}: {printable(where)}",
            })  # fmt: skip
    return shown
