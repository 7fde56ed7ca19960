"""Signals at every stage of a run, and two processes that want the same directory."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from command_line import TINY, TINY_CLASSIFY, bad, class_folders, good
from forked import Forge, Session, kept
from trouble import Trouble

from fewshot_mcl.resources import program

RUN = [*TINY, "--episodes", 4, "--set", "val_every=2"]
TASK = "fewshot_mcl.training.episodic:EpisodicTask."
STOPPING = "stopping: this step is finished and saved first; again to stop at once"


@pytest.fixture(scope="module")
def whole(forge: Forge, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped; not to be written to."""
    path = tmp_path_factory.mktemp("whole") / "run"
    good(forge.run("train", "--data", data, *RUN, "--out", path))
    return path


def test_a_chain_of_signals_at_every_stage_changes_no_byte(
    forge: Forge, data: Path, whole: Path, tmp_path: Path
) -> None:
    """In a step, in saving, in a validation, and in the closing evaluation, where nothing is left to be saved."""
    out = tmp_path / "run"
    stages = [
        (Trouble("SIGTERM", "call", TASK + "step"), 143, 1),
        (Trouble("SIGINT", "call", TASK + "validate"), 130, 2),
        (Trouble("SIGTERM", "fsync", r"last-00000004\.safetensors"), 143, 4),
        (Trouble("SIGTERM", "call", TASK + "closing"), 143, 4),
        (Trouble("SIGINT", "call", TASK + "closing"), 130, 4),
    ]
    for trouble, code, step in stages:
        begin = ("--out", out, "--resume") if out.exists() else ("--data", data, *RUN, "--out", out)
        answer = forge.run("train", *begin, below=out, trouble=trouble)
        assert answer.code == code, answer
        *before, last = answer.err.splitlines()
        assert before == ([] if trouble.file.endswith("closing") else [STOPPING])
        assert last == (
            f"stopped after episode {step}; the checkpoint of episode {step} is safe. Continue with: {program()} train "
            f"--out {out} --resume"
        )
        assert not (out / "model.json").exists()
    good(forge.run("train", "--out", out, "--resume"), "all 4 episodes are done already")
    assert kept(out) == kept(whole)


def hanging(forge: Forge, out: Path, *arguments: object) -> Session:
    """A session in the middle of a step that takes very long."""
    session = forge.start(*arguments, below=out, trouble=Trouble("hang", "call", TASK + "step", 2))
    session.until(lambda: "hanging" in session.out)
    return session


@pytest.mark.parametrize(("again", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_a_second_signal_does_not_wait_for_the_step(
    again: signal.Signals, code: int, forge: Forge, data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--data", data, *TINY, "--episodes", 4, "--set", "val_every=1", "--out", out]
    session = hanging(forge, out, *arguments)
    session.signal(signal.SIGINT)
    session.until(lambda: STOPPING in session.err)
    session.signal(again)
    answer = session.wait()
    assert answer.code == code
    assert "episode 2/4" not in answer.out  # the step was not finished
    good(forge.run("train", "--out", out, "--resume"), "episodes 2 to 4")


def test_classify_stops_and_goes_on(forge: Forge, tmp_path: Path) -> None:
    pictures = class_folders(tmp_path / "pictures", ant=16, bee=12, cat=8, dog=8)
    begin, out = ("classify", "--data", pictures, *TINY_CLASSIFY, "--out"), tmp_path / "run"
    good(forge.run(*begin, tmp_path / "whole"))
    step = "fewshot_mcl.training.supervised:SupervisedTask.step"
    answer = forge.run(*begin, out, below=out, trouble=Trouble("SIGTERM", "call", step, 3))
    assert answer.code == 143
    assert answer.err.endswith(f"Continue with: {program()} classify --out {out} --resume\n")
    good(forge.run("classify", "--out", out, "--resume"), "top-1 error")
    assert kept(out) == kept(tmp_path / "whole")


def test_a_directory_is_of_one_process_until_that_is_dead(
    forge: Forge, data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--data", data, *RUN, "--set", "val_every=1", "--out", out]
    session = hanging(forge, out, *arguments)
    bad(forge.run("train", "--out", out, "--resume"), "is being trained by another process")
    session.signal(signal.SIGKILL)
    assert session.wait().code == -9
    good(forge.run("train", "--out", out, "--resume"), "episodes 2 to 4")


def test_two_processes_that_make_the_same_directory(forge: Forge, data: Path, tmp_path: Path) -> None:
    """The one that is slower is refused, and touches nothing."""
    out = tmp_path / "run"
    slow = Trouble("hang", "mkdir", "run")
    first = forge.start("train", "--data", data, *RUN, "--out", out, below=out, trouble=slow)
    first.until(lambda: "hanging" in first.out)
    good(forge.run("train", "--data", data, *RUN, "--out", out))
    before = kept(out)
    first.signal(signal.SIGUSR1)
    bad(first.wait(), f"{out} exists")
    assert kept(out) == before


def test_two_processes_that_choose_the_same_name(forge: Forge, data: Path, tmp_path: Path) -> None:
    """The one that is slower takes the next."""
    first = forge.start(
        "train", "--data", data, *RUN, at=tmp_path, below=tmp_path, trouble=Trouble("hang", "mkdir", "pict.*")
    )
    first.until(lambda: "hanging" in first.out)
    good(forge.run("train", "--data", data, *RUN, at=tmp_path), "run runs/pictures-mcl-okd-3way-1shot-seed0\n")
    first.signal(signal.SIGUSR1)
    good(first.wait(), "run runs/pictures-mcl-okd-3way-1shot-seed0-2\n")
