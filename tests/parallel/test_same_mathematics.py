"""One, two and four processes on the same batches: losses, gradients, banks and statistics are those of one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from launch import assert_alike, difference, outcomes
from worker import APART_Z, CASES, COMPILED

OTHERWISE = {"few-shot, statistics per process", APART_Z}  # those whose values depend on the number of processes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """Processes -> case -> what came out."""
    folder = tmp_path_factory.mktemp("outcomes")
    return cache(lambda processes: outcomes(processes, folder / f"{processes}.pt"))


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [case for case in CASES if case not in OTHERWISE])
def test_the_same_as_one_process(case: str, processes: int, found: Callable[[int], dict[str, Any]]) -> None:
    assert_alike(found(1)[case], found(processes)[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_the_same_as_one_process(case: str, tmp_path: Path) -> None:
    assert_alike(*(outcomes(processes, tmp_path / f"{processes}.pt", "data", case)[case] for processes in (1, 2)))


@pytest.mark.parametrize("case", sorted(OTHERWISE))
def test_other_mathematics_are_told_apart(case: str, found: Callable[[int], dict[str, Any]]) -> None:
    """Statistics of each process's own images, which the user may ask for, are not those of the batch, nor is a normaliser
    of the contrast that was not summed over processes."""
    one, several = found(1)[case], found(2)[case]
    assert difference(one["losses"][0], several["losses"][0]) > 1e-4
