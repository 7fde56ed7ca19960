"""The evaluations that a run keeps, read back."""

from __future__ import annotations

import re
from typing import Any

from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.session import Protocol
from fewshot_mcl.runs import Run


def numbers(run: Run) -> list[int]:
    """Those of the run's evaluations, in order."""
    names = (path.name for path in (run.path / "evaluations").glob("evaluation-*.json"))
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"evaluation-(\d{3,})\.json", name)))


def read_evaluation(run: Run, number: int) -> dict[str, Any]:
    """A saved evaluation of a run.

    Raises:
        UserError: if there is none of that number, or it is damaged.
    """
    kept = numbers(run)
    if number not in kept:
        raise UserError(f"{run.path} has no evaluation {number}: there is {', '.join(map(str, kept)) or 'none'}.")
    return run.read_json(f"evaluations/evaluation-{number:03d}.json", "results", "fingerprint")


def protocol_of(saved: dict[str, Any], shot: int | None) -> Protocol:
    """The protocol of a saved evaluation on episodes, `shot` (or its first one) before its others.

    Raises:
        UserError: if it has no such shot.
    """
    first = saved["results"][0]
    shots = list(dict.fromkeys(entry["shot"] for entry in saved["results"]))
    if shot is not None and shot not in shots:
        raise UserError(f"--shot {shot}: that evaluation is {' and '.join(map(str, shots))}-shot.")
    shots.sort(key=lambda each: shot not in (None, each))
    return Protocol(first["way"], tuple(shots), first["query"], first["episodes"], first["seed"], first["split"])
