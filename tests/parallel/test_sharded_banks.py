"""Memory banks whose rows are spread over processes: what a checkpoint has of them, and who can go on from it."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fewshot_mcl import draws, parallel
from fewshot_mcl.errors import UserError
from fewshot_mcl.objectives import contrast
from fewshot_mcl.objectives.contrast import draw_banks
from fewshot_mcl.runs import tensors
from fewshot_mcl.runs.files import read_json
from fewshot_mcl.spread import Shard

RUN = shlex.split(
    "train --episodes 4 --peers 3 --way 5 --shot 2 --query 3 --set val_every=2 --set val_episodes=10 --set log_every=1 --seed 3"
)
BANKS = "objective.contrast.banks"
SHARDED = ["--set", "objective.banks=sharded"]


def train(processes: int, *arguments: object, at: Path) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "fewshot_mcl", *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=at, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def checkpoint(run: Path) -> dict[str, torch.Tensor]:
    manifest = read_json(run / "checkpoints/last.json", "file")
    return load_file(run / "checkpoints" / manifest["file"])


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """The same tensors, and banks that differ by rounding in float32, which grows from step to step."""
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    torch.testing.assert_close(ours[BANKS], theirs[BANKS], rtol=0, atol=1e-2)


def test_a_checkpoint_is_that_of_one_process_and_any_number_goes_on_from_it(tmp_path: Path) -> None:
    train(2, *RUN, *SHARDED, "--out", "spread", at=tmp_path)
    train(1, *RUN, *SHARDED, "--out", "alone", at=tmp_path)
    assert_close(checkpoint(tmp_path / "alone"), checkpoint(tmp_path / "spread"))
    banks = checkpoint(tmp_path / "spread")[BANKS]
    torch.testing.assert_close(banks.norm(dim=-1).median(), torch.tensor(1.0), rtol=0.2, atol=0)  # none was left empty


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_saved_by_two_and_ended_by_others(processes: int, tmp_path: Path) -> None:
    longer = [word if word != "4" else "6" for word in RUN]
    train(2, *longer, *SHARDED, "--out", "run", at=tmp_path)
    expected, folder = checkpoint(tmp_path / "run"), tmp_path / "run/checkpoints"
    (folder / "last.previous.json").replace(folder / "last.json")  # as if it had been stopped at episode 4
    train(processes, "train", "--out", "run", "--resume", at=tmp_path)
    assert read_json(folder / "last.json", "episode")["episode"] == 6
    ended = checkpoint(tmp_path / "run")
    assert_close(expected, ended)
    banks = (each[BANKS] for each in (expected, ended))
    apart = torch.ne(*banks).any(-1).any(0)
    assert int(apart.sum()) <= 2 * 25  # rows of the images of two episodes, by rounding


MEMORY = """
import resource, sys
import torch
from fewshot_mcl import parallel
from fewshot_mcl.objectives.base import Setting
from fewshot_mcl.objectives.contrast import MultiViewContrast

with parallel.processes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    labels = torch.arange(400_000) % 1000
    setting = Setting(num_peers=2, num_classes=10, feature_dim=64, stem_dim=None, labels=labels, seed=0)
    contrast = MultiViewContrast(setting, banks=sys.argv[1]).train()
    contrast(torch.randn(2, 8, 64), torch.arange(8)).backward()
    grown = torch.tensor((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    held = parallel.total(torch.tensor(contrast.banks.nbytes))
    if parallel.rank() == 0:
        print("found", int(grown), int(held))
"""


@pytest.mark.slow
def test_a_process_needs_memory_for_its_own_rows_only(tmp_path: Path) -> None:
    """Banks of 410 MB: of the two processes together all, of each a half."""
    (tmp_path / "memory.py").write_text(MEMORY)
    grown = {}
    for kind in ("replicated", "sharded"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *launcher, tmp_path / "memory.py", kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        _, grown[kind], held = (int(word) if word.isdigit() else word for word in done.stdout.split())
        assert held == 2 * 400_000 * 128 * 4 * (2 if kind == "replicated" else 1)
    assert grown["replicated"] - grown["sharded"] > 0.4 * 2 * 400_000 * 128 * 4


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 9), st.data())
def test_parts_of_a_bank_are_those_of_the_whole(peers: int, rows: int, dim: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, rows))
    part = slice(start, data.draw(st.integers(start, rows)))
    with mock.patch.object(contrast, "BLOCK", data.draw(st.integers(1, 100))):
        mine = draw_banks(peers, rows, dim, part, draws.generator(1, "banks"))
    bound = math.sqrt(3 / dim)
    whole = torch.empty(peers, rows, dim).uniform_(-bound, bound, generator=draws.generator(1, "banks"))
    assert torch.equal(mine, whole[:, part])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_row_is_found_in_one_shard(data: st.DataObject) -> None:
    count, processes = data.draw(st.integers(6, 40)), data.draw(st.integers(2, 6))
    ids = torch.tensor(
        data.draw(st.lists(st.lists(st.integers(0, count - 1), min_size=5, max_size=5), min_size=1, max_size=4))
    )
    found: list[list[int]] = [[] for _ in ids]
    for number in range(processes):
        shard = Shard(parallel_part(count, processes, number), count)
        local, weights = shard.own(ids, torch.float32)
        for image, (places, counts) in enumerate(zip(local.tolist(), weights.tolist())):
            found[image] += [place + shard.part.start for place, times in zip(places, counts) if times]
    assert [sorted(each) for each in found] == [sorted(each) for each in ids.tolist()]


def parallel_part(count: int, processes: int, number: int) -> slice:
    with mock.patch.object(parallel, "world", return_value=processes):
        return parallel.share_of(number, count)


def test_rows_of_a_large_tensor_are_read_a_part_at_a_time(tmp_path: Path) -> None:
    value = torch.arange(3 * 11 * 4.0).view(3, 11, 4)
    save_file({"banks": value}, tmp_path / "banks.safetensors")
    for numbers in (1, 3, 9, 50, 200):  # in a part; the last is more than there are
        with mock.patch.object(tensors, "LARGE", numbers * 16):
            target = torch.zeros(3, 5, 4)
            tensors.StoredTensors(tmp_path / "banks.safetensors").copy_into(target, "banks", slice(4, 9))
            assert torch.equal(target, value[:, 4:9])


def test_fewer_images_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 8)
    with pytest.raises(UserError, match=r"5 images are fewer than 8 processes.*banks=replicated"):
        Shard.mine(5)
