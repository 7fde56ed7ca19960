"""Words on screen: for people, for programs (--json), few (--quiet), plain, and live on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from command_line import PROTOCOL, TINY, TINY_CLASSIFY, bad, class_folders

from fewshot_mcl import cli as command_line_interface
from fewshot_mcl.screen import Screen
from fewshot_mcl.training import episodic, estimate

ESCAPE = "\x1b["
BAR = "━"


def the_object(answer) -> dict:
    """The one object that is the whole of standard output."""
    assert answer.code == 0, answer.err
    [line] = answer.out.splitlines()
    return json.loads(line, parse_constant=pytest.fail)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates without a process of their own, and of fewer steps."""
    monkeypatch.setattr(estimate, "SECONDS", 0.0)
    monkeypatch.setattr(estimate, "estimate", estimate.measure)
    monkeypatch.setattr("fewshot_mcl.reproduce.session.estimate", estimate.measure)


def test_training_answers_with_one_object(train) -> None:
    answer = train("--json")
    content = the_object(answer)
    assert Path(content["run"], "model.json").exists()
    assert content["seconds"] > 0
    assert [r["network"] for r in content["results"]] == ["peer 0", "peer 1", "ensemble"]
    for result in content["results"]:
        kept = {"split": "val", "way": 2, "shot": 1, "query": 2, "episodes": 8, "seed": 0}
        assert kept.items() <= result.items()
        assert 0 <= result["mean"] <= 1
    card = json.loads(Path(content["run"], "model.json").read_text())
    assert card["validation"]["mean"] == content["results"][1]["mean"]
    assert content["deployed"] == "peer 1"
    assert "episodes 1 to 3" in answer.err  # how it goes is still said


def test_classification_answers_with_one_object(cli, tmp_path: Path) -> None:
    data = class_folders(tmp_path / "photos", ant=8, bee=8, cat=8)
    content = the_object(cli("classify", "--data", data, *TINY_CLASSIFY, "--json"))
    assert Path(content["run"], "model.json").exists()
    assert {"last", "best"} == {r["checkpoint"] for r in content["results"]}
    assert content["seconds"] > 0
    assert content["validation"][0]["measure"] == "top-1 accuracy"
    assert the_object(cli("evaluate", content["run"], "--json"))["results"] == content["results"]


def test_evaluation_answers_with_one_object(cli, run: Path) -> None:
    content = the_object(cli("evaluate", run, *PROTOCOL, "--json", "--peers"))
    assert len(content["results"]) == 3
    assert "accuracies" not in content["results"][0]


@pytest.mark.usefixtures("in_this_process")
def test_a_dry_run_answers_with_one_object(cli, data: Path) -> None:
    content = the_object(cli("train", "--data", data, *TINY, "--dry-run", "--json"))
    assert content["seconds"] == pytest.approx(content["steps"] + content["validation"] + content["saving"])
    assert content["parameters"] > 0
    assert "dense" in content["contrast"]
    words = ["--rows", "baseline", "--columns", "1-shot", "--seeds", "2", "--episodes", "2", "--set", "val_episodes=2"]
    table = cli("reproduce", "table4", "--data", "glyphs", *words, "--dry-run", "--json")
    assert "timing baseline-1shot-seed0" in table.err
    content = the_object(table)
    assert content["runs"] == 2
    assert content["seconds"] == pytest.approx(2 * content["first_seed"][0]["seconds"])


def test_a_check_answers_with_one_object_and_the_same_code(cli, data: Path, tmp_path: Path) -> None:
    content = the_object(cli("data", "check", data, "--json"))
    assert content["ok"]
    assert [split["classes"] for split in content["splits"]] == [4, 3, 3]
    folder = class_folders(tmp_path / "photos", **dict.fromkeys("abcdef", 2))
    (folder / "a" / "0.png").write_bytes(b"no image")
    answer = cli("data", "check", folder, "--json")
    assert answer.code == 2
    assert not json.loads(answer.out)["ok"]


def test_packing_answers_with_one_object(cli, data: Path, tmp_path: Path) -> None:
    answer = cli("data", "convert", data, "--out", tmp_path / "packed", "--json")
    assert all(Path(path).exists() for path in the_object(answer)["written"])
    assert "Use it with" in answer.err


def test_an_error_leaves_standard_output_empty(cli) -> None:
    answer = cli("train", "--data", "nowhere", "--json")
    bad(answer, "nowhere")
    assert answer.out == ""


@pytest.mark.parametrize(
    "words",
    [
        "train", "classify", "evaluate RUN", "reproduce table4", "data check glyphs", "data inspect glyphs", "report RUN",
        "compare RUN RUN", "export RUN", "predict --support x --query y",
    ],
)  # fmt: skip
def test_one_object_and_few_words_are_not_one_wish(words: str, run: Path, cli) -> None:
    bad(cli(*words.replace("RUN", str(run)).split(), "--json", "--quiet"), "--json", "--quiet", "leave one")


def test_quiet_says_results_and_no_more(cli, train, data: Path, tmp_path: Path) -> None:
    answer = train("--quiet")
    assert (answer.code, answer.err) == (0, "")
    first, *_, last = answer.out.splitlines()
    assert first.startswith("Trained in")
    assert last.startswith("Run: runs/")
    for word in ("Next", "images/s", "training classes"):
        assert word not in answer.out
    quiet = cli("data", "convert", data, "--out", tmp_path / "packed", "--quiet")
    assert all(line.startswith("written ") for line in quiet.out.splitlines())


def test_quiet_of_what_looks_at_runs(cli, train, run: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert train("--lr", 0.01, "--out", other).code == 0
    written = {
        ("report", run, *PROTOCOL): f"written {run / 'report.html'}\n",
        ("export", run, "--format", "tensorboard"): f"written {run / 'tensorboard'}\n",
    }
    for words, out in written.items():
        answer = cli(*words, "--quiet")
        assert (answer.code, answer.out, answer.err) == (0, out, "")
    page = tmp_path / "page.html"
    answer = cli("compare", run, other, *PROTOCOL, "--out", page, "--quiet")
    assert (answer.code, answer.err) == (0, "")
    assert "A - B, 1-shot" in answer.out
    assert not re.search("evaluated|written", answer.out)
    answer = cli("data", "inspect", data, "--quiet")
    assert (answer.code, answer.err) == (0, "")
    assert "suggested" not in answer.out


def test_one_object_of_what_looks_at_runs_and_images(cli, run: Path, data: Path, tmp_path: Path) -> None:
    assert the_object(cli("report", run, *PROTOCOL, "--json")) == {"run": str(run), "written": f"{run}/report.html"}
    found = the_object(cli("export", run, "--format", "tensorboard", "--json"))
    assert found == {"run": str(run), "format": "tensorboard", "written": f"{run}/tensorboard"}
    (tmp_path / "pictures").mkdir()
    copy = shutil.copytree(data, tmp_path / "pictures" / "copy")
    shutil.copy(copy / "train" / "ant" / "1.png", copy / "test" / "jay" / "leak.png")
    seen = the_object(cli("data", "inspect", copy, "--json"))
    assert [(each["split"], each["images"]) for each in seen["splits"]] == [("train", 24), ("val", 18), ("test", 19)]
    assert seen["splits"][0]["largest_query"] == {"1": 5, "5": 1, "10": None}
    assert seen["sizes"] == [{"width": 16, "height": 16, "images": 61}]
    [twins] = seen["duplicates"]
    assert (twins["exact"], twins["in_several_splits"]) == (True, True)
    assert {each["name"] for each in twins["images"]} == {"train/ant/1.png", "test/jay/leak.png"}
    assert seen["suggestion"]["train"][0] == "train"


def test_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(as_json=True).answer(lambda: {"a": [float("nan"), (float("inf"), 1.5)]}, lambda: None)
    assert json.loads(capsys.readouterr().out) == {"a": [None, [None, 1.5]]}


# On a terminal and elsewhere.


@pytest.fixture
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodic, "FINAL_EPISODES", 8)


def on_a_terminal(arguments: list[str], at: Path, **environment: str) -> str:
    """What a session writes to a terminal of 100 columns: a process forked from this one, which has imported everything."""
    pid, terminal = pty.fork()
    if not pid:
        _session(arguments, at, environment)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # on Linux this is how a terminal ends
            break
        if not part:
            break
        written += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, written
    return written.decode()


def _session(arguments: list[str], at: Path, environment: dict[str, str]) -> NoReturn:
    """The command line on the terminal that this process has."""
    code = 1
    try:
        for name in ("NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        os.environ |= {"COLUMNS": "100", "TERM": "xterm-256color", **environment}
        os.chdir(at)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 (pytest's own lead elsewhere)
        sys.argv = ["fewshot-mcl", *arguments]
        command_line_interface.main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


@pytest.mark.usefixtures("few_episodes")
def test_a_terminal_shows_training_live(data: Path, tmp_path: Path) -> None:
    text = on_a_terminal(["train", "--data", str(data), *TINY], tmp_path)
    assert BAR in text
    assert re.search(r"episode 3/3.*left", text)
    assert "\x1b[?25h" in text  # the cursor is back
    assert re.search(r"\x1b\[[\d;]*3\d", text)  # coloured


@pytest.mark.usefixtures("few_episodes")
def test_a_terminal_without_colour_has_none(data: Path, tmp_path: Path) -> None:
    text = on_a_terminal(["train", "--data", str(data), *TINY], tmp_path, NO_COLOR="1")
    assert BAR in text
    assert not re.search(r"\x1b\[[\d;]*[34]\d", text)


@pytest.mark.usefixtures("few_episodes")
def test_a_dumb_terminal_gets_plain_lines(data: Path, tmp_path: Path) -> None:
    text = on_a_terminal(["train", "--data", str(data), *TINY], tmp_path, TERM="dumb")
    assert ESCAPE not in text
    assert re.search(r"episode 3/3  ce", text)


def test_what_is_no_terminal_gets_plain_lines(train) -> None:
    answer = train()
    assert ESCAPE not in answer.out + answer.err
    assert re.search(r"episode 3/3  ce", answer.out)
