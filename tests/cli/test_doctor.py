"""`doctor`: as a process that really trains, and what it says where something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fewshot_mcl import doctor


def test_this_installation_is_usable(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fewshot_mcl", "doctor", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads(answer.stdout)
    assert found["usable"]
    by_name = {line["name"]: line for line in found["lines"]}
    assert by_name["torch"]["value"] == metadata.version("torch")
    for name in ("fewshot-mcl", "python", "processor", "threads", "memory", "disk here", "learn2learn", "timm"):
        assert name in by_name
    tests = [line["name"] for line in found["lines"] if line["section"] == "self-test"]
    assert tests == ["forms of the contrast", "pictures", "training", "checkpoint", "evaluation", "in all"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-test that takes no time."""
    monkeypatch.setattr(doctor, "_self_test", lambda: iter([("training", "ok", "done", "")]))


def test_the_text_says_what_the_json_says(cli, no_training: None) -> None:
    answer, found = cli("doctor"), json.loads(cli("doctor", "--json").out)
    assert answer.code == 0
    moving = ("memory", "disk here", "disk for temporary files")
    for line in found["lines"]:
        assert f"{line['name']}: {'' if line['name'] in moving else line['value']}" in answer.out
        assert line["advice"] in answer.out
    assert "usable" in answer.out.splitlines()[-1]
    assert all(answer.out.splitlines()), "no line is empty"


def test_a_problem_is_named_and_stops_nothing_else(cli, monkeypatch: pytest.MonkeyPatch, no_training: None) -> None:
    def broken() -> str:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(doctor, "_devices", broken)
    answer = cli("doctor")
    assert answer.code == 2
    assert "PROBLEM  devices: failed: no such instruction\n" in answer.out
    assert "ok       training: done" in answer.out
    assert answer.out.splitlines()[-1] == "NOT usable: 1 problem(s)"
    assert "Traceback" not in answer.err


def test_little_room_is_a_warning_and_none_a_problem(cli, monkeypatch: pytest.MonkeyPatch, no_training: None) -> None:
    for free, code, word in ((5e8, 0, "WARNING"), (1e6, 2, "PROBLEM")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder, free=free: type("Usage", (), {"free": free}))
        answer = cli("doctor")
        assert answer.code == code
        assert f"{word}  disk here" in answer.out
        assert "Work in a folder on another disk." in answer.out


def test_what_is_not_installed_says_how_to_get_it(cli, monkeypatch: pytest.MonkeyPatch, no_training: None) -> None:
    known = metadata.version

    def version(name: str) -> str:
        if name in ("timm", "safetensors"):
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    answer = cli("doctor")
    assert (
        "-        timm: not installed, for backbones timm/NAME\n           pip install 'fewshot-mcl[timm]'"
        in answer.out
    )
    assert "PROBLEM  safetensors: not installed\n           pip install safetensors" in answer.out
    assert answer.code == 2


def test_forms_that_disagree_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewshot_mcl.objectives import candidates

    doctor._forms_agree()
    scores = candidates.Gathered.scores
    monkeypatch.setattr(candidates.Gathered, "scores", lambda *a, **k: scores(*a, **k).mul_(1.01))
    with pytest.raises(RuntimeError, match="different values"):
        doctor._forms_agree()
