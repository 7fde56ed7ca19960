"""Same seed, same machine, same bytes: whatever is drawn at once, however many threads there are."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import TINY, class_folders
from safetensors.torch import load_file

from fewshot_mcl.runs import Run

DRAWING = shlex.split(
    "--image-size 32 --way 4 --query 4 --peers 2 --set share=last-one --episodes 3 --set val_every=3 --set device=cpu"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pixels that sums are divided among threads."""
    root = tmp_path_factory.mktemp("bytes") / "pictures"
    for split, names in {"train": "ant bee cat dog", "val": "elk fox gnu"}.items():
        class_folders(root / split, 32, **dict.fromkeys(names.split(), 6))
    return root


def trained(pictures: Path, out: Path, threads: int, *arguments: str) -> dict[str, torch.Tensor]:
    """Every tensor of a run that a process made with so many threads for arithmetic."""
    command = [sys.executable, "-m", "fewshot_mcl", "train", "--data", str(pictures), *TINY, *DRAWING, *arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }  # where they share a core
    done = subprocess.run([*command, "--out", str(out)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for name in ("last", "best"):
        file = json.loads((out / f"checkpoints/{name}.json").read_text())["file"]
        found |= {f"{name} {key}": value for key, value in load_file(out / "checkpoints" / file).items()}
    return found


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name].numpy().tobytes() != other[name].numpy().tobytes()]


def test_deterministic_runs_are_equal_whatever_the_number_of_threads(pictures: Path, tmp_path: Path) -> None:
    """And without the flag they are not, where arithmetic is divided among threads."""
    plain, flagged = (
        [trained(pictures, tmp_path / f"{flag}{n}", n, *flag.split()) for n in (1, 2)]
        for flag in ("", "--deterministic")
    )
    assert different(*flagged) == []
    assert (tmp_path / "--deterministic1/metrics.csv").read_bytes() == (
        tmp_path / "--deterministic2/metrics.csv"
    ).read_bytes()
    assert Run.open(tmp_path / "--deterministic2").config.deterministic
    assert different(*plain), "the control: else this test could not fail"
