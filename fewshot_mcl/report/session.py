"""`fewshot-mcl report RUN`: the parts of the page, one after the other, and the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from fewshot_mcl.config import COMMANDS, FewShotConfig
from fewshot_mcl.errors import DamagedError, UserError
from fewshot_mcl.evaluation.session import Protocol, drawn
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.pages import refuse_other, write_page
from fewshot_mcl.pages.charts import new_figure
from fewshot_mcl.progress import tracked
from fewshot_mcl.report import classification, headline
from fewshot_mcl.report.material import Material, gather
from fewshot_mcl.runs import Run

ROUNDING = 0.005  # what another machine, or bfloat16, may change of an accuracy
PARTS = (  # modules of this package, in the order of the page
    "headline", "curves", "accuracy", "confusion", "episodes", "embedding", "agreement", "calibration", "shots_ways", "suspects",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of the page."""

    anchor: str
    heading: str
    body: Markup


@dataclass(frozen=True)
class Place:
    """Where networks and images are taken from; as for `material.gather`."""

    checkpoint: str = "best"
    data: str | None = None
    root: Path | None = None
    device: str = "auto"


def report_episodes(
    run: Run, protocol: Protocol, place: Place, out: Path, command: list[str], saved: dict[str, Any] | None = None
) -> Path:
    """Write the page of a few-shot run.

    Args:
        run: a run directory.
        protocol: the episodes; the page is about the first of its shots.
        place: which checkpoint and data.
        out: the HTML file.
        command: the words that make the page again.
        saved: an evaluation under this protocol whose figures must come out again.

    Raises:
        UserError: as for `material.gather` and `pages.write_page`; if matplotlib is missing; if `saved` is of other
            images, episodes or another checkpoint.
    """
    new_figure()  # what is missing or in the way is said before the work, not after
    refuse_other(out)
    material = gather(run, protocol, checkpoint=place.checkpoint, data=place.data, root=place.root, device=place.device)
    if saved is not None:
        material = replace(material, notes=(*material.notes, compare(material, saved)))
    parts = []
    for name in tracked(PARTS, "writing the page", len(PARTS)):
        module = import_module(f"fewshot_mcl.report.{name}")
        parts.append(Part(module.ANCHOR, module.HEADING, module.section(material)))
    return _write(run, parts, out, command)


def report_images(run: Run, number: int | None, place: Place, out: Path, command: list[str]) -> Path:
    """Write the page of a run of `classify`, from its evaluation `number` (None: the newest, or one that is made now).

    Raises:
        UserError: as for `classification.gather` and `pages.write_page`; if matplotlib is missing.
    """
    new_figure()
    refuse_other(out)
    material = classification.gather(run, number, data=place.data, root=place.root, device=place.device)
    return _write(run, [Part(*each) for each in classification.parts(material)], out, command)


def compare(material: Material, saved: dict[str, Any]) -> str:
    """Say that the figures of a saved evaluation have come out again, or nearly.

    Raises:
        UserError: if it is of other images, episodes or another checkpoint, or the figures are others.
    """
    by_shot = {shot: drawn(material.store, material.protocol, shot) for shot in material.protocol.shots}
    pairs = {
        "images": (saved["fingerprint"], material.store.fingerprint),
        "checkpoint": (saved["checkpoint_episode"], material.state["episode"]),
        "episodes": ([e["episode_list"] for e in saved["results"]], [by_shot[e["shot"]].digest for e in saved["results"]]),
    }  # fmt: skip
    for what, (then, now) in pairs.items():
        if then != now:
            raise UserError(
                f"that evaluation is of other {what} than there are now. Name the data it is of (--data, --root), or make a "
                "report without --evaluation."
            )
    found = {shot: headline.networks(material, episodes) for shot, episodes in by_shot.items()}
    changes = [
        found[entry["shot"]][entry["network"]].minus(Result(torch.tensor(entry["accuracies"], dtype=torch.float64)))
        for entry in saved["results"]
    ]
    worst, differing = max(abs(each.mean) for each in changes), sum(bool(each.accuracies.any()) for each in changes)
    if not differing:
        return "Every figure of the saved evaluation came out again, episode by episode."
    if worst > ROUNDING:
        raise UserError(
            f"a figure of that evaluation comes out {100 * worst:.2f} points away from what was saved: the run or the evaluation "
            "was changed. Evaluate the run again."
        )
    return (
        f"The saved evaluation ({saved.get('precision', 'float32')}) came out again but for rounding: its means by "
        f"{100 * worst:.3f} points at most."
    )


def _write(run: Run, parts: Iterable[Part], out: Path, command: list[str]) -> Path:
    config = run.config
    what = f"{config.method}, {config.peers} × {config.backbone}"
    trained = f"{config.way}-way {config.shot}-shot" if isinstance(config, FewShotConfig) else "to classify"
    again = ["fewshot-mcl", COMMANDS[config.task], "--config", str(run.path / "config.toml"), "--out", "NEW"]
    return write_page(
        out, "report.html", title=f"Report: {run.path.name}", command=command, parts=[p for p in parts if p.body],
        lead=f"{what}, trained {trained} on {run.data('train')['source']}", trained=_commands(run),
        again=shlex.join(again), machine=_machine(run),
    )  # fmt: skip


def _commands(run: Run) -> list[str]:
    path = run.path / "command.txt"
    return path.read_text("utf-8", "replace").splitlines() if path.exists() else []


def _machine(run: Run) -> list[list[str]]:
    """What environment.json says, in rows; nothing where it is missing or damaged."""
    try:
        found = run.read_json("environment.json")
    except DamagedError:
        return []
    packages = found.get("packages", {})
    rows = {"fewshot-mcl": found.get("fewshot_mcl"), "Python": found.get("python"), **packages}
    rows |= {"system": found.get("platform"), "device": found.get("device"), "threads": found.get("threads")}
    return [[name, str(value)] for name, value in rows.items() if value is not None]
