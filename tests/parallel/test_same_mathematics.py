"""One, two and four processes on the same batches: losses, gradients, banks and statistics are those of one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from worker import APART_Z, CASES, COMPILED

OTHERWISE = {"few-shot, statistics per process", APART_Z}  # those whose values depend on the number of processes
WORKER = Path(__file__).with_name("worker.py")


def outcomes(processes: int, to: Path, *cases: str) -> dict[str, Any]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    done = subprocess.run([sys.executable, *launcher, WORKER, to, *cases], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(to, weights_only=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """Processes -> case -> what came out."""
    folder = tmp_path_factory.mktemp("outcomes")
    return cache(lambda processes: outcomes(processes, folder / f"{processes}.pt"))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative to the largest number there is."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) if a.numel() else 0.0


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [case for case in CASES if case not in OTHERWISE])
def test_the_same_as_one_process(case: str, processes: int, found: Callable[[int], dict[str, Any]]) -> None:
    require_same(found(1)[case], found(processes)[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_the_same_as_one_process(case: str, tmp_path: Path) -> None:
    require_same(*(outcomes(processes, tmp_path / f"{processes}.pt", case)[case] for processes in (1, 2)))


def require_same(one: dict[str, Any], several: dict[str, Any]) -> None:
    for step in range(2):
        assert difference(one["losses"][step], several["losses"][step]) < 1e-9
        ours, theirs = one["gradients"][step], several["gradients"][step]
        assert ours.keys() == theirs.keys()
        scale = max(float(g.abs().max()) for g in ours.values())
        for name, gradient in ours.items():
            assert float((gradient - theirs[name]).abs().max()) < 1e-9 * scale, name
    for name, buffer in one["moved"].items():
        assert difference(buffer, several["moved"][name]) < 1e-9, name
    for name, accuracies in one["validation"].items():
        assert torch.equal(accuracies, several["validation"][name]), name


@pytest.mark.parametrize("case", sorted(OTHERWISE))
def test_other_mathematics_are_told_apart(case: str, found: Callable[[int], dict[str, Any]]) -> None:
    """Statistics of each process's own images, which the user may ask for, are not those of the batch, nor is a normaliser
    of the contrast that was not summed over processes."""
    one, several = found(1)[case], found(2)[case]
    assert difference(one["losses"][0], several["losses"][0]) > 1e-4
