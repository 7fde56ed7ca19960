"""Completion in the shell, asked as bash and zsh ask: a process with words in its environment."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS
from fewshot_mcl.options import CLASS_RECIPES, RECIPES

HEAVY = ("torch", "numpy", "PIL")


def asked(shell: str, line: str, at: Path) -> list[str]:
    """What a shell is offered for the last word of a line; nothing heavy is imported for that."""
    words = line.split(" ")
    told = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
    }[shell]
    environment = {**os.environ, **told, "_FEWSHOT_MCL_COMPLETE": f"complete_{shell}"}
    command = [sys.executable, "-X", "importtime", "-m", "fewshot_mcl"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=at, env=environment, check=False)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "fewshot_mcl.cli" in imported, answer.stderr
    assert imported.isdisjoint(HEAVY)
    if shell == "bash":
        return answer.stdout.split()
    return [word.partition(":")[0] for word in shlex.split(answer.stdout.replace("((", "' ").replace("))", " '"))[2:-1]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two runs and a folder of photos."""
    for name in ("runs/one", "reproduced/glyphs/two"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.toml").touch()
    (tmp_path / "runs/none").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / ".hidden").mkdir()
    return tmp_path


RUNS = ["runs/one", "reproduced/glyphs/two"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fewshot-mcl train --method ", list(METHODS)),
        ("fewshot-mcl classify --backbone res", [name for name in BACKBONES if name.startswith("res")]),
        ("fewshot-mcl classify --config ", list(CLASS_RECIPES)),
        ("fewshot-mcl evaluate ", RUNS),
        ("fewshot-mcl data ch", ["check"]),
        ("fewshot-mcl train --method nonsense --pe", ["--peers"]),
    ],
)
def test_names_are_offered(shell: str, line: str, offered: list[str], place: Path) -> None:
    assert asked(shell, line, place) == offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fewshot-mcl train --config ", list(RECIPES)),
        ("fewshot-mcl train --teacher run", RUNS[:1]),
        ("fewshot-mcl train --data p", ["photos"]),
        ("fewshot-mcl train --data c", ["cifar100"]),
        ("fewshot-mcl train --set objective.be", ["objective.beta="]),
        ("fewshot-mcl classify --set val_sh", ["val_share="]),
        ("fewshot-mcl train --method rkd-d --set objective.be", []),
        ("fewshot-mcl train --out ", []),  # files, which the shell knows itself
    ],
)
def test_values_are_offered_where_they_fit(line: str, offered: list[str], place: Path) -> None:
    assert asked("bash", line, place) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_shell_asks_this_program(
    shell: str, cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, shell))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    answer = cli("--show-completion")
    assert (answer.code, answer.err) == (0, "")
    assert f"_FEWSHOT_MCL_COMPLETE=complete_{shell}" in answer.out
    answer = cli("--install-completion")
    assert answer.code == 0
    assert f"{shell} completion installed" in answer.out
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert any("_FEWSHOT_MCL_COMPLETE" in path.read_text() for path in written)
