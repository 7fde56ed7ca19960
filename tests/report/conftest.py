"""What the parts of a report look at in tests: a run of a second's training on tiny pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from command_line import TINY, split_folders

from fewshot_mcl import cli
from fewshot_mcl.evaluation.session import Protocol
from fewshot_mcl.report.material import Material, gather
from fewshot_mcl.runs import Run
from fewshot_mcl.training import episodic


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """On pictures this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Two peers on 3-way 1-shot episodes of three test classes of eight images."""
    folder = tmp_path_factory.mktemp("report")
    data, path = split_folders(folder / "pictures", count=8), folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episodic, "FINAL_EPISODES", 8)
        patch.setattr(sys, "argv", ["fewshot-mcl", "train", "--data", str(data), *TINY, "--out", str(path)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    assert not exit_.value.code
    return gather(Run.open(path), Protocol(way=3, shots=(1,), query=2, episodes=20, seed=0))
