"""`compare` on runs of the command line: groups, pairs, what is reused, what is refused, and what is said."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, TINY_CLASSIFY, bad, class_folders, good, split_folders
from scipy import stats

from fewshot_mcl import cli as command_line_interface
from fewshot_mcl.training import episodic

NAMES = ("baseline0", "baseline1", "mcl-okd0", "mcl-okd1")
PROTOCOL = ("--episodes", 20, "--way", 3, "--shot", 1, "--query", 2)


@pytest.fixture(scope="module")
def originals(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, seeds 0 and 1 of each."""
    folder = tmp_path_factory.mktemp("originals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episodic, "FINAL_EPISODES", 8)
        for name in NAMES:
            words = ["--method", name[:-1], "--seed", name[-1], "--out", str(folder / name)]
            patch.setattr(sys, "argv", ["fewshot-mcl", "train", "--data", str(data), *TINY, *words])
            with pytest.raises(SystemExit) as exit_:
                command_line_interface.main()
            assert not exit_.value.code
    return folder


@pytest.fixture
def runs(originals: Path, tmp_path: Path) -> list[Path]:
    """Copies of them, each a path."""
    return [Path(shutil.copytree(originals / name, tmp_path / name)) for name in NAMES]


def compared(cli, *arguments: object) -> dict:
    answer = cli("compare", *arguments, "--json")
    good(answer)
    return json.loads(answer.out)


def accuracies(run: Path) -> np.ndarray:
    [file] = run.glob("evaluations/*.json")
    content = json.loads(file.read_text())
    [entry] = [e for e in content["results"] if e["network"] == content["deployed"]]
    return np.array(entry["accuracies"])


def test_groups_are_compared_on_the_same_episodes(runs: list[Path], cli) -> None:
    found = compared(cli, *runs, *PROTOCOL)
    assert [(g["name"], [r["seed"] for r in g["runs"]]) for g in found["groups"]] == [
        ("Baseline", [0, 1]),
        ("MCL-OKD", [0, 1]),
    ]
    [pair] = found["pairs"]
    values = [accuracies(run) for run in runs]
    first, second = (values[0] + values[1]) / 2, (values[2] + values[3]) / 2
    slow = stats.ttest_rel(first, second)
    over = pair["over_episodes"]
    assert pair["mean"] == pytest.approx(first.mean() - second.mean())
    assert (over["low"], over["high"]) == pytest.approx(tuple(slow.confidence_interval()))
    assert over["t_p"] == over["t_p_holm"] == pytest.approx(slow.pvalue)
    seeds = stats.ttest_rel([v.mean() for v in values[:2]], [v.mean() for v in values[2:]])
    assert pair["over_seeds"]["high"] == pytest.approx(seeds.confidence_interval().high)
    assert pair["by_seed"]["1"] == pytest.approx(values[1].mean() - values[3].mean())
    spread = found["groups"][0]["results"][0]["deviation_over_seeds"]
    assert spread == pytest.approx(np.std([v.mean() for v in values[:2]], ddof=1))


def test_saved_evaluations_are_used_again_and_the_text_says_what_the_json_says(runs: list[Path], cli) -> None:
    good(cli("evaluate", runs[0], *PROTOCOL))
    found = compared(cli, runs[0], runs[2], *PROTOCOL)
    assert [run["reused"] for g in found["groups"] for run in g["runs"]] == [True, False]
    answer = cli("compare", runs[0], runs[2], *PROTOCOL)
    good(answer, "A - B, 1-shot", found["heading"], *found["sentences"], *found["explanation"])
    assert "evaluated" not in answer.out
    for group in found["groups"]:
        assert f"{100 * group['results'][0]['mean']:.2f} ± {100 * group['results'][0]['ci95']:.2f}" in answer.out
    over = found["pairs"][0]["over_episodes"]
    assert f"{100 * over['low']:+.2f} to {100 * over['high']:+.2f}" in answer.out
    assert "other seeds would agree is not known" in answer.out or "No difference" in answer.out
    other = compared(cli, runs[0], runs[2], *PROTOCOL, "--seed", 1)
    assert not any(run["reused"] for g in other["groups"] for run in g["runs"])


def test_a_damaged_evaluation_is_not_used(runs: list[Path], cli) -> None:
    compared(cli, runs[0], runs[2], *PROTOCOL)
    [file] = runs[0].glob("evaluations/*.json")
    file.write_text(file.read_text().replace('"mean": 0', '"mean": 1', 1))
    found = compared(cli, runs[0], runs[2], *PROTOCOL)
    assert [run["reused"] for g in found["groups"] for run in g["runs"]] == [False, True]


def test_a_page_with_charts(runs: list[Path], cli, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    good(cli("compare", *runs, *PROTOCOL, "--out", page), f"written {page}")
    text = page.read_text()
    assert text.count('<svg role="img"') == 2
    assert "Compared: Baseline, MCL-OKD" in text
    page.write_text("mine")
    bad(cli("compare", *runs, *PROTOCOL, "--out", page), "no page of fewshot-mcl")
    assert page.read_text() == "mine"


def test_seeds_alone_are_no_comparison(runs: list[Path], cli) -> None:
    good(cli("compare", *runs[:2], *PROTOCOL), "differ in nothing but their seed")


def test_settings_tell_groups_of_one_method_apart(train, runs: list[Path], cli, tmp_path: Path) -> None:
    good(train("--lr", "0.01", "--out", tmp_path / "fast"))
    found = compared(cli, runs[2], tmp_path / "fast", *PROTOCOL)
    assert [g["name"] for g in found["groups"]] == ["MCL-OKD, lr 0.002", "MCL-OKD, lr 0.01"]
    assert list(found["differing"]) == ["lr"]


def test_what_is_no_fair_comparison_is_refused(runs: list[Path], cli, tmp_path: Path) -> None:
    bad(cli("compare", runs[0]), "two runs or more")
    bad(cli("compare", runs[0], runs[0]), "named twice")
    bad(cli("compare", runs[0], "nowhere"), "nowhere does not exist")
    copy = Path(shutil.copytree(runs[0], tmp_path / "copy"))
    bad(cli("compare", runs[0], copy), "the same seed", "Leave one out")
    bad(cli("compare", *runs, "--split", "train"), "unknown split", "test, val")


def test_other_training_images_are_refused_or_said_loudly(runs: list[Path], cli, tmp_path: Path) -> None:
    more = split_folders(tmp_path / "more" / "pictures", 6, train="ant bee cat dog owl")
    good(cli("train", "--data", more, *TINY, "--out", tmp_path / "other"))
    bad(cli("compare", runs[0], tmp_path / "other", *PROTOCOL), "not the same images", "--other-training-data")
    both = (runs[0], tmp_path / "other", *PROTOCOL, "--other-training-data")
    good(cli("compare", *both), "NOT THE SAME TRAINING IMAGES")
    overlap = split_folders(tmp_path / "seen" / "pictures", 6, train="ant bee hen ibis", test="kite lynx mole")
    good(cli("train", "--data", overlap, *TINY, "--out", tmp_path / "seen-run"))
    data = tmp_path / "more" / "pictures"
    answer = cli("compare", runs[0], tmp_path / "seen-run", *PROTOCOL, "--data", data, "--other-training-data")
    bad(answer, "were classes of training", "hen, ibis")


def test_runs_tested_on_different_images_cannot_be_paired(runs: list[Path], cli, tmp_path: Path) -> None:
    other = split_folders(tmp_path / "other" / "pictures", 6, test="kite lynx mole")
    good(cli("train", "--data", other, *TINY, "--method", "dml", "--out", tmp_path / "dml"))
    bad(cli("compare", runs[0], tmp_path / "dml", *PROTOCOL), "different images", "--data")
    good(cli("compare", runs[0], tmp_path / "dml", *PROTOCOL, "--data", other), "A - B")


def test_classifiers_are_compared_image_by_image(cli, tmp_path: Path, runs: list[Path]) -> None:
    data = class_folders(tmp_path / "coloured", ant=24, bee=24, cat=24)
    made = [tmp_path / "one", tmp_path / "two"]
    for path, method in zip(made, ("baseline", "dml")):
        good(cli("classify", "--data", data, *TINY_CLASSIFY, "--method", method, "--out", path))
    found = compared(cli, *made)
    assert all(run["reused"] for g in found["groups"] for run in g["runs"])
    [pair] = found["pairs"]
    assert pair["over_images"]["count"] == found["images"] == 18
    assert [each["of"] for each in pair["mcnemar"]] == ["seed 0"]
    good(cli("compare", *made), "McNemar", "top-1 accuracy of the deployed peer, last epoch", *found["sentences"])
    bad(cli("compare", *made, "--way", 3), "--way means nothing")
    bad(cli("compare", made[0], runs[0]), "measure different things")
