"""Which process is called slow."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from fewshot_mcl import parallel
from fewshot_mcl.training.pace import LEAST, Pace


def said(seconds: list[float], work: list[int], times: int = 1) -> list[str]:
    """What is said after so many windows of steps in which process r took seconds[r] for work[r]."""
    pace = Pace(work[0])

    def from_all(mine: tuple[float, int, str]) -> list[Any]:
        return [mine, *((s, w, f"host{r}") for r, (s, w) in enumerate(zip(seconds[1:], work[1:]), 1))]

    found = []
    with mock.patch.object(parallel, "from_all", from_all):
        for _ in range(times):
            pace._seconds = [seconds[0]] * LEAST
            found += pace.slow()
    return found


@pytest.mark.parametrize(
    ("seconds", "work", "slow"),
    [
        ([1, 1, 1, 2], [1, 1, 1, 1], 3),
        ([1, 1, 1, 1.4], [1, 1, 1, 1], None),
        ([1, 2], [1, 1], 1),
        ([1, 2], [1, 2], None),  # it has two of three peers
        ([1, 4], [1, 2], 1),
    ],
)
def test_who_is_slow_is_said_once(seconds: list[float], work: list[int], slow: int | None) -> None:
    found = said(seconds, work, times=3)
    assert len(found) == (slow is not None)
    if slow is not None:
        assert f"process {slow} (host host{slow}) is slow: " in found[0]


def test_few_steps_say_nothing() -> None:
    pace = Pace()
    pace._seconds = [1.0] * (LEAST - 1)
    assert pace.slow() == []
