"""How far long work has come: a bar on a terminal, lines elsewhere, nothing where it is not wanted."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from fewshot_mcl import progress
from fewshot_mcl.progress import LateBar, LateLines, listening, tracked, waiting
from fewshot_mcl.screen import Screen


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setattr(progress._Late, "AFTER", 0.05)
    return Console(file=io.StringIO(), force_terminal=True, width=80)


def told(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_done_at_once_shows_nothing(screen: Console) -> None:
    with LateBar(screen) as bar, listening(bar.hear):
        assert list(tracked(range(5), "counting", 5)) == [0, 1, 2, 3, 4]
    assert told(screen) == ""


def test_what_takes_long_shows_how_far_it_is(screen: Console) -> None:
    with LateBar(screen) as bar, listening(bar.hear):
        for _ in tracked(range(4), "counting", 4):
            time.sleep(0.1)
            assert list(tracked(range(2), "inner", 2)) == [0, 1]
    assert "counting" in told(screen)
    assert re.search(r"50%.*left", told(screen))
    assert "inner" not in told(screen)


def test_work_that_is_left_is_not_shown_on(screen: Console) -> None:
    with LateBar(screen) as bar, listening(bar.hear):
        for _ in tracked(range(4), "counting", 4):
            break
        time.sleep(0.1)
    assert told(screen) == ""


def test_nobody_listens_to_what_is_silenced(screen: Console) -> None:
    with LateBar(screen) as bar, listening(bar.hear), listening(None):
        for _ in tracked(range(2), "counting", 2):
            time.sleep(0.1)
    assert told(screen) == ""


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress._Late, "AFTER", 0.05)


@pytest.mark.usefixtures("early")
def test_lines_say_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(LateLines, "EVERY", 0.0)
    with LateLines(said.append) as lines, listening(lines.hear):
        for _ in tracked(range(4), "counting", 4):
            time.sleep(0.1)
    assert said[0] == "counting: 0 %"
    assert re.fullmatch(r"counting: 75 %, about \d+ s left", said[-1])


@pytest.mark.usefixtures("early")
def test_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with LateLines(said.append) as lines, listening(lines.hear):
        for _ in tracked(range(20), "counting", 20):
            time.sleep(0.02)
        with waiting("pondering"):
            time.sleep(0.1)
    assert [line.partition(":")[0] for line in said] == ["counting", "pondering ..."]


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(("as_json", "quiet", "rank"), [(False, True, "0"), (True, False, "0"), (False, False, "1")])
def test_nothing_is_said_where_it_is_not_wanted(
    as_json: bool, quiet: bool, rank: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    with Screen(as_json, quiet).progress(), waiting("pondering"):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("early")
def test_lines_are_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().progress(), waiting("pondering"):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "pondering ...\n")
