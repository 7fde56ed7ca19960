"""What is said to be exchanged in a step is what two processes hand to torch.distributed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import CASES, task, ways
from launch import ended, started

from fewshot_mcl.training import parts
from fewshot_mcl.training.costs import DATA, PEERS, Facts, exchanges


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case -> way -> bytes of one process in a step."""
    to = tmp_path_factory.mktemp("bytes") / "counted.json"
    ended(started(2, Path(__file__).with_name("counting.py"), to))
    return json.loads(to.read_text())


def facts_of(case: str, monkeypatch: pytest.MonkeyPatch) -> Facts:
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    torch.set_num_threads(1)
    return parts.measured(task(case), 2)[0]


@pytest.mark.parametrize("case", CASES)
def test_bytes_of_a_step(case: str, handed_over: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_of(case, monkeypatch)
    for way in ways(case):
        said, found = exchanges(facts, 2, way), handed_over[case][way]
        summed = sum(each.payload for each in said.values() if not each.gathered)
        gathered = sum(each.payload for each in said.values() if each.gathered)
        assert gathered == pytest.approx(found["gathered"], rel=0.1), way
        assert summed == pytest.approx(found["summed"] + found["gradients"], rel=0.1), way
        if way != PEERS:  # most of the bytes, so the rest by itself, too
            gradients = said["gradients"].payload
            assert gradients == found["gradients"]
            assert summed - gradients == pytest.approx(found["summed"], rel=0.1), way
    assert (exchanges(facts, 2, DATA)["batch norm"].payload == 0) == ("per process" in case)
