"""`data check`, `data convert`, `train` and `evaluate` on every named few-shot set, from small files of a published form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from command_line import PROTOCOL, TINY, bad, good
from few_shot_builders import cifar_100_tar, cifar_pickles, cub, omniglot_zips, tiered_npz

from fewshot_mcl.config import NAMED_DATA
from fewshot_mcl.data.labelled import NEEDS_ROOT
from fewshot_mcl.data.sources import FEW_SHOT

SETS = {  # builder, what the source calls itself, channels
    "cifar-fs": (cifar_100_tar, "cifar-fs", 3),
    "fc100": (lambda root: cifar_pickles(root, "fc100"), "fc100", 3),
    "tiered-imagenet": (tiered_npz, "tiered-imagenet", 3),
    "cub": (cub, "cub-closer-look", 3),
    "cub-meta-dataset": (cub, "cub-meta-dataset", 3),
    "cub-feat": (cub, "cub-feat", 3),
    "omniglot": (omniglot_zips, "omniglot-vinyals", 1),
    "omniglot-background": (omniglot_zips, "omniglot-background", 1),
}
SMALL = ["--image-size", "16"]


@pytest.mark.parametrize("data", SETS)
def test_train_and_evaluate_name_the_set_and_its_split(cli, tmp_path, data) -> None:
    build, name, channels = SETS[data]
    root = build(tmp_path / "files")
    run = tmp_path / "run"
    trained = cli(
        "train", "--data", data, "--root", root, *TINY, "--set", "peers=1", "--method", "baseline", "--out", run
    )
    good(trained, name)
    saved = json.loads((run / "data.json").read_text())
    assert {saved[split]["source"] for split in ("train", "val")} == {name}
    assert saved["train"]["channels"] == channels
    good(cli("evaluate", run, *PROTOCOL), name)
    evaluation = json.loads((run / "evaluations" / "evaluation-001.json").read_text())
    assert (evaluation["data"], evaluation["results"][0]["split"]) == (name, "test")


@pytest.mark.parametrize("data", ["cifar-fs", "cub-feat", "omniglot"])
def test_a_converted_store_trains_under_the_same_name(cli, tmp_path, data) -> None:
    build, name, _ = SETS[data]
    root = build(tmp_path / "files")
    good(
        cli("data", "convert", data, "--root", root, "--out", tmp_path / "packed", *SMALL), f"{name}: the packed store"
    )
    good(cli("train", "--data", tmp_path / "packed", *TINY, "--out", tmp_path / "run"), name)
    checked = cli("data", "check", tmp_path / "packed")
    assert name in checked.out


def test_what_does_not_fit_into_memory_trains_to_the_same_numbers(cli, tmp_path) -> None:
    root, results = tiered_npz(tmp_path / "files"), []
    for share in ("0.5", "1e-12"):
        run = tmp_path / share
        options = ["--set", f"memory_share={share}", "--deterministic", "--out", run]
        good(cli("train", "--data", "tiered-imagenet", "--root", root, *TINY, *options))
        good(cli("evaluate", run, *PROTOCOL))
        results.append(json.loads((run / "evaluations" / "evaluation-001.json").read_text())["results"])
    assert results[0] == results[1]


def test_check_counts_what_is_there(cli, tmp_path) -> None:
    root = cub(tmp_path / "files")
    answer = cli("data", "check", "cub-meta-dataset", "--root", root)
    good(answer, "cub-meta-dataset: CUB_200_2011", "train: 140 classes, 420 images (3 a class)", "no problem found")
    answer = cli("data", "check", "cifar-fs", "--root", cifar_pickles(tmp_path / "cifar", "cifar-fs"))
    assert answer.code == 2
    assert "train: class 'apple' has 3 usable images, not 600" in answer.out


def test_classify_takes_the_training_classes(cli, tmp_path) -> None:
    root = cifar_pickles(tmp_path / "files", "fc100")
    options = [
        "--image-size",
        "16",
        "--epochs",
        "1",
        "--set",
        "peers=1",
        "--method",
        "baseline",
        "--out",
        tmp_path / "run",
    ]
    good(cli("classify", "--data", "fc100", "--root", root, *options), "fc100, test split: 60 classes")
    good(
        cli(
            "data",
            "convert",
            "cub",
            "--task",
            "classify",
            "--root",
            cub(tmp_path / "cub"),
            "--out",
            tmp_path / "p",
            *SMALL,
        )
    )
    options[-1] = tmp_path / "another run"
    good(
        cli("classify", "--data", "cub", "--root", tmp_path / "p", *options), "cub-closer-look, test split: 100 classes"
    )


@pytest.mark.parametrize("data", SETS)
def test_a_folder_without_the_set_says_what_to_supply(cli, tmp_path, data) -> None:
    (tmp_path / "empty").mkdir()
    bad(cli("train", "--data", data, "--root", tmp_path / "empty"), "expected")
    bad(cli("train", "--data", data), "--root DIR")


def test_one_split_is_not_trained_as_another(cli, tmp_path) -> None:
    """A run on one split of CUB is not tested on another, where it has seen classes of the test split."""
    root, run = cub(tmp_path / "files"), tmp_path / "run"
    good(cli("train", "--data", "cub", "--root", root, *TINY, "--out", run))
    answer = cli("evaluate", run, "--data", "cub-meta-dataset", "--root", root, *PROTOCOL)
    bad(answer, "classes to be tested were classes of training")


def test_every_named_set_is_known_everywhere() -> None:
    assert {"glyphs", *NEEDS_ROOT} == set(NAMED_DATA)
    assert set(SETS) < set(FEW_SHOT) < set(NEEDS_ROOT)


def test_help_names_them(cli) -> None:
    for command in (["train", "--help"], ["data", "check", "--help"]):
        text = "".join(cli(*command).out.split())  # lines break at hyphens
        for data in SETS:
            assert data in text


def test_a_store_is_packed_in_parts(cli) -> None:
    first = cli("data", "convert", "glyphs", "--out", "packed", "--part", "2/2")
    assert (first.code, first.err) == (0, "")
    assert "part 2/2 is packed; left: 1" in first.out
    assert "Use it with" not in first.out
    last = cli("data", "convert", "glyphs", "--out", "packed", "--part", "1/2", "--json")
    assert last.code == 0
    assert json.loads(last.out)["left"] == []
    assert len(json.loads(last.out)["written"]) == 3
    assert cli("data", "check", "packed").code == 0
    wrong = cli("data", "convert", "glyphs", "--out", "other", "--part", "3/2")
    assert (wrong.code, wrong.out) == (2, "")
    assert "--part 3/2" in wrong.err
