"""Disks that fail and rights that are lost: a loud sentence, nothing good lost, and the run goes on once it can.

With real disks of a few kilobytes: `tests/campaigns/faults.py`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from command_line import TINY, bad, good
from forked import Forge, kept
from trouble import Trouble

RUN = [*TINY, "--episodes", 4, "--set", "val_every=2"]


@pytest.fixture(scope="module")
def whole(forge: Forge, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never failed; not to be written to."""
    path = tmp_path_factory.mktemp("whole") / "run"
    good(forge.run("train", "--data", data, *RUN, "--out", path))
    return path


@pytest.mark.parametrize(
    ("name", "operation", "file", "left"),
    [
        (
            "ENOSPC",
            "write",
            r"last-00000004\.safetensors",
            "stopped after episode 4; the checkpoint of episode 2 is safe",
        ),
        ("EIO", "fsync", r"last-00000004\.safetensors", "stopped after episode 4; the checkpoint of episode 2 is safe"),
        ("EDQUOT", "replace", r"last\.previous\.json", "stopped after episode 4; the checkpoint of episode 2 is safe"),
        ("EROFS", "close", r"metrics\.csv", "stopped after episode 3; the checkpoint of episode 2 is safe"),
        ("EIO", "fsync", r"metrics\.csv", "stopped after episode 4; the checkpoint of episode 2 is safe"),
        ("ENOSPC", "write", r"model\.json", "stopped after episode 4; the checkpoint of episode 4 is safe"),
    ],
)
def test_a_disk_that_fails(
    name: str, operation: str, file: str, left: str, forge: Forge, data: Path, whole: Path, tmp_path: Path
) -> None:
    """From one operation on all of that kind fail."""
    out = tmp_path / "run"
    nth = {"close": 3, "fsync": 2}.get(operation, 1) if file.startswith("metrics") else 1
    trouble = Trouble(name, operation, file, nth, lasting=True)
    answer = forge.run("train", "--data", data, *RUN, "--out", out, below=out, trouble=trouble)
    bad(
        answer, "cannot write", file.replace("\\", ""), os.strerror(getattr(errno, name)), left, f"--out {out} --resume"
    )
    good(forge.run("train", "--out", out, "--resume"))
    assert kept(out) == kept(whole)


def test_a_limit_on_the_size_of_files(forge: Forge, data: Path, tmp_path: Path) -> None:
    answer = forge.run("train", "--data", data, *RUN, "--out", tmp_path / "run", most_bytes=50_000)
    bad(answer, "cannot write", "best-00000002.safetensors", "File too large", "before the first checkpoint")
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_the_right_to_write_is_lost(forge: Forge, data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    denied = Trouble("denied", "call", "fewshot_mcl.training.episodic:EpisodicTask.step", 4)
    answer = forge.run("train", "--data", data, *RUN, "--out", out, below=out, trouble=denied)
    bad(answer, "cannot write", "Permission denied", str(out))
    for folder in (out, out / "checkpoints"):
        folder.chmod(0o755)
    good(forge.run("train", "--out", out, "--resume"))
    assert kept(out) == kept(whole)


def test_a_directory_that_cannot_be_written_to(forge: Forge, data: Path, whole: Path, tmp_path: Path) -> None:
    out, step = tmp_path / "run", "fewshot_mcl.training.episodic:EpisodicTask.step"
    stopped = forge.run(
        "train", "--data", data, *RUN, "--out", out, below=out, trouble=Trouble("SIGTERM", "call", step, 3)
    )
    assert stopped.code == 143
    read_only = Trouble("EROFS", "", "", lasting=True)
    bad(forge.run("train", "--out", out, "--resume", below=out, trouble=read_only), "cannot write", "Read-only")
    (tmp_path / "file").touch()
    bad(forge.run("train", "--data", data, *RUN, "--out", tmp_path / "file/run"), "cannot make", "Not a directory")
    good(forge.run("train", "--out", out, "--resume"))
    assert kept(out) == kept(whole)
