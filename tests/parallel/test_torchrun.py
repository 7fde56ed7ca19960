"""The command under torchrun: one run directory, one voice, the same figures, and a run that any number of processes takes up."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from launch import command, run

from fewshot_mcl.runs.files import read_json

RUN = shlex.split(
    "train --episodes 4 --peers 2 --way 5 --shot 2 --query 3 --set val_every=2 --set val_episodes=10 --set log_every=1 --seed 3"
)


def rows(path: Path) -> list[dict[str, float]]:
    with (path / "metrics.csv").open(newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run "two", trained by two processes."""
    folder = tmp_path_factory.mktemp("place")
    done = run(2, *RUN, "--out", "two", at=folder)
    assert done.stdout.count("Trained in") == 1
    assert done.stdout.count("episode 4/4") == 1
    return folder


def test_two_processes_train_the_run_of_one(place: Path) -> None:
    run(1, *RUN, "--out", "one", at=place)
    assert {path.name for path in (place / "one").iterdir()} == {path.name for path in (place / "two").iterdir()}
    # Rounding in float32 grows from step to step; that nothing else differs is shown in float64, in the file beside this one.
    for number, (one, two) in enumerate(zip(rows(place / "one"), rows(place / "two"), strict=True)):
        for name, value in one.items():
            if not name.startswith("val"):
                assert two[name] == pytest.approx(value, rel=1e-4 if number == 0 else 5e-3), (number, name)


def test_an_evaluation_has_the_same_figures_to_the_last_digit(place: Path) -> None:
    for processes in (1, 2):
        run(processes, "evaluate", "two", "--episodes", 41, "--shot", 1, at=place)
    saved = [read_json(path, "results") for path in sorted((place / "two/evaluations").glob("*.json"))]
    assert len(saved) == 2
    one, two = ([result["accuracies"] for result in each["results"]] for each in saved)
    assert one == two


def test_a_mistake_is_said_once(place: Path) -> None:
    done = run(2, "train", "--data", "nowhere", at=place, code=2)
    assert done.stderr.count("error: ") == 1
    done = run(2, *RUN, "--out", "two", at=place, code=2)
    assert done.stderr.count("two exists") == 1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_is_taken_up_by_one(place: Path) -> None:
    """All are gone within 40 seconds (torchrun gives the others 30 to end), and one process ends the run as two would have."""
    long = [word if word != "4" else "40" for word in RUN]
    session = subprocess.Popen(
        command(2, *long, "--out", "killed"), cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    last = place / "killed/checkpoints/last.json"
    while not last.exists():
        assert session.poll() is None
        time.sleep(0.1)
    listed = subprocess.run(["pgrep", "-P", str(session.pid)], capture_output=True, text=True, check=True)
    os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
    begun = time.monotonic()
    session.communicate(timeout=60)
    assert session.returncode != 0
    assert time.monotonic() - begun < 40
    step = json.loads(last.read_text())["episode"]
    assert 2 <= step < 40
    run(1, "train", "--out", "killed", "--resume", at=place)
    run(2, *long, "--out", "whole", at=place)
    ended, whole = ({row["episode"]: row for row in rows(place / name)} for name in ("killed", "whole"))
    assert ended.keys() == whole.keys()
    assert torch.isfinite(torch.tensor([row["total"] for row in ended.values()])).all()
    assert ended[step]["total"] == pytest.approx(whole[step]["total"], rel=1e-3)
