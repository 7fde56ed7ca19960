"""What the runs of a table gave: from saved evaluations, or evaluated now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fewshot_mcl.data.splits import split_list
from fewshot_mcl.evaluation.class_session import evaluate_classifier
from fewshot_mcl.evaluation.session import Protocol, evaluate_run
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.reproduce.cells import Cell
from fewshot_mcl.runs import Run
from fewshot_mcl.runs.tensors import Tensors, read_tensors

PREDICTIONS = "predictions.safetensors"


@dataclass(frozen=True)
class Found:
    """What one run gave.

    Attributes:
        networks: accuracy of "deployed", "ensemble" and, of CL-ILR, "ensemble as published", over the test episodes or images.
        content: the evaluation as it was saved.
        minutes: that training took.
    """

    networks: dict[str, Result]
    content: dict[str, Any]
    minutes: float


def result_of(cell: Cell, protocol: Protocol | None) -> Found:
    """The test figures of a finished run; a saved evaluation of the same protocol is taken as it is.

    Args:
        cell: of a table.
        protocol: the episodes; None for a classification run, whose test images are all there are.
    """
    run = Run.open(cell.path)
    minutes = run.read_json("checkpoints/last.json", "seconds")["seconds"] / 60
    content = _saved(run, protocol)
    if content is None:
        content = evaluate_run(run, protocol) if protocol else evaluate_classifier(run)
    networks = _of_episodes(content) if protocol else _of_images(content)
    return Found({_name(content, network): result for network, result in networks.items()}, content, minutes)


def _saved(run: Run, protocol: Protocol | None) -> dict[str, Any] | None:
    """The newest evaluation of the run's own data under this protocol."""
    for path in sorted((run.path / "evaluations").glob("evaluation-???.json"), reverse=True):
        content = run.read_json(f"evaluations/{path.name}", "results", "data")
        entries = content["results"]
        if content["data"] != run.data("train")["source"] or content.get("split", entries[0].get("split")) != "test":
            continue
        if protocol is None or (content["checkpoint"] == "best" and _agrees(entries, protocol)):
            return content | {"file": str(path)}
    return None


def _agrees(entries: list[dict[str, Any]], protocol: Protocol) -> bool:
    wanted = (protocol.way, protocol.query, protocol.episodes, protocol.seed)
    same = all((e["way"], e["query"], e["episodes"], e["seed"]) == wanted for e in entries)
    return same and {e["shot"] for e in entries} == set(protocol.shots)


def _of_episodes(content: dict[str, Any]) -> dict[str, Result]:
    return {e["network"]: Result(torch.tensor(e["accuracies"], dtype=torch.float64)) for e in content["results"]}


def _of_images(content: dict[str, Any]) -> dict[str, Result]:
    """Of the last epoch, image by image."""
    file = Path(content["file"])
    path = file.with_name(f"{file.stem}-{PREDICTIONS}")
    sums = content.get("attachments")  # older evaluations have none
    again = "Put it back from a copy, or evaluate the run again."
    answers: Tensors = read_tensors(path, sums[PREDICTIONS], file.name, again) if sums else load_file(path)
    labels = answers.pop("labels")
    last = {name.removeprefix("last/"): each for name, each in answers.items() if name.startswith("last/")}
    return {name: Result((each == labels).double()) for name, each in last.items()}


def _name(content: dict[str, Any], network: str) -> str:
    return "deployed" if network == content["deployed"] else network


def is_papers_data(content: dict[str, Any], data: str) -> bool:
    """Whether an evaluation is of the very data that the paper has a table on, as far as class names and counts tell."""
    if content["data"] != data:
        return False
    if data == "cifar100":
        names = {name for split in ("train", "val", "test") for name in split_list("cifar_fs", split)}
        return set(content["class_accuracy"]) == names and content["images"] == 10_000
    return data != "imagenet" or (content["classes"], content["images"]) == (1000, 50_000)
