"""The command line in this process, with a stand-in for the packaged networks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "pages"))

from browser import Browser
from command_line import TINY, Answer, split_folders
from stand_in import packaged, queries, support

from fewshot_mcl import cli as command_line_interface
from fewshot_mcl.training import episodic

__all__ = ["packaged", "queries", "support"]  # fixtures


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], packaged: ModuleType
) -> Any:
    """`cli(...)` answers as a shell would, in a directory of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fewshot-mcl", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            command_line_interface.main()
        captured = capfd.readouterr()
        return Answer(int(exit_.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on tiny pictures; not to be written to."""
    path = tmp_path_factory.mktemp("trained")
    data = split_folders(path / "pictures", count=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episodic, "FINAL_EPISODES", 8)
        patch.setattr(sys, "argv", ["fewshot-mcl", "train", "--data", str(data), *TINY, "--out", str(path / "run")])
        with pytest.raises(SystemExit) as exit_:
            command_line_interface.main()
    assert not exit_.value.code
    return path / "run"
