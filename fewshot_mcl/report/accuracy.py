"""Accuracy of every class, the worst first, with pictures of what is missed."""

from __future__ import annotations

import torch
from markupsafe import Markup
from torch import Tensor

from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.pages import fragment
from fewshot_mcl.report import rates
from fewshot_mcl.report.answers import deployed_answers, protocol_text
from fewshot_mcl.report.material import Material
from fewshot_mcl.report.rates import Rates

HEADING = "Class by class"
ANCHOR = "classes"
WORST, PICTURES = 5, 6  # classes that are shown, and images of each
LISTED = 20  # classes that are shown at once; the rest unfold
COVERS = (
    "The interval covers which support images, rivals and queries an episode happens to draw: answers of one episode are "
    "alike, so it is Wilson's with only as many draws as vary the way the episodes do. It does not cover other images of the "
    "class than the {images} there are at most, nor other training seeds; and of so many classes some are worst by chance."
)


def section(material: Material) -> Markup:
    """Per-class accuracy over the episodes that hold the class."""
    episodes, store = material.episodes, material.store
    right = deployed_answers(material) == torch.arange(episodes.query.shape[1])[:, None]
    rows = episodes.query.flatten()
    asked = torch.bincount(rows, minlength=len(store))
    found = torch.bincount(rows, right.flatten().double(), minlength=len(store))
    classes = class_rates(right, episodes.classes, store.num_classes)
    covers = COVERS.format(images=int(store.class_sizes.max()))
    return render(store, classes, asked, found, protocol_text(material), covers, "episodes")


def class_rates(right: Tensor, classes: Tensor, number: int) -> Rates:
    """Accuracy of each class.

    Args:
        right: (E, way, query) whether a query was classified right.
        classes: (E, way) labels.
        number: of classes.
    """
    return rates.of_episodes(right.double().mean(-1).flatten(), classes.flatten(), number, right.shape[-1])


def render(
    store: ImageStore, classes: Rates, asked: Tensor, right: Tensor, protocol: str, covers: str, clusters: str
) -> Markup:
    """The part of the page.

    Args:
        store: the images.
        classes: a rate for each class.
        asked, right: (N,) how often each image was a query, and how often it was classified right.
        protocol, covers: in words: what was measured, and what the intervals cover.
        clusters: what `classes.clusters` are.
    """
    order = [c for c in classes.share.nan_to_num(2).argsort(stable=True).tolist() if classes.count[c]]
    table = [
        {
            "name": store.class_names[c], "share": float(classes.share[c]), "low": float(classes.low[c]),
            "high": float(classes.high[c]), "count": int(classes.count[c]), "clusters": int(classes.clusters[c]),
        }
        for c in order
    ]  # fmt: skip
    worst = [(row, _missed(store, c, asked, right)) for row, c in zip(table, order[:WORST]) if row["share"] < 1]
    return fragment(
        "report/accuracy.html", rows=table, listed=LISTED, worst=worst, protocol=protocol, covers=covers, clusters=clusters,
        unseen=[store.class_names[c] for c in range(store.num_classes) if not classes.count[c]],
    )  # fmt: skip


def _missed(store: ImageStore, label: int, asked: Tensor, right: Tensor) -> list[tuple[Tensor, int, int]]:
    """The images of a class that are missed most often: pixels, how often it was asked for, and how often found."""
    rows = (store.labels == label).nonzero().flatten()
    rows = rows[(asked[rows] > 0) & (right[rows] < asked[rows])]
    order = (right[rows] / asked[rows]).argsort(stable=True)[:PICTURES]
    return [(store.images[row : row + 1][0], int(asked[row]), int(right[row])) for row in rows[order].tolist()]
