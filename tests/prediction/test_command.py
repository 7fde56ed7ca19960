"""`fewshot-mcl predict`: what it writes and says, on good and on bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import Answer, bad, good, tree
from stand_in import save

from fewshot_mcl import progress
from fewshot_mcl.prediction import model, photos
from fewshot_mcl.prediction.output import COLUMNS, NONE, cell
from fewshot_mcl.runs import files


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def process(*arguments: object, where: Path) -> Answer:
    command = [sys.executable, "-m", "fewshot_mcl", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=where, env=environment)
    return Answer(done.returncode, done.stdout, done.stderr)


def test_a_folder_is_answered_without_any_training(cli, support: Path, queries: Path) -> None:
    answer = cli("predict", "--support", support, "--query", queries, "--false-accept", 0.5)
    good(
        answer,
        "6 images; 3 classes of 2 to 4 examples",
        "trained on glyphs (2 classes)",
        "calibrated on 200 3-way 3-shot",
    )
    good(answer, "50 % of the images of a class left out", "of 9; 95% interval", "rendered characters", "pretrained")
    folder = Path("predictions/queries")
    rows = table(folder)
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == 6
    for row in rows:
        assert row["nearest class"] == Path(row["path"]).name.partition("-")[0]
        assert row["class"] in (row["nearest class"], NONE)
        assert Path(row["nearest image 1"]).is_file()
        assert 1 / 3 <= float(row["probability"]) <= 1
    page = (folder / "predictions.html").read_text()
    assert page.count("<article") == 6
    assert page.count("data:image/jpeg") == 6 * 4
    assert {path.name for path in folder.iterdir()} == {"predictions.csv", "predictions.html"}


def test_nothing_is_overwritten(cli, support: Path, queries: Path, tmp_path: Path) -> None:
    before = tree(support.parent)
    for _ in range(3):
        good(cli("predict", "--support", support, "--query", queries))
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["queries", "queries-2", "queries-3"]
    good(cli("predict", "--support", support, "--query", queries, "--out", "mine/deep"))
    kept = tree(Path("mine"))
    bad(cli("predict", "--support", support, "--query", queries, "--out", "mine/deep"), "mine/deep exists", "--out")
    (tmp_path / "file").write_text("x")
    bad(cli("predict", "--support", support, "--query", queries, "--out", tmp_path / "file"), "exists")
    bad(cli("predict", "--support", support, "--query", queries, "--out", tmp_path / "file" / "sub"), "--out")
    assert tree(Path("mine")) == kept
    after = tree(support.parent)
    assert {name: after[name] for name in before} == before


def test_json_has_all_of_it_and_nothing_else_is_printed(cli, support: Path, queries: Path) -> None:
    answer = cli("predict", "--support", support, "--query", queries, "--json", "--false-accept", 0.1)
    good(answer)
    content = json.loads(answer.out)
    assert content["model"] == "glyphs"
    assert content["classes"] == {"checks": 3, "columns": 2, "rows": 4}
    assert content["false_accept"] == 0.1
    assert 0 < content["false_reject"] < 1
    assert content["leave_one_out"]["of"] == 9
    assert content["calibrated_on"] == {"way": 3, "shot": 3, "query": 5, "episodes": 200}
    assert len(content["predictions"]) == 6
    for each, row in zip(content["predictions"], table(Path(content["folder"]))):
        assert (each["label"] or NONE, each["path"]) == (row["class"], row["path"])
        assert (each["score"] < content["threshold"]) == (each["label"] is None)


def test_quiet_says_the_answers_and_where_they_are(cli, support: Path, queries: Path) -> None:
    (queries / "empty.jpg").touch()
    answer = cli("predict", "--support", support, "--query", queries, "--quiet")
    good(answer, "6 images; 3 classes of 2 to 4 examples", "are right", "empty.jpg (empty file)", "predictions.csv")
    assert answer.err == ""
    assert "calibrated on" not in answer.out
    assert all(row["path"][-40:] in answer.out for row in table(Path("predictions/queries")))
    bad(cli("predict", "--support", support, "--query", "nowhere", "--quiet"), "nowhere does not exist")


def test_how_far_it_is_is_said_where_it_takes_long(
    cli, support: Path, queries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress._Late, "AFTER", 0.0)
    slow = photos.show
    monkeypatch.setattr(model, "show", lambda *given: (time.sleep(0.1), slow(*given))[1])
    answer = cli("predict", "--support", support, "--query", queries)
    good(answer)
    assert {"looking at examples: 0 %", "looking at images: 0 %"} <= set(answer.err.splitlines())
    for word in ("--json", "--quiet"):
        assert cli("predict", "--support", support, "--query", queries, word).err == ""


def test_files_and_folders_and_what_a_shell_makes_of_a_star(cli, support: Path, queries: Path) -> None:
    every = sorted(queries.rglob("*.png"))
    good(
        cli(
            "predict", "--support", support, "--query", every[0], *every[1:3], "--query", queries / "deep", "--out", "o"
        )
    )
    found = [row["path"] for row in table(Path("o"))]
    assert len(found) == len(set(found))
    assert set(found) == {str(path) for path in [*every[:3], *(queries / "deep").rglob("*.png")]}


def test_loops_of_links_end(cli, support: Path, queries: Path) -> None:
    (queries / "deep" / "up").symlink_to(queries)
    good(cli("predict", "--support", support, "--query", queries, "--out", "o"), "6 images;")


def test_bad_queries_are_named_and_skipped(cli, support: Path, queries: Path) -> None:
    (queries / "a\n\x1b[2Jbad.png").write_text("no image")
    (queries / "empty.jpg").touch()
    answer = cli("predict", "--support", support, "--query", queries, "--out", "o")
    good(answer, "2 of 8 images could not be read", "a\\n\\x1b[2Jbad.png (not an image", "empty.jpg (empty file)")
    assert "a\\n\\x1b[2Jbad.png" in (Path("o") / "predictions.html").read_text()
    assert len(table(Path("o"))) == 6


def test_bad_examples_are_refused_or_skipped(cli, support: Path, queries: Path) -> None:
    (support / "rows" / "bad.png").write_text("no image")
    bad(cli("predict", "--support", support, "--query", queries), "rows/bad.png", "--on-bad-image skip")
    answer = cli("predict", "--support", support, "--query", queries, "--on-bad-image", "skip")
    good(answer, "1 of 10 examples skipped", "rows/bad.png")
    for path in (support / "columns").iterdir():
        path.write_text("no image")
    bad(
        cli("predict", "--support", support, "--query", queries, "--on-bad-image", "skip"), "columns", "no usable image"
    )


def test_a_query_that_is_an_example_is_told(cli, support: Path, queries: Path) -> None:
    shutil.copy(support / "rows" / "0.png", queries / "copy.png")
    good(
        cli("predict", "--support", support, "--query", queries, "--out", "o"), "1 of the images are among the examples"
    )
    rows = {Path(row["path"]).name: row for row in table(Path("o"))}
    assert rows["copy.png"]["same pixels as"] == str(support / "rows" / "0.png") == rows["copy.png"]["nearest image 1"]
    assert rows["rows-0.png"]["same pixels as"] == ""


def test_hostile_names_are_text_everywhere(cli, support: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["=1+1", "@x", "-2", "+3", "<script>alert(1)<b>", "[red]r", "n\n\x1b[31m", "..x", "\udcff"]
    for i, name in enumerate(names):
        save(tmp_path / "hostile" / f"{name}.png", "rows", i)
        save(tmp_path / "classes" / name / "1.png", "rows", i)
    save(tmp_path / "classes" / "other" / "1.png", "columns", 0)
    monkeypatch.chdir(tmp_path / "hostile")
    answer = cli(
        "predict", "--support", "../classes", *(w for n in names for w in ("--query", f"{n}.png")), "--out", "../o"
    )
    good(answer, "for a formula: ' stands before it")
    assert all(line.isprintable() for line in answer.out.split("\n"))
    assert "[red]r.png" in answer.out
    raw = (tmp_path / "o" / "predictions.csv").read_text()
    assert raw.count("\n") == 1 + len(names)
    for row in csv.reader(raw.splitlines()):
        assert not any(text.startswith(("=", "+", "-", "@")) for text in row)
    page = (tmp_path / "o" / "predictions.html").read_text()
    assert "<script" not in page
    assert "n\\n\\x1b[31m" in page


def test_cells_are_text_to_a_spreadsheet() -> None:
    assert [cell(x) for x in ("=a", "+a", "-a", "@a", " =a", "\t=a", "a=b", "'a")] == [
        "'=a", "'+a", "'-a", "'@a", "' =a", "\\t=a", "a=b", "'a",
    ]  # fmt: skip


def test_bad_input_is_one_line(cli, support: Path, queries: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    one = shutil.copytree(support / "rows", tmp_path / "one" / "rows").parent
    wrong = {
        "nowhere does not exist": ("--support", "nowhere", "--query", queries),
        "is a file": ("--support", support / "rows" / "0.png", "--query", queries),
        "one class with images (rows)": ("--support", one, "--query", queries),
        "no class folder": ("--support", tmp_path / "none", "--query", queries),
        f"{support} has: give that path": ("--support", support.parent, "--query", queries),
        "gone.png does not exist": ("--support", support, "--query", "gone.png"),
        "holds no image files": ("--support", support, "--query", tmp_path / "none"),
        "Did you mean 'glyphs'": ("--support", support, "--query", queries, "--model", "glyph"),
        "is not a run directory": ("--support", support, "--query", queries, "--model", tmp_path / "none"),
        "thresholds were measured from 0.005 to 0.5": ("--support", support, "--query", queries, "--false-accept", 0.9),
        "a number is needed": ("--support", support, "--query", queries, "--false-accept", "few"),
        "--on-bad-image": ("--support", support, "--query", queries, "--on-bad-image", "hide"),
        "device 'nonsense'": ("--support", support, "--query", queries, "--device", "nonsense"),
        "Missing option": ("--query", queries),
    }
    for words, arguments in wrong.items():
        bad(cli("predict", *arguments), words)
    (tmp_path / "none" / "x.png").write_text("no image")
    bad(cli("predict", "--support", support, "--query", tmp_path / "none"), "none of 1 images can be used", "x.png")
    assert not Path("predictions").exists()


def test_as_processes(trained: Path, support: Path, queries: Path, tmp_path: Path) -> None:
    before = tree(trained)
    answer = process("predict", "--support", support, "--query", queries, "--model", trained, where=tmp_path)
    good(
        answer,
        "trained on pictures (4 classes)",
        "calibrated on 200 2-way 3-shot episodes of pictures, val split (3 classes",
    )
    assert "rendered characters" not in answer.out
    assert len(table(tmp_path / "predictions" / "queries")) == 6
    assert tree(trained) == before
    bad(process("predict", "--support", tmp_path / "x", "--query", queries, where=tmp_path), "x does not exist")


def altered(run: Path, to: Path, **change: object) -> Path:
    """A copy of a run with another card."""
    shutil.copytree(run, to)
    card = {**files.read_json(to / "model.json"), **change}
    files.write_json(to / "model.json", {name: value for name, value in card.items() if value != "gone"})
    return to


def test_a_run_of_an_older_version_is_measured_where_its_images_are(trained: Path, tmp_path: Path) -> None:
    new = model.Model.open(trained).calibration()
    old = model.Model.open(altered(trained, tmp_path / "old", calibration="gone"))
    assert old.measures
    found = old.calibration()
    assert found is not None
    assert new is not None
    assert [c.temperature for c in found.cells] == pytest.approx([c.temperature for c in new.cells], rel=1e-3)
    assert not (tmp_path / "old" / "model.json").read_text().count("calibration")


def test_what_cannot_be_calibrated_is_said(trained: Path, cli, support: Path, queries: Path, tmp_path: Path) -> None:
    for number, (change, why) in enumerate(
        [
            ({"calibration": None}, "too few or too small"),
            ({"calibration": {"cells": 3}}, "no calibration of a form"),
            ({"calibration": "gone", "task": "classify"}, "without validation classes"),
        ]
    ):
        run = altered(trained, tmp_path / f"run{number}", **change)
        answer = cli("predict", "--support", support, "--query", queries, "--model", run, "--out", f"o{number}")
        good(answer, "probabilities are uncalibrated", why)
        assert {row["class"] for row in table(Path(f"o{number}"))} == {"rows", "columns", "checks"} & {
            row["nearest class"] for row in table(Path(f"o{number}"))
        }


def test_images_that_went_away_leave_an_old_run_uncalibrated(trained: Path, tmp_path: Path) -> None:
    run = altered(trained, tmp_path / "old", calibration="gone")
    config = (run / "config.toml").read_text()
    data = json.loads((run / "data.json").read_text())
    assert str(trained.parent) in config
    files.write_json(run / "data.json", {**data, "val": {**data["val"], "fingerprint": "another"}})
    found = model.Model.open(run)
    assert found.calibration() is None
    assert "not what they were" in found.uncalibrated
