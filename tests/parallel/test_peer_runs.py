"""The command under torchrun with `parallel = peers`: the files of one process, and a run that anyone takes up."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from launch import run
from safetensors.torch import load_file

RUN = shlex.split(
    "train --episodes 4 --peers 3 --way 5 --shot 2 --query 3 --seed 3 --set log_every=1 --set val_every=2 --set val_episodes=10"
)
CLASSIFY = shlex.split(
    "classify --epochs 2 --peers 3 --batch 64 --set images_per_class=2 --set val_share=0.5 --method cl-ilr --backbone conv4"
)


def last(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "checkpoints/last-00000004.safetensors")


def interrupted(path: Path, name: str) -> Path:
    """A copy of a finished run whose last checkpoint is lost: it goes on from episode 2."""
    copied = path.with_name(name)
    shutil.copytree(path, copied)
    (copied / "checkpoints/last-00000004.safetensors").write_bytes(b"lost")
    return copied


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run "two" of three peers, trained by two processes."""
    folder = tmp_path_factory.mktemp("place")
    run(2, *RUN, "--set", "parallel=peers", "--out", "two", at=folder)
    return folder


def test_the_files_are_those_of_one_process(place: Path) -> None:
    run(1, *RUN, "--out", "one", at=place)
    one, two = place / "one", place / "two"
    names = {path.relative_to(one) for path in one.rglob("*") if not path.name.startswith("best")}
    assert names == {path.relative_to(two) for path in two.rglob("*") if not path.name.startswith("best")}
    for mine, theirs in ((last(one), last(two)), *((load_file(p / "model.safetensors") for p in (one, two)),)):
        assert {n: (v.shape, v.dtype) for n, v in mine.items()} == {n: (v.shape, v.dtype) for n, v in theirs.items()}
    # Rounding in float32 grows from step to step; the first has none behind it.
    ours, theirs = ((path / "metrics.csv").read_text().splitlines()[1].split(",") for path in (one, two))
    for mine, other in zip(ours, theirs, strict=True):
        assert float(mine or 0) == pytest.approx(float(other or 0), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("banks", ["replicated", "sharded"])
def test_a_resumed_run_ends_with_the_same_bytes(banks: str, place: Path) -> None:
    """Nothing of any peer is missing in a checkpoint, its optimizer's state included."""
    if banks == "sharded":
        both = ["--set", "parallel=peers", "--set", "objective.banks=sharded"]
        run(2, *RUN, *both, "--out", banks, at=place)
    begun = place / ("two" if banks == "replicated" else banks)
    resumed = interrupted(begun, f"{banks} resumed")
    run(2, "train", "--out", resumed.name, "--resume", at=place)
    whole, again = last(begun), last(resumed)
    assert whole.keys() == again.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, again[name])] == []


@pytest.mark.slow
def test_anyone_takes_it_up(place: Path) -> None:
    for name, processes, how in (("alone", 1, ()), ("data", 2, ("--set", "parallel=data")), ("three", 3, ())):
        resumed = interrupted(place / "two", name)
        run(processes, "train", "--out", name, "--resume", *how, at=place)
        steps = {n: float(v) for n, v in last(resumed).items() if n.endswith(".step")}
        assert steps == {n: float(v) for n, v in last(place / "two").items() if n.endswith(".step")}
        ours, theirs = ((path / "metrics.csv").read_text().splitlines() for path in (resumed, place / "two"))
        assert ours[:3] == theirs[:3]
        assert float(ours[3].split(",")[5]) == pytest.approx(float(theirs[3].split(",")[5]), rel=1e-4)
    interrupted(place / "one" if (place / "one").exists() else place / "alone", "joined")
    run(2, "train", "--out", "joined", "--resume", "--set", "parallel=peers", at=place)
    run(1, "evaluate", "two", "--episodes", 20, at=place)
    run(2, "evaluate", "two", "--episodes", 20, at=place)


@pytest.mark.slow
def test_classify_trains_and_tests(place: Path) -> None:
    done = run(2, *CLASSIFY, "--set", "parallel=peers", "--out", "classes", at=place)
    assert done.stdout.count("ensemble") >= 1
    run(1, "evaluate", "classes", at=place)
