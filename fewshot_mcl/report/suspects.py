"""A part of the report: images that may carry a wrong name, and images that are there twice, above all across splits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from markupsafe import Markup

from fewshot_mcl.data.names import printable
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.pages.page import fragment, picture
from fewshot_mcl.report.duplicates import ALIKE, COARSE, FINE, Duplicates, Group, Place
from fewshot_mcl.report.material import Material
from fewshot_mcl.report.mislabelled import FEWEST, suspicions

HEADING = "Images to look at: perhaps a wrong name, perhaps there twice"
ANCHOR = "suspects"
SHOWN = 12  # suspects of a split, and groups
MEMBERS = 4  # of a group, in pictures


def section(material: Material) -> Markup:
    """Suspects of every split, and duplicates within and across them, with pictures."""
    found = material.duplicates
    return fragment(
        "report/suspects.html",
        splits=[_suspects(material, split) for split in material.stores],
        counts=_counts(found),
        leak=sum(len(group.places) for group in found.leaks),
        leaks=len(found.leaks),
        groups=[_group(group, material.stores) for group in found.groups[:SHOWN]],
        left_out=max(0, len(found.groups) - SHOWN),
        complete=found.complete,
        compared=sum(map(len, material.stores.values())),
        names=list(material.stores),
        deployed=material.networks[-1],
        limits={"fewest": FEWEST, "alike": ALIKE, "coarse": COARSE, "fine": FINE},
    )


def _suspects(material: Material, split: str) -> dict[str, Any]:
    """The images of a split that look like those of another class."""
    store, features = material.stores[split], material.features[split][-1]
    if material.config.metric == "cosine":
        features = torch.nn.functional.normalize(features, dim=-1)
    found = suspicions(features, store.labels, store.num_classes)
    worst = found.worst()
    cards = [
        {
            "picture": _picture(store, row), "own": store.class_names[store.labels[row]],
            "other": store.class_names[found.other[row]], "score": float(found.score[row]), "where": _where(store, row),
        }
        for row in worst[:SHOWN].tolist()
    ]  # fmt: skip
    return {"name": split, "images": len(store), "count": len(worst), "cards": cards, "least": found.least}


def _counts(found: Duplicates) -> list[list[str]]:
    """How many groups there are, by the splits that they lie in."""
    exact = Counter(" and ".join(group.splits) for group in found.groups if group.exact)
    near = Counter(" and ".join(group.splits) for group in found.groups if not group.exact)
    images = Counter[str]()
    for group in found.groups:
        images[" and ".join(group.splits)] += len(group.places)
    return [
        [
            f"across {where}" if " and " in where else f"within {where}",
            str(exact[where]),
            str(near[where]),
            str(images[where]),
        ]
        for where in images
    ]


def _group(group: Group, stores: dict[str, ImageStore]) -> dict[str, Any]:
    shown = _spread_over_splits(group.places)[:MEMBERS]
    cards = [
        {
            "picture": _picture(stores[split], row), "split": split,
            "name": stores[split].class_names[stores[split].labels[row]], "where": _where(stores[split], row),
        }
        for split, row in shown
    ]  # fmt: skip
    names = {stores[split].class_names[stores[split].labels[row]] for split, row in group.places}
    return {
        "cards": cards, "exact": group.exact, "splits": group.splits, "size": len(group.places), "classes": len(names),
        "more": len(group.places) - len(shown),
    }  # fmt: skip


def _spread_over_splits(places: tuple[Place, ...]) -> list[Place]:
    """The first of each split, then the others."""
    first = list({split: (split, row) for split, row in reversed(places)}.values())[::-1]
    return first + [place for place in places if place not in first]


def _picture(store: ImageStore, row: int) -> Markup:
    return picture(store.images[row : row + 1][0], f"image of {store.class_names[store.labels[row]]}", 72)


def _where(store: ImageStore, row: int) -> str:
    if store.ids:
        return printable(store.ids[row])
    label = int(store.labels[row])
    return f"image {row - int((store.labels < label).sum())} of its class"
