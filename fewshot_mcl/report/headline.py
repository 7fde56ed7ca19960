"""The first part of the page: how good the network is, on what, and against what."""

from __future__ import annotations

import torch
from markupsafe import Markup
from torch import Tensor

from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation.fewshot import evaluate_peers
from fewshot_mcl.evaluation.session import drawn
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.pages import fragment
from fewshot_mcl.report.material import Material

HEADING = "What it is worth"
ANCHOR = "headline"
PIXELS = "nearest class mean of raw pixels"


def section(material: Material) -> Markup:
    """Accuracy of the deployed network on every shot of the protocol, against its ensemble and against raw pixels, paired."""
    found, deployed, shot = results(material), f"peer {material.config.peers - 1}", material.protocol.shots[0]
    first = found[shot][deployed]
    rivals = [name for name in ("ensemble", PIXELS) if name in found[shot]]
    rows = [
        _row(shot, name, result, each[deployed], name == deployed)
        for shot, each in found.items()
        for name, result in each.items()
    ]
    return fragment(
        "report/headline.html", first=first, against={name: first.minus(found[shot][name]) for name in rivals}, rows=rows,
        material=material, shot=shot, deployed=deployed, checkpoint=checkpoint_text(material.state),
        leaks=len(material.duplicates.leaks),
    )  # fmt: skip


def results(material: Material) -> dict[int, dict[str, Result]]:
    """shot -> network -> accuracies: of every peer, the ensemble and raw pixels, on the same episodes."""
    by_shot = {shot: drawn(material.store, material.protocol, shot) for shot in material.protocol.shots}
    return {
        shot: networks(material, episodes) | {PIXELS: Result(pixel_accuracies(material.store, episodes))}
        for shot, episodes in by_shot.items()
    }


def networks(material: Material, episodes: Episodes) -> dict[str, Result]:
    """Accuracies of every peer and the ensemble."""
    return evaluate_peers(material.measured, episodes, metric=material.config.metric, scale=material.config.scale)


def pixel_accuracies(store: ImageStore, episodes: Episodes) -> Tensor:
    """(E,) float64 accuracies where the pixels themselves, as numbers from 0 to 1, are the features."""
    _, way, query = episodes.query.shape
    targets, found = torch.arange(way).repeat_interleave(query), []
    for support, queries in zip(episodes.support, episodes.query):
        pixels = store.images[torch.cat([support.flatten(), queries.flatten()])].flatten(1).float() / 255
        centres = F.prototypes(pixels[: support.numel()].unflatten(0, support.shape))
        answers = F.prototypical_logits(pixels[support.numel() :], centres).argmax(-1)
        found.append((answers == targets).double().mean())
    return torch.stack(found)


def checkpoint_text(state: dict[str, object]) -> str:
    """Which checkpoint was looked at."""
    kind = {"best": "best by validation", "last": "the last one"}.get(str(state.get("checkpoint")), "")
    return f"episode {state['episode']}{f' ({kind})' if kind else ''}"


def interval(result: Result, sign: str = "") -> str:
    """ "76.57 ± 0.80": mean and 95% interval in percent."""
    return f"{100 * result.mean:{sign}.2f} ± {100 * result.ci95:.2f}"


def _row(shot: int, name: str, result: Result, deployed: Result, is_deployed: bool) -> list[str]:
    label = f"{name} (deployed)" if is_deployed else name
    difference = "–" if is_deployed else interval(result.minus(deployed), "+")
    return [label, str(shot), interval(result), difference]
