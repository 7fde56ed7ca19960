"""Real episodes as pictures: the worst, one in the middle, the best."""

from __future__ import annotations

from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from fewshot_mcl.pages import fragment
from fewshot_mcl.report.answers import deployed_answers, deployed_logits, protocol_text
from fewshot_mcl.report.material import Material

HEADING = "Real episodes"
ANCHOR = "episodes"
QUERIES = 40  # of an episode that are shown: all the wrong ones that there is room for, then right ones
CLASSES, SUPPORT = 10, 5  # classes of an episode, and support images of a class, that are shown


def section(material: Material) -> Markup:
    """Three episodes: what the network had to go by, and what it made of the queries."""
    targets = torch.arange(material.episodes.query.shape[1])[:, None]
    right = (deployed_answers(material) == targets).flatten(1).sum(1)
    order = right.argsort(stable=True)
    chosen = {"Worst": order[0], "Median": order[len(order) // 2], "Best": order[-1]}
    shown = [_episode(material, kind, int(number), right) for kind, number in chosen.items()]
    return fragment(
        "report/episodes.html", episodes=shown, protocol=protocol_text(material),
        euclidean=material.config.metric == "euclidean", classes=CLASSES,
        hidden=any(len(c["queries"]) < c["asked"] for e in shown for c in e["classes"]),
    )  # fmt: skip


def _episode(material: Material, kind: str, number: int, right: Tensor) -> dict[str, Any]:
    """One episode for the template; `right` are the queries classified right of every episode, (E,)."""
    episode = material.episodes[number : number + 1]
    logits = deployed_logits(material, episode)[0]
    names = [material.store.class_names[label] for label in episode.classes[0].tolist()]
    share = max(1, QUERIES // min(len(names), CLASSES))
    classes = [
        {
            "name": name,
            "letter": _letter(k),
            "support": list(material.store.images[episode.support[0, k, :SUPPORT]]),
            "support_more": max(0, episode.support.shape[2] - SUPPORT),
            "queries": _queries(material, episode.query[0, k], logits[k], k, names, share),
            "right": int((logits[k].argmax(-1) == k).sum()),
            "asked": len(logits[k]),
        }
        for k, name in enumerate(names[:CLASSES])
    ]
    return {
        "kind": kind, "number": number, "right": int(right[number]), "asked": logits.shape[0] * logits.shape[1],
        "alike": int((right == right[number]).sum()), "classes": classes, "way": len(names),
    }  # fmt: skip


def _queries(
    material: Material, rows: Tensor, logits: Tensor, own: int, names: list[str], most: int
) -> list[dict[str, Any]]:
    """Queries of one class, wrong ones first.

    Args:
        rows: (query,) images.
        logits: (query, way).
        own: position of their class.
        names: of the classes of the episode.
        most: queries that are shown.
    """
    answers, chances, lengths = logits.argmax(-1), logits.softmax(-1), _lengths(material, logits)
    order = (answers == own).int().argsort(stable=True)[:most].tolist()
    return [
        {
            "image": material.store.images[rows[q : q + 1]][0], "right": int(answers[q]) == own, "taken": names[int(answers[q])],
            "letter": _letter(int(answers[q])),
            "chance": float(chances[q, answers[q]]), "own_chance": float(chances[q, own]),
            "length": float(lengths[q, answers[q]]), "own_length": float(lengths[q, own]),
        }
        for q in order
    ]  # fmt: skip


def _lengths(material: Material, logits: Tensor) -> Tensor:
    """Logits as what they measure: the distance to each prototype, or the cosine with it."""
    if material.config.metric == "euclidean":
        return (-logits).clamp_min(0).sqrt()
    return logits / material.config.scale


def _letter(position: int) -> str:
    """What a class is called in its episode: A, B, ..., Z, 27, ..."""
    return chr(ord("A") + position) if position < 26 else str(position + 1)
