"""What the pages and the help tell to type is typed here, and every block of Python is run.

A block of a page is marked `sh` or `python`. Above one that would take long, the page says `<!-- dry-run -->`: its commands
are then given with `--dry-run`, as are the examples of the help that train.
The commands of a page are typed in one folder, in order.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typing_in import typed

from fewshot_mcl.cli import COMMANDS, DATA_COMMANDS, app
from fewshot_mcl.commands.guide import EXAMPLES

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^(<!-- dry-run -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONG = ("train", "classify", "reproduce")


def blocks(page: Path, kind: str) -> list[tuple[bool, str]]:
    """The blocks of a kind on a page, and whether each is to be dry."""
    return [(bool(dry), text) for dry, its, text in BLOCK.findall(page.read_text(encoding="utf-8")) if its == kind]


def command_lines(page: Path) -> list[list[str]]:
    """Every command of a page as words."""
    return [
        [*shlex.split(line, comments=True), *(["--dry-run"] if dry else [])]
        for dry, text in blocks(page, "sh")
        for line in text.splitlines()
        if line.strip()
    ]


MANY_SECONDS = (
    "report",
    "doctor",
    "export",
    "compare",
)  # commands whose every call takes many, by what they import and draw
SLOW = ("classification", "configuration", "runs")  # pages whose commands train several runs to their end
WITH_COMMANDS = [
    pytest.param(page, marks=[pytest.mark.slow] if page.stem in SLOW else [], id=page.stem)
    for page in PAGES
    if command_lines(page)
]
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_work(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in command_lines(page):
        assert words[0] == "fewshot-mcl"
        assert typed(words, monkeypatch) == 0, words


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_python_of_a_page_works(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for _, text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("command", "line"),
    [
        pytest.param(command, line, marks=[pytest.mark.slow] if command in MANY_SECONDS else [])
        for command, examples in EXAMPLES.items()
        for _, line in examples
    ],
)
def test_the_examples_of_the_help_work(command: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    assert words[0] == "fewshot-mcl"
    assert words[1:][: len(command.split())] == command.split()
    dry = words[1] in LONG and "--dry-run" not in words
    assert typed([*words, *(["--dry-run"] if dry else [])], monkeypatch) == 0


def test_every_command_has_examples() -> None:
    commands = [*(name for name in COMMANDS), *(f"data {name}" for name in DATA_COMMANDS)]
    assert {name: 2 <= len(EXAMPLES.get(name, ())) <= 4 for name in commands} == dict.fromkeys(commands, True)


def test_no_example_is_of_a_command_that_is_not_there() -> None:
    group = typer.main.get_command(app)
    for command in EXAMPLES:
        found = group
        for word in command.split():
            found = found.commands[word]  # type: ignore[attr-defined]


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    pages = {page.stem: (tmp_path / "site" / f"{page.stem}.html").read_text(encoding="utf-8") for page in PAGES}
    assert not [name for name, text in pages.items() if "generate:" in text]
    assert "val_episodes" in pages["configuration"]
    assert "evaluate_episodes" in pages["python"]
    assert "--install-completion" in pages["commands"]
    outside = [
        found for text in pages.values() for found in re.findall(r'<(?:script|link|img)[^>]*"(https?:[^"]*)"', text)
    ]
    assert outside == [], "a page loads nothing from elsewhere"
