"""The command line in this process: `cli(...)` answers as a shell would, in a directory of its own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from command_line import TINY, Answer, split_folders
from forked import Forge

from fewshot_mcl import cli as command_line_interface
from fewshot_mcl.training import episodic

Cli = Callable[..., Answer]


def call(arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> Answer:
    monkeypatch.setattr(sys, "argv", ["fewshot-mcl", *map(str, arguments)])
    capture.readouterr()
    with pytest.raises(SystemExit) as exit_:
        command_line_interface.main()
    captured = capture.readouterr()
    return Answer(int(exit_.value.code or 0), captured.out, captured.err)


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """On pictures this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(episodic, "FINAL_EPISODES", 8)
    return lambda *arguments: call(arguments, monkeypatch, capfd)


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    """Sessions of the command line as processes of their own, without the seconds that imports take."""
    with Forge(tmp_path_factory.mktemp("sessions")) as each:
        yield each


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training, three validation and three test classes of six images; not to be written to."""
    return split_folders(tmp_path_factory.mktemp("data") / "pictures", count=6)


@pytest.fixture
def train(cli: Cli, data: Path) -> Cli:
    """`fewshot-mcl train` on `data` and a second's work, unless the arguments say otherwise."""
    return lambda *arguments: cli("train", "--data", data, *TINY, *arguments)


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished MCL-OKD run; not to be written to."""
    path = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episodic, "FINAL_EPISODES", 8)
        patch.setattr(sys, "argv", ["fewshot-mcl", "train", "--data", str(data), *TINY, "--out", str(path)])
        with pytest.raises(SystemExit) as exit_:
            command_line_interface.main()
    assert not exit_.value.code
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
