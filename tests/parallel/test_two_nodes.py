"""Two torchruns that meet at an address, as on two machines, and other launchers that have set up the processes already."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fewshot_mcl.runs.files import read_json

RUN = shlex.split(
    "train --episodes 2 --peers 2 --way 5 --shot 1 --query 3 --set val_every=2 --set val_episodes=10 --out run --seed 3"
)
OTHER_LAUNCHER = """
import sys
import torch.distributed as dist
from fewshot_mcl.cli import main

dist.init_process_group("gloo")  # as Ray Train does before it calls a function
sys.argv = ["fewshot-mcl", *sys.argv[1:]]
main()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def ends(*commands: list[str], at: Path) -> list[str]:
    """What processes print that run beside each other."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(each, cwd=at, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in commands
    ]
    found = [each.communicate(timeout=240) for each in running]
    assert [each.returncode for each in running] == [0] * len(commands), found
    return [out for out, _ in found]


@pytest.mark.slow
def test_two_nodes_train_one_run(tmp_path: Path) -> None:
    node = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "-m", "fewshot_mcl", *RUN,
    ]  # fmt: skip
    said = "".join(ends(node, node, at=tmp_path))
    assert said.count("Trained in") == 1
    assert read_json(tmp_path / "run/checkpoints/last.json", "episode")["episode"] == 2


@pytest.mark.slow
def test_a_launcher_that_has_made_the_group_itself(tmp_path: Path) -> None:
    (tmp_path / "launched.py").write_text(OTHER_LAUNCHER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (said,) = ends([*launcher, "launched.py", *RUN], at=tmp_path)
    assert said.count("Trained in") == 1
    assert read_json(tmp_path / "run/checkpoints/last.json", "episode")["episode"] == 2
