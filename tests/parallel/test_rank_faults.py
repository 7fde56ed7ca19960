"""Processes that end, differ or are slow: what the others do and say, and how a run goes on from there."""

from __future__ import annotations

import csv
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot_mcl import job
from fewshot_mcl.runs.files import read_json

RUN = shlex.split(
    "--episodes 16 --peers 2 --way 5 --shot 2 --query 3 --set val_every=4 --set val_episodes=10 --set log_every=1 --lr 1e-4"
)
GONE = 40  # seconds, after which no process may be left: torchrun gives them 30 to end
DIFFERING = Path(__file__).with_name("differing.py")


class Session:
    """A command in several processes; what each said on standard error is in a file of its own."""

    def __init__(
        self, at: Path, processes: int, *arguments: object, program: object = "", launch: str = "--standalone"
    ):
        self.logs = at / f"logs{len(list(at.glob('logs*')))}"
        self.logs.mkdir()
        launcher = [
            "-m", "torch.distributed.run", *launch.split(), "--nproc-per-node", str(processes), "--log-dir",
            str(self.logs), "--redirects", "2",
        ]  # fmt: skip
        called = shlex.split(str(program)) if program else ["-m", "fewshot_mcl"]
        self.process = subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else []), *called, *map(str, arguments)],
            cwd=at, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def end(self) -> tuple[int, str, list[str]]:
        """Exit code, standard output, and what each process said on standard error, in their order."""
        out, error = self.process.communicate(timeout=300)
        said = [path.read_text() for path in sorted(self.logs.rglob("stderr.log"))]
        return self.process.returncode, out, said or [error]

    def workers(self) -> list[int]:
        """Its processes that are there by now, in their order."""
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(number) for number in listed.stdout.split()]

    def kill_one(self, number: int) -> None:
        """SIGKILL for one of its processes."""
        os.kill(self.workers()[number], signal.SIGKILL)

    def wait_for(self, path: Path) -> None:
        """Until a file is there."""
        while not path.exists():
            assert self.process.poll() is None, self.end()
            time.sleep(0.05)


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def remains(run: Path) -> dict[str, str]:
    """SHA-256 of the metrics and of all tensors of a run."""
    paths = [run / "metrics.csv", *run.rglob("*.safetensors")]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What remains of a run of two processes that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert Session(folder, 2, "train", *RUN, "--out", "run").end()[0] == 0
    return remains(folder / "run")


def folders(at: Path, *shades: int) -> None:
    """A folder of images for each shade, of a few classes, of which no two folders have the same."""
    for number, shade in enumerate(shades):
        for split, names in {"train": "abcdef", "val": "uvwxyz"}.items():
            for each, name in enumerate(names):
                folder = at / f"images{number}" / split / name
                folder.mkdir(parents=True)
                for image in range(6):
                    pixels = np.full((12, 12), shade + 10 * each + image, np.uint8)
                    Image.fromarray(pixels).save(folder / f"{image}.png")


def test_other_images_are_refused_by_every_process_and_said_once(tmp_path: Path) -> None:
    folders(tmp_path, 20, 21)
    code, _, said = Session(
        tmp_path,
        2,
        "as-given",
        "train",
        "--data",
        "images{rank}",
        *RUN,
        "--set",
        "val_query=3",
        "--out",
        "run",
        program=DIFFERING,
    ).end()
    assert code != 0
    assert "".join(said).count("error: ") == 1
    assert "process 1 has other train images than process 0" in "".join(said)
    assert not (tmp_path / "run").exists()


def test_a_process_that_fails_says_why_and_the_other_that_it_is_alone(tmp_path: Path) -> None:
    code, _, (other, failed) = Session(tmp_path, 2, "memory", "train", *RUN, "--out", "run", program=DIFFERING).end()
    assert code != 0
    assert failed.count("error: not enough memory") == 1
    assert other.count(f"error: {job.LOST}") <= 1  # torchrun may have ended it before
    assert "Traceback" not in other + failed


@pytest.mark.slow
def test_a_slow_process_is_named_once(tmp_path: Path) -> None:
    session = Session(tmp_path, 2, "slow", "train", *RUN, "--episodes", 24, "--out", "run", program=DIFFERING)
    code, out, said = session.end()
    assert code == 0, said
    assert out.count(" is slow: ") == 1
    assert "process 1 (host " in out


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_which_say_how_to_go_on(killed: int, tmp_path: Path) -> None:
    session = Session(tmp_path, 2, "train", *RUN, "--episodes", 400, "--out", "run")
    session.wait_for(tmp_path / "run/checkpoints/last.json")
    session.kill_one(killed)
    begun = time.monotonic()
    code, _, said = session.end()
    assert time.monotonic() - begun < GONE
    assert code != 0
    assert said[killed] == ""
    other = said[1 - killed].splitlines()
    assert "Traceback" not in said[1 - killed]
    assert other[-1].startswith(f"error: {job.LOST}. This one stopped after episode ")
    assert other[-1].endswith("-m fewshot_mcl train --out run --resume")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "launch"),
    [(True, "--standalone"), (False, "--standalone"), (True, "--master-addr 127.0.0.1 --master-port 29617")],
)
def test_started_again_a_run_ends_as_if_nothing_had_happened(
    named: bool, launch: str, whole: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run" if named else tmp_path / "runs/glyphs-mcl-okd-5way-2shot-seed0"
    out = ["--out", "run"] if named else []
    session = Session(tmp_path, 2, "train", *RUN, *out, launch=f"{launch} --max-restarts 1")
    session.wait_for(folder / "checkpoints/last.json")
    session.kill_one(-1)
    code, _, said = session.end()
    assert code == 0, said
    assert len((folder / "command.txt").read_text().splitlines()) == 2
    assert remains(folder) == whole
    assert named or len(list(folder.parent.iterdir())) == 1


@pytest.mark.slow
def test_started_again_a_job_begins_a_run_that_is_not_there_yet(tmp_path: Path) -> None:
    session = Session(tmp_path, 2, "train", *RUN, "--out", "run", launch="--standalone --max-restarts 1")
    while len(session.workers()) < 2:
        time.sleep(0.05)
    session.kill_one(0)
    code, _, said = session.end()
    assert code == 0, said
    assert len((tmp_path / "run/command.txt").read_text().splitlines()) == 1


@pytest.mark.slow
def test_started_again_a_job_takes_up_no_run_that_was_there_before(tmp_path: Path) -> None:
    assert Session(tmp_path, 1, "train", *RUN, "--episodes", 4, "--out", "old").end()[0] == 0
    before = remains(tmp_path / "old"), (tmp_path / "old/command.txt").read_text()
    code, _, said = Session(
        tmp_path, 2, "train", *RUN, "--episodes", 4, "--out", "old", launch="--standalone --max-restarts 1"
    ).end()
    assert code != 0
    assert "".join(said).count("error: old exists.") == 2  # of each start, once
    assert (remains(tmp_path / "old"), (tmp_path / "old/command.txt").read_text()) == before


@pytest.mark.slow
def test_any_number_of_processes_takes_up_the_run_of_any_other(tmp_path: Path) -> None:
    """The signal that stops it reaches the last process alone."""
    stops = {2: "stop-at-5", 1: "stop-at-2", 4: "stop-at-5"}
    for processes, stop in stops.items():
        more = RUN if processes == 2 else ["--resume"]
        code, _, said = Session(tmp_path, processes, stop, "train", *more, "--out", "run", program=DIFFERING).end()
        assert code != 0
        assert "".join(said).count("is safe. Continue with: ") == 1, said
    assert read_json(tmp_path / "run/checkpoints/last.json", "episode")["episode"] == 12
    for run, arguments in {"run": ["--resume"], "one": RUN}.items():
        code, _, said = Session(tmp_path, 2 if run == "run" else 1, "train", *arguments, "--out", run).end()
        assert code == 0, said
    for number, (several, one) in enumerate(zip(rows(tmp_path / "run"), rows(tmp_path / "one"), strict=True)):
        for name, value in one.items():
            if not name.startswith("val"):
                assert several[name] == pytest.approx(value, rel=2e-3), (number, name)
