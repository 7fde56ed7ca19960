"""A resumed run equals one that never stopped: SHA-256 of every tensor and of every row of metrics, and what makes it so."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import class_folders, split_folders
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from fewshot_mcl.config import Config, FewShotConfig, resolve
from fewshot_mcl.errors import Interrupted
from fewshot_mcl.runs import Run, Tensors
from fewshot_mcl.training import episodic, loop, supervised
from fewshot_mcl.training.session import train

OWN = {  # parameters, gates, attention and banks of the methods, each with its peers
    "baseline": (1, ()),
    "mcl": (2, ("objective.contrast.banks", "objective.contrast.step", "objective.contrast.heads.1.weight")),
    "mcl-okd": (2, ("objective.contrast.banks", "objective.contrast.step", "objective.contrast.heads.1.weight")),
    "dml": (3, ()),
    "cl-ilr": (3, ()),
    "one": (3, ("objective.gate.0.weight",)),
    "okddip": (3, ("objective.query.weight", "objective.key.weight")),
    "rkd-d": (1, ()),
    "rkd-da": (1, ()),
}
TINY = ["image_size=16", "share=last-one", "seed=5", "device=cpu"]
TASKS = {  # of 6 and 5 steps, with checkpoints after 2, 3, 4 and 6, and 2, 4 and 5, and a row of metrics more
    "classify": [*TINY, "backbone=conv4", "epochs=2", "batch=16", "lr=0.02", "save_every=2", "val_every=1", "log_every=5",
                 "decode=always"],
    "few-shot": [*TINY, "episodes=5", "way=3", "query=2", "val_every=2", "val_episodes=4", "val_way=2", "val_query=2",
                 "log_every=3"],
}  # fmt: skip
Stops = tuple[tuple[int, signal.Signals | None], ...]
STOPS: dict[
    str, Stops
] = {  # asked to in a step without a checkpoint, and in one with; killed when a row was written behind one
    "classify": ((1, signal.SIGTERM), (2, signal.SIGTERM), (6, None)),
    "few-shot": ((1, signal.SIGTERM), (2, signal.SIGTERM), (4, None)),
}


class Killed(BaseException):
    """The process ends, now."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By task: three batches of training images with a held-out image a class, or classes by split."""
    root = tmp_path_factory.mktemp("resume")
    labelled = class_folders(root / "labelled", ant=20, bee=16, cat=16, dog=8)
    return {"classify": labelled, "few-shot": split_folders(root / "episodes", count=6)}


@pytest.fixture(autouse=True)
def _few_closing_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodic, "FINAL_EPISODES", 8)


def configuration(task: str, method: str, pictures: dict[str, Path], teacher: Path | None = None) -> Config:
    settings = [*TASKS[task], f"peers={OWN[method][0]}"]
    if method.startswith("mcl"):
        settings += ["objective.negatives=other-class", "objective.num_negatives=8"]
    options = {"data": str(pictures[task]), "method": method, "teacher": str(teacher) if teacher else None}
    return resolve(None, options, settings, task=task)


def work(
    config: Config, out: Path, stop: tuple[int, signal.Signals | None] | None = None, resume: bool = False
) -> None:
    """Train from the start or from the last checkpoint, to the end or until a step (from 1) in which something comes."""
    task = episodic.EpisodicTask if isinstance(config, FewShotConfig) else supervised.SupervisedTask
    step: Callable[..., Any] = task.step

    def disturbed(self: Any, number: int) -> Any:
        if stop and number + 1 == stop[0]:
            if stop[1] is None:
                raise Killed
            signal.raise_signal(stop[1])
        return step(self, number)

    with pytest.MonkeyPatch.context() as patch, open(os.devnull, "w") as nowhere:
        patch.setattr(task, "step", disturbed)
        if stop is None:
            train(Run.open(out).config if resume else config, out, resume, Console(file=nowhere))
            return
        with pytest.raises((Interrupted, Killed)):
            train(Run.open(out).config if resume else config, out, resume, Console(file=nowhere))


def in_parts(config: Config, out: Path, stops: Stops) -> None:
    """A run that is stopped and resumed again and again."""
    for number, stop in enumerate((*stops, None)):
        work(config, out, stop, resume=number > 0)


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every tensor of the last and the best checkpoint and of the model, and of every row of metrics."""
    found = {}
    for name in ("last", "best"):
        manifest = json.loads((out / f"checkpoints/{name}.json").read_text())
        for tensor, value in load_file(out / "checkpoints" / manifest["file"]).items():
            found[f"{name}: {tensor}"] = _digest(tensor, value)
        found |= {f"{name}: {key}": str(manifest[key]) for key in ("file", "val", "best", "sums") if key in manifest}
    found |= {f"model: {name}": _digest(name, value) for name, value in load_file(out / "model.safetensors").items()}
    for number, row in enumerate((out / "metrics.csv").read_bytes().splitlines(keepends=True)):
        found[f"metrics: row {number}"] = hashlib.sha256(row).hexdigest()
    return found


def _digest(name: str, value: torch.Tensor) -> str:
    what = f"{name} {value.dtype} {tuple(value.shape)}".encode()
    return hashlib.sha256(what + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two runs, by name."""
    a, b = hashes(one), hashes(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


@pytest.fixture(scope="module")
def wholes(pictures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An MCL-OKD run of either task that never stopped; not to be written to."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episodic, "FINAL_EPISODES", 8)
        for task in TASKS:
            found[task] = tmp_path_factory.mktemp("whole") / task
            work(configuration(task, "mcl-okd", pictures), found[task])
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", OWN)
def test_a_resumed_run_equals_one_that_never_stopped(
    method: str, task: str, pictures: dict[str, Path], wholes: dict[str, Path], tmp_path: Path, threads: list[int]
) -> None:
    """Also where its images are decoded by other numbers of threads: one for the whole run, up to five for the parts."""
    config = configuration(task, method, pictures, wholes[task] if method.startswith("rkd") else None)
    whole = wholes[task] if method == "mcl-okd" else tmp_path / "whole"
    if method != "mcl-okd":
        work(config, whole)
    threads[:] = [2, 3, 5, 4]
    in_parts(config, tmp_path / "parts", STOPS[task])
    assert differences(whole, tmp_path / "parts") == []
    assert (whole / "metrics.csv").read_bytes() == (tmp_path / "parts/metrics.csv").read_bytes()
    names = hashes(whole)
    for name in (*OWN[method][1], "peers.stages.0.0.0.weight", "running_mean", "running_var", "optimizer.0."):
        assert any(each.startswith("last: ") and name in each for each in names), name


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of threads for data, each for the next that asks how many processors there are; the last for all others."""
    numbers = [1]
    monkeypatch.setattr(os, "cpu_count", lambda: numbers.pop(0) if len(numbers) > 1 else numbers[0])
    return numbers


# Negative controls: of what is saved, nothing can be left out.


def _unrestored(*parts: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Tensors of these names stay as they were when the run was begun anew."""

    def spoil(patch: pytest.MonkeyPatch) -> None:
        real = loop.load_state

        def load_state(module: nn.Module, tensors: Tensors, where: str) -> None:
            own = module.state_dict()
            lost = [name for name in own if any(part in name for part in parts)]
            assert lost
            tensors.update({name: own[name].clone() for name in lost})
            real(module, tensors, where)

        patch.setattr(loop, "load_state", load_state)

    return spoil


def _without_optimizer(patch: pytest.MonkeyPatch) -> None:
    real = Run.save_checkpoint

    def save(self: Run, name: str, tensors: Tensors, state: dict[str, Any]) -> None:
        real(self, name, {k: v for k, v in tensors.items() if not k.startswith("optimizer.")}, state)

    patch.setattr(Run, "save_checkpoint", save)


def _state(**values: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """A checkpoint's state says this instead of what it was."""

    def spoil(patch: pytest.MonkeyPatch) -> None:
        real = Run.load_checkpoint

        def load(self: Run, *arguments: Any, **options: Any) -> Any:
            tensors, state = real(self, *arguments, **options)
            changed = {self.config.unit if name == "number" else name: value for name, value in values.items()}
            return tensors, {**state, **changed}

        patch.setattr(Run, "load_checkpoint", load)

    return spoil


def _without_seed(patch: pytest.MonkeyPatch) -> None:
    real = Config.to_toml
    patch.setattr(Config, "to_toml", lambda self: real(self).replace("seed = 5\n", "", 1))


def _rows_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Run, "keep_metrics_until", lambda self, state: None)


CONTROLS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {  # and a difference that it must make
    "the banks": (_unrestored("contrast.banks"), "last: objective.contrast.banks"),
    "the contrast's step": (_unrestored("contrast.step"), "last: objective.contrast.banks"),
    "batch-norm statistics": (_unrestored("running_mean"), "last: peers.stages.0.0.1.running_mean"),
    "a head": (_unrestored("heads.1"), "last: objective.contrast.banks"),
    "the optimizer": (_without_optimizer, "last: peers.stages.0.0.0.weight"),
    "the number of steps": (_state(number=0), "metrics: row 1"),
    "the running sums": (_state(sums={}, summed=0), "metrics: row 1"),
    "the seed": (_without_seed, "last: peers.stages.0.0.0.weight"),
    "the length of the metrics": (_rows_twice, "metrics: row 5"),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("control", CONTROLS)
def test_without_any_part_of_the_state_the_comparison_fails(
    control: str, task: str, pictures: dict[str, Path], wholes: dict[str, Path], tmp_path: Path
) -> None:
    spoil, found = CONTROLS[control]
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch)
        in_parts(configuration(task, "mcl-okd", pictures), tmp_path / "parts", STOPS[task][::2])
    assert found in differences(wholes[task], tmp_path / "parts")
