"""Start a worker, or the command, in several processes, and compare what came out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def started(processes: int, *arguments: object) -> list[str]:
    """The command line of a script or module, by torchrun where there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    return [sys.executable, *map(str, (*launcher, *arguments))]


def command(processes: int, *arguments: object) -> list[str]:
    """That of fewshot-mcl."""
    return started(processes, "-m", "fewshot_mcl", *arguments)


def ended(command: list[str], at: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A process that ended well, or with some error where `code` is not 0."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=at, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode == 0) == (code == 0), done.stderr[-3000:]
    return done


def run(processes: int, *arguments: object, at: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command, in a folder."""
    return ended(command(processes, *arguments), at, code)


def outcomes(processes: int, to: Path, *arguments: str, worker: Path = HERE / "worker.py") -> Any:
    """What the worker wrote down: of `worker.py`, case -> what came out."""
    ended(started(processes, worker, to, *arguments))
    return torch.load(to, weights_only=True)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative to the largest number there is."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) if a.numel() else 0.0


def assert_alike(one: dict[str, Any], several: dict[str, Any]) -> None:
    """Losses, gradients, what moved and the validation of a case."""
    for step in range(2):
        assert difference(one["losses"][step], several["losses"][step]) < 1e-9
        ours, theirs = one["gradients"][step], several["gradients"][step]
        assert ours.keys() == theirs.keys()
        scale = max(float(g.abs().max()) for g in ours.values())
        for name, gradient in ours.items():
            assert float((gradient - theirs[name]).abs().max()) < 1e-9 * scale, name
    assert one["moved"].keys() == several["moved"].keys()
    for name, buffer in one["moved"].items():
        assert difference(buffer, several["moved"][name]) < 1e-9, name
    for name, accuracies in one["validation"].items():
        assert torch.equal(accuracies, several["validation"][name]), name
