"""What one run gives on the episodes or images of a comparison: from a saved evaluation, or evaluated now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.sources import open_source
from fewshot_mcl.errors import DamagedError, UserError
from fewshot_mcl.evaluation.class_session import evaluate_classifier
from fewshot_mcl.evaluation.session import Protocol, evaluate_run
from fewshot_mcl.runs import Run
from fewshot_mcl.runs.tensors import read_tensors

PREDICTIONS = "predictions.safetensors"
IMAGES = "images"  # the one measure of a run that classifies


@dataclass(frozen=True)
class Request:
    """How runs are measured.

    Attributes:
        protocol: the episodes; None for runs that classify.
        checkpoint: "best" or "last".
        data, root: other data than the runs' own.
    """

    protocol: Protocol | None
    checkpoint: str
    data: str | None = None
    root: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Measured:
    """The deployed network of a run.

    Attributes:
        accuracies: (n,) float64, one an episode or image, by measure: "1-shot", ..., or "images".
        same: what must be equal of runs that are paired: the lists of episodes or the labels, and the data in numbers.
        fingerprint: of the images, in the size that the run sees.
        content: the evaluation.
        reused: whether it was there already.
    """

    accuracies: dict[str, np.ndarray]
    same: tuple[Any, ...]
    fingerprint: str
    content: dict[str, Any]
    reused: bool


def measure(run: Run, request: Request, fresh: bool = False) -> Measured:
    """The figures of a run: of its newest evaluation that fits the request or, on `fresh` or without one, evaluated now.

    Raises:
        UserError: as `evaluate_run` or `evaluate_classifier` does.
    """
    if not fresh:
        for content in _fitting(run, request):
            with contextlib.suppress(DamagedError, KeyError, TypeError, ValueError):  # evaluated again below
                return _measured(run, request, content, reused=True)
    where = {"data": request.data, "root": request.root, "device": request.device}
    if request.protocol:
        content = evaluate_run(run, request.protocol, checkpoint=request.checkpoint, **where)  # type: ignore[arg-type]
    else:
        content = evaluate_classifier(run, **where)  # type: ignore[arg-type]
        content = run.read_json(f"evaluations/{Path(content['file']).name}") | {"file": content["file"]}
    return _measured(run, request, content, reused=False)


def _fitting(run: Run, request: Request) -> Iterator[dict[str, Any]]:
    """Saved evaluations under the request's protocol of the checkpoint as it is now, the newest first."""
    unit, source = run.config.unit, _source_name(run, request)
    try:
        step = run.read_json(f"checkpoints/{request.checkpoint}.json", unit)[unit]
    except DamagedError:
        return
    for path in sorted((run.path / "evaluations").glob("evaluation-*.json"), reverse=True):
        with contextlib.suppress(DamagedError, KeyError, TypeError):
            content = run.read_json(f"evaluations/{path.name}", "results", "data", "fingerprint")
            entries = _entries(content, request)
            now = content.get("checkpoint_episode") if request.protocol else entries[0]["step"] if entries else None
            if entries and content["data"] == source and now == step:
                yield content | {"file": str(path)}


def _source_name(run: Run, request: Request) -> str:
    if request.data is None:
        return str(run.data("train")["source"])
    opened = open_source if request.protocol else open_labelled
    return opened(request.data, request.root, run.image_options).name


def _entries(content: dict[str, Any], request: Request) -> list[dict[str, Any]]:
    """The deployed network's entries of an evaluation, one a measure; none where it is of something else."""
    own = [entry for entry in content["results"] if entry["network"] == content["deployed"]]
    if request.protocol is None:
        return [entry for entry in own if entry["checkpoint"] == request.checkpoint]
    p = request.protocol
    if content["checkpoint"] != request.checkpoint or content.get("precision", "float32") != "float32":
        return []
    wanted = (p.way, p.query, p.episodes, p.seed, p.split)
    fit = {e["shot"]: e for e in own if (e["way"], e["query"], e["episodes"], e["seed"], e["split"]) == wanted}
    return [fit[shot] for shot in p.shots] if set(p.shots) <= set(fit) else []


def _measured(run: Run, request: Request, content: dict[str, Any], reused: bool) -> Measured:
    common = (content["data"], content["classes"], content["images"])
    if request.protocol is None:
        labels, answers = _answers(run, content, request.checkpoint)
        right = {IMAGES: (labels == answers).astype(np.float64)}
        return Measured(right, (labels.tobytes(), *common), content["fingerprint"], content, reused)
    entries = _entries(content, request)
    accuracies = {f"{e['shot']}-shot": np.array(e["accuracies"], np.float64) for e in entries}
    if any(values.shape != (request.protocol.episodes,) for values in accuracies.values()):
        raise ValueError("not one accuracy an episode")
    lists = tuple(entry["episode_list"] for entry in entries)
    return Measured(accuracies, (*lists, *common), content["fingerprint"], content, reused)


def _answers(run: Run, content: dict[str, Any], checkpoint: str) -> tuple[np.ndarray, np.ndarray]:
    """(labels, answers of the deployed network), image by image."""
    file = Path(content["file"])
    path = file.with_name(f"{file.stem}-{PREDICTIONS}")
    again = f"Evaluate the run again: fewshot-mcl evaluate {run.path}"
    tensors = read_tensors(path, content["attachments"][PREDICTIONS], file.name, again)
    name = f"{checkpoint}/{content['deployed']}"
    if name not in tensors:
        raise UserError(
            f"{run.path} has no checkpoint '{checkpoint}': it was trained without validation. Use the other."
        )
    return tensors["labels"].numpy(), tensors[name].numpy()
