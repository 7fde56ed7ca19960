"""`train --tune` measures in processes of its own, says what it found, and keeps it with the run."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import bad, good


def test_a_tuned_run_keeps_its_table_and_its_choice(train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = train("--tune", "--set", "form=stacked", "--out", out)
    good(
        answer, "as configured", "form=loop", "form=grouped", "layout=contiguous", "precision=bfloat16", "no huge pages"
    )
    good(answer, "compile=true", "not tried: the run takes", "and compiling about a minute", "Trained in")
    record = json.loads((out / "tuning.json").read_text())
    chosen = next(t for t in record["timings"] if t["huge_pages"] and record["chosen"] in json.dumps(name(t)))
    settings = {"form": "stacked", "layout": "channels-last", "compile": False, "precision": "float32"} | chosen[
        "changes"
    ]
    written = (out / "config.toml").read_text()
    for key, value in settings.items():
        assert f"{key} = {json.dumps(value)}" in written
    good(train("--out", out, "--resume"), "are done already")


def name(timing: dict) -> str:
    return ", ".join(f"{key}={str(value).lower()}" for key, value in timing["changes"].items()) or "as configured"


def test_tune_is_of_a_new_run(cli) -> None:
    bad(cli("train", "--tune", "--resume", "--out", "run"), "--tune is of a new run", "leave --resume")


def test_what_cannot_start_cannot_be_tuned(cli, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    bad(cli("train", "--data", data, "--image-size", "16", "--way", "50", "--tune", "--out", out), "way")
    assert not out.exists()
