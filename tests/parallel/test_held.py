"""Images larger than memory, and several processes: one map for all, or a part in the memory of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot_mcl.data import held
from fewshot_mcl.data.check import convert
from fewshot_mcl.data.held import HeldStore
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError

WORKER = Path(__file__).with_name("held_worker.py")
linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks the Linux kernel")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes says of a store of 4,540 images at 64 pixels."""
    folder = tmp_path_factory.mktemp("held")
    convert("glyphs", None, folder / "packed", ImageOptions(image_size=64))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, WORKER, folder / "packed", folder / "found"], capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"found-{rank}").read_text()) for rank in range(2)]


@linux
def test_processes_read_one_map_of_the_store(found: list[dict[str, Any]]) -> None:
    """Resident in both, and counted half in each: the pages are the same ones. None of them is a copy."""
    for each in found:
        assert each["mapping"]["Rss"] >= 0.95 * each["bytes"]
        assert each["mapping"]["Pss"] <= 0.55 * each["bytes"]
        assert each["mapping"]["Private_Dirty"] == 0


@linux
def test_each_process_holds_its_part(found: list[dict[str, Any]]) -> None:
    whole = found[0]["bytes"]
    assert sum(each["held"] for each in found) == whole
    for each in found:
        assert 0.4 * whole < each["held"] < 0.6 * whole
        assert abs(each["grown"] - each["held"]) < 0.1 * whole  # some of it was there before, and had been given up


def test_batches_are_those_of_the_store(found: list[dict[str, Any]]) -> None:
    assert found[0]["sum"] == found[1]["sum"]
    for each in found:
        assert each["batches"] == [True] * 4
        whole, sharded = each["losses"]
        assert whole == sharded


def test_one_process_holds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8)
    store = ImageStore(images, torch.arange(9) // 5, ["a", "b"])
    rows = torch.tensor([8, 0, 3, 3])
    assert torch.equal(HeldStore(store).gather(rows), images[rows])
    with pytest.raises(IndexError):
        HeldStore(store).gather(torch.tensor([9]))
    monkeypatch.setattr(held, "memory_bytes", lambda: 9 * 64 - 1)
    with pytest.raises(UserError, match=r"needs 576 bytes for the 1 processes of this machine, which has 575 bytes"):
        HeldStore(store)
