"""Which pairs of classes are taken for one another, among the answers where that could happen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from markupsafe import Markup
from torch import Tensor

from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.pages import fragment
from fewshot_mcl.report import rates
from fewshot_mcl.report.answers import deployed_answers, protocol_text
from fewshot_mcl.report.material import Material
from fewshot_mcl.report.rates import Rates

HEADING = "What is taken for what"
ANCHOR = "confusion"
TOP, PICTURES = 10, 3  # pairs that are shown, and images of each class
RULE = (
    "Two classes are asked about only where they meet in an episode: the share is of the queries of both in those episodes. "
    "Pairs are ranked by the lower end of their intervals, so that a pair which met once is not the first by luck. Intervals "
    "are as those of the classes: episodes, not queries, are counted. Of so many pairs, the first are first partly by chance."
)


@dataclass(frozen=True)
class Pairs:
    """K pairs of classes.

    Attributes:
        first, second: (K,) labels, the lower one first.
        rates: how often either was taken for the other.
        forward, backward: (K,) shares of the first's queries taken for the second, and of the second's for the first.
    """

    first: Tensor
    second: Tensor
    rates: Rates
    forward: Tensor
    backward: Tensor


def section(material: Material) -> Markup:
    """The pairs of a few-shot run that are confused most."""
    answers, episodes = deployed_answers(material), material.episodes
    answered = episodes.classes.gather(1, answers.flatten(1))
    pairs = met(answers, episodes.classes)
    return render(
        material.store, pairs, episodes.query.flatten(), answered.flatten(), protocol_text(material), RULE, "met"
    )


def met(answers: Tensor, classes: Tensor) -> Pairs:
    """Every pair of classes that met in an episode.

    Args:
        answers: (E, way, query) positions in the episode that queries are taken for.
        classes: (E, way) labels.
    """
    way, query = answers.shape[1:]
    taken = torch.nn.functional.one_hot(answers, way).sum(2).double() / query  # (E, way, way): share of i taken for j
    i, j = torch.triu_indices(way, way, 1)
    labels = torch.stack([classes[:, i], classes[:, j]], -1).flatten(0, 1)  # (E * pairs, 2)
    shares = torch.stack([taken[:, i, j], taken[:, j, i]], -1).flatten(0, 1)
    swapped = labels[:, 0] > labels[:, 1]
    labels, shares = (torch.where(swapped[:, None], each.flip(1), each) for each in (labels, shares))
    found, group = labels.unique(dim=0, return_inverse=True)
    together = rates.of_episodes(shares.mean(1), group, len(found), 2 * query)
    forward, backward = (
        torch.bincount(group, each, minlength=len(found)) / together.clusters for each in shares.unbind(1)
    )
    return Pairs(found[:, 0], found[:, 1], together, forward, backward)


def render(
    store: ImageStore, pairs: Pairs, rows: Tensor, answered: Tensor, protocol: str, rule: str, clusters: str
) -> Markup:
    """The part of the page.

    Args:
        store: the images.
        pairs: that could be confused.
        rows, answered: (N,) image and the label it was taken for, one an answer.
        protocol, rule: in words: what was measured, and how pairs are compared.
        clusters: what `pairs.rates.clusters` are called as a column; "" where they need none.
    """
    order = [k for k in pairs.rates.low.argsort(descending=True, stable=True).tolist() if pairs.rates.share[k] > 0]
    shown = []
    for k in order[:TOP]:
        a, b = int(pairs.first[k]), int(pairs.second[k])
        shown.append({
            "a": store.class_names[a], "b": store.class_names[b], "share": float(pairs.rates.share[k]),
            "low": float(pairs.rates.low[k]), "high": float(pairs.rates.high[k]), "clusters": int(pairs.rates.clusters[k]),
            "forward": float(pairs.forward[k]), "backward": float(pairs.backward[k]),
            "pictures": [_mistaken(store, rows, answered, a, b), _mistaken(store, rows, answered, b, a)],
        })  # fmt: skip
    return fragment(
        "report/confusion.html", pairs=shown, confused=len(order), possible=len(pairs.first), protocol=protocol, rule=rule,
        clusters=clusters, meetings=float(pairs.rates.clusters.double().mean()) if len(pairs.first) else 0.0,
    )  # fmt: skip


def _mistaken(store: ImageStore, rows: Tensor, answered: Tensor, label: int, other: int) -> list[Tensor]:
    """Images of a class: those most often taken for the other one, then any."""
    own = (store.labels == label).nonzero().flatten()
    wrong = rows[(store.labels[rows] == label) & (answered == other)]
    times = torch.bincount(wrong, minlength=len(store))[own]
    chosen = own[times.argsort(descending=True, stable=True)[:PICTURES]]
    return list(store.images[chosen])
