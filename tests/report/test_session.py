"""`report`: the page of a run that was trained, its figures those of `evaluate`, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from command_line import PROTOCOL, TINY, TINY_CLASSIFY, bad, class_folders, good, split_folders, tree
from made_up import Seen, ask, material

from fewshot_mcl.evaluation.fewshot import evaluate_episodes
from fewshot_mcl.report import headline
from fewshot_mcl.runs.files import read_json, write_json

NAMES = '<img src=x onerror=alert(1)> "ibis" $j^2'
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, tested once on 1 and 2 shots; not to be written to."""
    folder = tmp_path_factory.mktemp("report-session")
    data = split_folders(folder / "pictures", 6, test="hen kea loon")
    (data / "test" / "kea").rename(data / "test" / NAMES)
    good(ask("train", "--data", data, *TINY, "--out", folder / "run"))
    good(ask("evaluate", folder / "run", *PROTOCOL, "--shot", 2))
    return folder / "run"


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `classify`; not to be written to."""
    folder = tmp_path_factory.mktemp("report-classify")
    data = class_folders(folder / "pictures", ant=12, bee=12, cat=8)
    good(ask("classify", "--data", data, *TINY_CLASSIFY, "--out", folder / "run"))
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def classes(classified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classified, tmp_path / "run"))


def sound(page: Path) -> Seen:
    """One file that loads nothing, whose headings, pictures, tables and links are as a screen reader needs them."""
    text = page.read_text()
    seen = Seen(text)
    assert page.stat().st_size < 5e6
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    levels = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("alt" in each for each in seen.all("img"))  # empty where a figure says in words what its pictures show
    assert all(each.get("scope") in ("row", "col") for each in seen.all("th"))
    ids = [value for _, attributes in seen.tags if (value := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    assert {str(each["href"])[1:] for each in seen.all("a")} <= set(ids)
    assert not {"script", "iframe", "link"} & {tag for tag, attributes in seen.tags if attributes.get("rel") != "icon"}
    return seen


def test_the_page_has_the_figures_of_evaluate(run: Path) -> None:
    before = tree(run)
    good(ask("report", run, *PROTOCOL), "report.html", "Open it in a browser")
    assert tree(run) == before | {"report.html": tree(run)["report.html"]}
    found = json.loads(ask("evaluate", run, *PROTOCOL, "--peers", "--json").out)["results"]
    seen = sound(run / "report.html")
    rows = {row[0].removesuffix(" (deployed)"): row[2] for row in seen.rows if len(row) == 4}
    for each in found:
        assert rows[each["network"]] == f"{100 * each['mean']:.2f} ± {100 * each['ci95']:.2f}"
    for words in ("3-way 1-shot with 2 queries a class", "5 episodes (seed 0)", "deployed network ( peer 1 of 2)"):
        assert words.replace("( ", "(") in seen.text
    assert NAMES in seen.text
    assert not [each for each in seen.all("img") if each.get("src") == "x"]
    assert "--way 3 --shot 1 --query 2 --seed 0 --split test --checkpoint best" in seen.text
    assert {"torch", "Python", "system"} <= {row[0] for row in seen.rows}
    good(ask("report", run, *PROTOCOL))  # a page of ours is replaced


def test_pixels_are_the_nearest_class_mean_of_the_pixels() -> None:
    found = material(shots=(2,))
    pixels = found.store.images.flatten(1).float() / 255
    expected = evaluate_episodes(pixels, found.episodes).accuracies
    assert torch.equal(headline.pixel_accuracies(found.store, found.episodes), expected)
    page = Seen(headline.section(found))
    deployed = evaluate_episodes(found.measured[-1], found.episodes).accuracies
    gain = deployed - expected
    half = 1.96 * float(gain.std()) / len(gain) ** 0.5
    assert f"{100 * float(gain.mean()):+.2f} ± {100 * half:.2f} points" in page.text


def test_a_saved_evaluation_comes_out_again(run: Path) -> None:
    good(ask("report", run, "--evaluation", 1))
    seen = sound(run / "report.html")
    assert "Every figure of the saved evaluation came out again" in seen.text
    assert "3-way 2-shot" in seen.text or "3-way 1-shot" in seen.text
    good(ask("report", run, "--evaluation", 1, "--shot", 2))
    assert "3-way 2-shot with 2 queries" in sound(run / "report.html").text
    bad(ask("report", run, "--evaluation", 7), "no evaluation 7", "there is 1")
    bad(ask("report", run, "--evaluation", 1, "--shot", 4), "--shot 4")
    bad(ask("report", run, "--evaluation", 1, "--way", 4), "--way means nothing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(fingerprint="0" * 64), "other images"),
        (lambda c: c.update(checkpoint_episode=99), "other checkpoint"),
        (lambda c: c["results"][0].update(episode_list="0"), "other episodes"),
        (lambda c: c["results"][0].update(accuracies=[0.0] * 5), "away from what was saved"),
    ],
)
def test_an_evaluation_that_is_of_something_else(run: Path, change, words: str) -> None:
    path = run / "evaluations" / "evaluation-001.json"
    content = read_json(path)
    change(content)
    write_json(path, content)
    bad(ask("report", run, "--evaluation", 1), words)
    assert not (run / "report.html").exists()


def test_nothing_else_is_replaced(run: Path) -> None:
    (run / "report.html").write_text("mine")
    bad(ask("report", run, *PROTOCOL), "no page of fewshot-mcl", "--out")
    assert (run / "report.html").read_text() == "mine"
    bad(ask("report", run, "--split", "tset"), "tset", "test")
    (run / "report.html").unlink()
    bad(ask("report", run), "there are 3", "--way 3")


def test_another_split_says_what_it_is(run: Path, tmp_path: Path) -> None:
    good(ask("report", run, *PROTOCOL, "--split", "val", "--out", tmp_path / "val.html"))
    assert "validation classes, by which the checkpoint was chosen" in sound(tmp_path / "val.html").text


@pytest.mark.parametrize("schema", ["run-schema1", "run-schema2"])
def test_runs_of_earlier_releases(schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    run = shutil.copytree(GOLDEN / schema, tmp_path / "runs") / "stopped"
    good(ask("report", run, "--episodes", 6, "--way", 3, "--query", 2))
    assert "How training went" in sound(run / "report.html").text


def test_a_run_that_classifies(classes: Path) -> None:
    good(ask("report", classes))
    content = read_json(classes / "evaluations" / "evaluation-001.json")
    seen = sound(classes / "report.html")
    for each in content["results"]:
        assert f"{100 * each['top1_error']:.2f} ± {100 * each['top1_ci95']:.2f}" in [
            row[2] for row in seen.rows if len(row) == 4
        ]
    accuracies = {row[0]: row[1] for row in seen.rows if len(row) == 5 and row[1].endswith("%")}
    assert accuracies == {name: f"{100 * share:.1f} %" for name, share in content["class_accuracy"].items()}
    with (classes / "evaluations" / "evaluation-001-confusion.csv").open() as file:
        counts = [[int(cell) for cell in row] for row in csv.reader(file)]
    pairs = {(a, b) for a in range(3) for b in range(a) if counts[a][b] + counts[b][a]}
    assert len([row for row in seen.rows if row[-1].count(" for ") == 2]) == len(pairs)
    bad(ask("report", classes, "--way", 3), "learned to classify", "--way")
    bad(ask("report", classes, "--evaluation", 2), "no evaluation 2")


def test_a_run_that_classifies_and_was_not_tested(classes: Path) -> None:
    shutil.rmtree(classes / "evaluations")
    good(ask("report", classes))
    assert (classes / "evaluations" / "evaluation-001.json").exists()
    sound(classes / "report.html")
    answers = classes / "evaluations" / "evaluation-001-predictions.safetensors"
    answers.write_bytes(answers.read_bytes()[:-1])
    bad(ask("report", classes), "damaged")


def test_without_matplotlib_it_is_said_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    bad(ask("report", run, *PROTOCOL), "fewshot-mcl[report]")


def test_help_imports_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fewshot_mcl", "report", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "numpy", "scipy", "PIL", "pydantic", "jinja2", "matplotlib"})
    assert "--evaluation" in answer.stdout
