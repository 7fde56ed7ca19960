"""The command line in this process, and cells that are trained in it rather than in processes of their own."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from command_line import Answer, class_folders, split_folders

from fewshot_mcl import cli as command_line_interface
from fewshot_mcl.evaluation import session
from fewshot_mcl.reproduce import cells
from fewshot_mcl.training import episodic

Cli = Callable[..., Answer]


def answer_of(arguments: tuple[object, ...]) -> Answer:
    """What a shell would see."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fewshot-mcl", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            command_line_interface.main()
    return Answer(int(exit_.value.code or 0), out.getvalue(), err.getvalue())


def train_here(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let cells be trained in this process; their command lines come into the list."""
    commands: list[list[str]] = []

    def run(command: list[str], *, stdout: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "fewshot_mcl"]
        commands.append(command[3:])
        answer = answer_of(tuple(command[3:]))
        stdout.write(answer.out)
        return subprocess.CompletedProcess(command, answer.code, None, answer.err)

    patch.setattr(cells, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))
    patch.setattr(episodic, "FINAL_EPISODES", 4)
    for name, counts in {"paper-text": (6, 3), "baseline-repo": (4, 2)}.items():
        patch.setitem(session.PROTOCOLS, name, counts)
    return commands


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
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: answer_of(arguments)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of the cells that are trained, which happens in this process; protocols are small."""
    return train_here(monkeypatch)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in flat folders; not to be written to."""
    return class_folders(tmp_path_factory.mktemp("labelled") / "pictures", ant=16, bee=12, cat=8)


@pytest.fixture(scope="session")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits of different classes, five of them for test; not to be written to."""
    root = tmp_path_factory.mktemp("few-shot") / "episodes"
    return split_folders(root, 8, train="ant bee cat", val="elk fox", test="gnu hen ibis jay kea")


def made(*arguments: object) -> str:
    """What `reproduce` says when it trains here and ends well."""
    with pytest.MonkeyPatch.context() as patch:
        train_here(patch)
        answer = answer_of(("reproduce", *arguments))
    assert answer.code == 0, answer.err
    return answer.out


ABLATION = ("ablation", "--rows", "resnet32", "--epochs", "1", "--set", "image_size=16", "--set", "batch=16")
TABLE_4 = (
    "table4", "--rows", "baseline", "--rows", "rkd-d", "--rows", "mcl-okd", "--episodes", "2", "--set", "image_size=16",
    "--set", "way=3", "--set", "query=2", "--set", "val_way=2", "--set", "val_query=2", "--set", "val_episodes=4",
)  # fmt: skip


@pytest.fixture(scope="session")
def ablation(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished ablation of two seeds, and what the screen showed; not to be written to."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    return out, made(*ABLATION, "--data", pictures, "--seeds", "2", "--out", out)


@pytest.fixture(scope="session")
def table_4(episodes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished Table 4 of two seeds; not to be written to."""
    out = tmp_path_factory.mktemp("table4") / "out"
    made(*TABLE_4, "--data", episodes, "--seeds", "2", "--out", out)
    return out


@pytest.fixture
def reproduce(cli: Cli, pictures: Path, commands: list[list[str]]) -> Cli:
    """The ablation of two seeds on `pictures`, unless the arguments say otherwise."""
    return lambda *arguments: cli("reproduce", *ABLATION, "--data", pictures, "--seeds", 2, *arguments)


@pytest.fixture
def reproduce_4(cli: Cli, episodes: Path, commands: list[list[str]]) -> Cli:
    """The Table 4 of two seeds on `episodes`, unless the arguments say otherwise."""
    return lambda *arguments: cli("reproduce", *TABLE_4, "--data", episodes, "--seeds", 2, *arguments)
