"""What the tests of the adapters share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from finished_runs import finished_run

from fewshot_mcl.runs import Run

GOLDEN = Path(__file__).parents[1] / "golden" / "run-schema2" / "finished"


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Images this small are not worth waiting for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Run]:
    """Makes a finished run: `finished(backbone, task, side)`."""
    return partial(finished_run, tmp_path)


@pytest.fixture
def golden(tmp_path: Path) -> Run:
    """A copy of a run that was trained."""
    return Run.open(Path(shutil.copytree(GOLDEN, tmp_path / "golden")))
