"""Processes that die while they write: nothing good is lost, and what they would have become is reached all the same.

The hundreds of kills at seeded instants are `tests/campaigns/kill.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import PROTOCOL, TINY, bad, good
from forked import Forge, kept
from trouble import Trouble

RUN = [*TINY, "--episodes", 6, "--set", "val_every=2"]
INSIDE = [  # operation, file, how many of those are done: in the order in which a run reaches them
    ("write", r"best-00000002\.safetensors", 20),
    ("replace", r"last-00000004\.safetensors", 0),
    ("replace", r"last\.previous\.json", 0),
    ("fsync", r"last\.json", 0),
    ("replace", r"metrics\.csv", 0),
    ("unlink", r"last-00000002\.safetensors", 0),
    ("write", r"model\.json", 0),
]


@pytest.fixture(scope="module")
def whole(forge: Forge, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped; not to be written to."""
    path = tmp_path_factory.mktemp("whole") / "run"
    good(forge.run("train", "--data", data, *RUN, "--out", path))
    return path


def killed(forge: Forge, out: Path, trouble: Trouble, *arguments: object) -> None:
    answer = forge.run(*(arguments or ("train", "--out", out, "--resume")), below=out, trouble=trouble)
    assert answer.code == -9, (trouble, answer)


def test_killed_again_and_again_while_saving(forge: Forge, data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed(forge, out, Trouble("SIGKILL", "call", "fewshot_mcl.training.episodic:EpisodicTask.step", 4),
           "train", "--data", data, *RUN, "--out", out)  # fmt: skip
    for operation, file, done in INSIDE[1:]:
        killed(forge, out, Trouble("SIGKILL", operation, file, done + 1))
    good(forge.run("train", "--out", out, "--resume"))
    assert kept(out) == kept(whole)
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(
    "instant", [INSIDE[0], ("replace", r"last-00000002\.safetensors", 1)], ids=["in the best one", "after the best one"]
)
def test_killed_before_its_first_checkpoint(
    instant: tuple[str, str, int], forge: Forge, data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed(forge, out, Trouble("SIGKILL", *instant), "train", "--data", data, *RUN, "--out", out)
    good(forge.run("train", "--out", out, "--resume"), "begins again")
    assert kept(out) == kept(whole)


@pytest.mark.parametrize("file", ["environment.json", "data.json", "config.toml"])
def test_killed_while_its_directory_is_made(file: str, forge: Forge, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin = ("train", "--data", data, *RUN, "--out", out)
    killed(forge, out, Trouble("SIGKILL", "replace", re.escape(file), 1), *begin)
    bad(forge.run("train", "--out", out, "--resume"), "is not a run directory")
    answer = forge.run(*begin)
    bad(answer, "exists", "another --out")
    assert "--resume" not in answer.err


def test_killed_between_a_checkpoint_without_metrics_and_the_next(forge: Forge, data: Path, tmp_path: Path) -> None:
    """The metrics that go back to nothing are begun again."""
    begin = ["train", "--data", data, *RUN, "--set", "log_every=2"]
    step = "fewshot_mcl.training.episodic:EpisodicTask.step"
    good(forge.run(*begin, "--out", tmp_path / "whole"))
    out = tmp_path / "run"
    stopped = forge.run(*begin, "--out", out, below=out, trouble=Trouble("SIGTERM", "call", step))
    assert (stopped.code, (out / "metrics.csv").exists()) == (143, False)
    killed(forge, out, Trouble("SIGKILL", "write", r"last-.*", 1))
    assert (out / "metrics.csv").exists()
    good(forge.run("train", "--out", out, "--resume"))
    assert kept(out) == kept(tmp_path / "whole")


def test_killed_while_it_replaces_a_damaged_checkpoint(forge: Forge, data: Path, whole: Path, tmp_path: Path) -> None:
    """The one before it was good, and stays until there is a better one."""
    out = tmp_path / "run"
    killed(forge, out, Trouble("SIGKILL", "write", r"model\.safetensors"), "train", "--data", data, *RUN, "--out", out)
    last = out / "checkpoints" / json.loads((out / "checkpoints/last.json").read_text())["file"]
    last.write_bytes(last.read_bytes()[:-1])
    step = "fewshot_mcl.training.episodic:EpisodicTask.step"
    stopping = forge.run("train", "--out", out, "--resume", below=out, trouble=Trouble("SIGINT", "call", step))
    assert stopping.code == 130
    assert json.loads((out / "checkpoints/last.json").read_text())["episode"] == 5
    assert json.loads((out / "checkpoints/last.previous.json").read_text())["episode"] == 4
    good(forge.run("train", "--out", out, "--resume"))
    assert kept(out) == kept(whole)


def test_killed_between_the_two_names_of_a_damaged_checkpoint(
    forge: Forge, data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed(forge, out, Trouble("SIGKILL", "write", r"model\.safetensors"), "train", "--data", data, *RUN, "--out", out)
    (out / "checkpoints/last.json").write_text("{")
    killed(forge, out, Trouble("SIGKILL", "replace", r"last\.json"))
    good(forge.run("train", "--out", out, "--resume"), "the checkpoint before it is used", "episode 4")
    assert kept(out) == kept(whole)


def test_an_evaluation_that_was_killed_leaves_none(forge: Forge, whole: Path) -> None:
    folder = whole / "evaluations"
    for operation in ("write", "replace"):
        killed(forge, whole, Trouble("SIGKILL", operation, r"evaluation-001\.json"), "evaluate", whole, *PROTOCOL)
        assert not list(folder.glob("*.json"))
    good(forge.run("evaluate", whole, *PROTOCOL), "evaluation-001.json")
    assert json.loads((folder / "evaluation-001.json").read_text())["results"]
