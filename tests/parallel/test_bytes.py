"""What is said to be exchanged in a step is what two processes hand to torch.distributed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import CASES, task

from fewshot_mcl.training import parts
from fewshot_mcl.training.costs import DATA, exchanges

COUNTING = Path(__file__).with_name("counting.py")


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case -> bytes of one process in a step."""
    to = tmp_path_factory.mktemp("bytes") / "counted.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, COUNTING, to, *CASES], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(to.read_text())


@pytest.mark.parametrize("case", CASES)
def test_bytes_of_data_parallel(case: str, handed_over: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    torch.set_num_threads(1)
    facts, _ = parts.measured(task(case), 2)
    said, found = exchanges(facts, 2, DATA), handed_over[case]
    summed = sum(each.payload for name, each in said.items() if not each.gathered and name != "gradients")
    gathered = sum(each.payload for each in said.values() if each.gathered)
    assert said["gradients"].payload == found["gradients"] > 0
    assert gathered == pytest.approx(found["gathered"], rel=0.1)
    assert summed == pytest.approx(found["summed"], rel=0.1)
    assert (said["batch norm"].payload == 0) == ("per process" in case)
