"""Which runs belong together: those whose settings are all equal but for the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.errors import UserError
from fewshot_mcl.runs import Run

# Where a run lay and computed; its images are told apart by their fingerprint.
PLACE = ("seed", "data", "root", "device", "memory_share", "deterministic", "on_bad_image", "download", "log_every")
LABELS = {"baseline": "Baseline", "okddip": "OKDDip"}
MOST_IN_LABEL = 3  # settings that tell groups of one method apart; the list of all stands beside them
TRAINED_ON = "training images"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        letter: by which tables call it.
        name: its method, and what tells it from the other groups of that method.
        runs: by seed, in the order of the seeds.
    """

    letter: str
    name: str
    method: str
    runs: dict[int, Run]

    @property
    def seeds(self) -> list[int]:
        return list(self.runs)


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at these paths.

    Raises:
        UserError: where there are fewer than two, one stands there twice, or they are of both tasks.
    """
    if len(paths) < 2:
        raise UserError("a comparison takes two runs or more: fewshot-mcl compare RUN RUN...")
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved):
        if resolved.count(place) > 1:
            raise UserError(f"{path} is named twice: a run compared with itself says nothing. Leave one out.")
    runs = [Run.open(path) for path in paths]
    tasks = {run.config.task: run for run in reversed(runs)}
    if len(tasks) > 1:
        raise UserError(
            f"{tasks['few-shot'].path} was trained on episodes and {tasks['classify'].path} to classify: their figures measure "
            "different things. Compare runs of one kind."
        )
    return runs


def find_groups(runs: Sequence[Run]) -> tuple[list[Group], dict[str, list[str]]]:
    """The groups of some runs, in the order of the runs, and the settings in which they differ.

    Returns:
        The groups, and by name the settings that differ with the value each group has ("-" where it has none).

    Raises:
        UserError: where two runs have the same settings and the same seed.
    """
    found: dict[str, list[Run]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        own = settings_of(run)
        found.setdefault(repr(own), []).append(run)
        settings[repr(own)] = own
    differing = differences(list(settings.values()))
    methods = [own["method"] for own in settings.values()]
    names = _names(methods, differing)
    groups = []
    for i, (name, members) in enumerate(zip(names, found.values())):
        groups.append(Group(_letter(i), name, methods[i], _by_seed(members)))
    return groups, differing


def settings_of(run: Run) -> dict[str, Any]:
    """What a group has in common: every setting that can change what is learned, and the training images."""
    flat = {name: value for name, value in sorted(run.config.flat().items()) if name not in PLACE}
    return flat | {TRAINED_ON: run.data("train")["fingerprint"][:12]}


def differences(settings: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The settings that are not the same for all, "-" where one has no such setting."""
    names = dict.fromkeys(name for own in settings for name in own)
    values = {name: [printable(own.get(name, "-")) for own in settings] for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}


def label(method: str) -> str:
    """A method's name as people write it."""
    return LABELS.get(method, method.upper())


def _names(methods: list[str], differing: dict[str, list[str]]) -> list[str]:
    """One name for each group, different ones."""
    names = []
    for i, method in enumerate(methods):
        same = [j for j, each in enumerate(methods) if each == method]
        own = [f"{key} {values[i]}" for key, values in differing.items() if len({values[j] for j in same}) > 1]
        more = [f"and {len(own) - MOST_IN_LABEL} more"] if len(own) > MOST_IN_LABEL else []
        names.append(", ".join([label(method), *own[:MOST_IN_LABEL], *more]))
    return [f"{name} ({_letter(i)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"G{place + 1}"


def _by_seed(runs: list[Run]) -> dict[int, Run]:
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.config.seed):
        if (other := by_seed.get(run.config.seed)) is not None:
            raise UserError(
                f"{other.path} and {run.path} have the same settings and the same seed: they are one training, not two. Leave "
                "one out."
            )
        by_seed[run.config.seed] = run
    return by_seed


def require_same_training(runs: Sequence[Run], allowed: bool) -> list[str]:
    """What is to be said loudly where runs were trained on different images: nothing, if all have the same.

    Raises:
        UserError: where they have not, and it is not `allowed`.
    """
    seen: dict[str, list[Run]] = {}
    for run in runs:
        seen.setdefault(run.data("train")["fingerprint"], []).append(run)
    if len(seen) < 2:
        return []
    first, other = (each[0] for each in list(seen.values())[:2])
    if not allowed:
        raise UserError(
            f"{first.path} was trained on {_images(first)}, {other.path} on {_images(other)}: they are not the same images, so a "
            "difference may come from the data. Compare them all the same with --other-training-data."
        )
    each = [f"{_images(found[0])} ({first_few([str(run.path) for run in found])})" for found in seen.values()]
    return [f"NOT THE SAME TRAINING IMAGES: {'; '.join(each)}. A difference may come from the data, not the method."]


def _images(run: Run) -> str:
    data = run.data("train")
    size = "x".join(str(side) for side in data["image_size"])
    return f"{len(data['classes'])} classes, {data['images']:,} images of {data['source']} at {size}"
