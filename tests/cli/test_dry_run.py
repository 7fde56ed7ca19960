"""`--dry-run` says what a run would take, writes nothing, and refuses what cannot fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

SMALL = ["--set", "val_episodes=2", "--way", "3", "--query", "2", "--peers", "2"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", *SMALL, "--episodes", "3"],
        ["classify", "--epochs", "1", "--peers", "2", "--set", "images_per_class=2"],
    ],
)
def test_time_memory_and_disk_are_said_and_nothing_is_written(arguments: list[str], cli) -> None:
    answer = cli(*arguments, "--dry-run", "--out", "run")
    assert (answer.code, answer.err) == (0, "")
    for pattern in (
        r"2 conv4 peers, [\d,]+ parameters",
        r"time +[\d.]+ s of training",
        r"memory +[\d.,]+ [MG]B",
        r"disk +up to [\d.]+ MB",
    ):
        assert re.search(pattern, answer.out)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--set", "objective.negatives=all"],
            r"plan    of the contrast: dense \(all [\d,]+ rows count\), .*: [\d.]+ MiB of working memory",
        ),
        (
            ["--set", "objective.negatives=any", "--set", "objective.num_negatives=3"],
            r"plan    of the contrast: gather \(K = 3 is less than",
        ),
        (["--method", "dml"], None),
    ],
)
def test_the_plan_of_the_contrast_is_said_where_there_is_one(arguments: list[str], said: str | None, cli) -> None:
    answer = cli("train", *SMALL, "--episodes", "3", *arguments, "--dry-run")
    assert (answer.code, answer.err) == (0, "")
    assert bool(re.search(said or "plan ", answer.out)) == (said is not None)


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_what_cannot_fit_is_refused_with_what_would(dry: list[str], cli) -> None:
    answer = cli("train", *SMALL, "--set", "objective.embedding_dim=100000000", *dry)
    assert answer.code == 2
    assert re.search(r"not enough memory: .* take [\d.,]+ GB, and [\d.,]+ GB is available", answer.err)
    assert re.search(r"It fits with --set objective.embedding_dim=\d+", answer.err)
    assert list(Path().iterdir()) == []


def test_a_dry_run_is_of_a_new_run(cli) -> None:
    answer = cli("train", "--dry-run", "--resume", "--out", "run")
    assert answer.code == 2
    assert "leave --resume out" in answer.err


def test_the_test_images_are_not_opened(cli, tmp_path: Path) -> None:
    for split, classes in (("train", "ab"), ("test", "ab")):
        for name in classes:
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                image = folder / f"{number}.png"
                if split == "train":
                    Image.new("L", (16, 16), 60 * number).save(image)
                else:
                    image.write_bytes(b"no image")
    answer = cli(
        "classify", "--data", tmp_path / "pictures", "--epochs", "1", "--batch", "4", "--peers", "2", "--dry-run"
    )
    assert (answer.code, answer.err) == (0, "")


def test_several_processes_are_estimated(cli) -> None:
    asked = ["train", *SMALL, "--episodes", "3", "--dry-run", "--world-size", "2", "--bandwidth", "5"]
    answer = cli(*asked, "--json")
    assert (answer.code, answer.err) == (0, "")
    several = json.loads(answer.out)["several"]
    assert (several["processes"], several["bandwidth"], several["steps"]) == (2, 5.0, 1000)
    one, *shared = several["costs"]
    assert (one["way"], one["sent"]) == ("one process", {})
    assert [each["way"] for each in shared] == ["data parallel", "sharded banks", "peer parallel"]
    assert all(each["sent"] and each["seconds"]["exchange"] > 0 for each in shared)
    assert shared[1]["memory"]["banks"] * 2 == one["memory"]["banks"]
    assert any("5 GB/s" in line for line in several["assumptions"])
    text = cli(*asked)
    assert text.code == 0
    for pattern in (
        r"with 2 processes, an estimate",
        r"memory of each, MB +[\d.,]+ +[\d.,]+",
        r"gradients of batch norm +- +[\d.]+",
        r"time of 1,000 episodes",
        r"Assumed: a link of 5 GB/s for each process \(--bandwidth\)",
    ):
        assert re.search(pattern, text.out), pattern
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--world-size", "2"], "are of --dry-run. To train with several processes: torchrun"),
        (["--dry-run", "--world-size", "1"], "2 or more"),
        (["--dry-run", "--bandwidth", "5"], "--world-size is a number of processes"),
        (["--dry-run", "--world-size", "2", "--bandwidth", "0"], "more than 0 GB/s"),
    ],
)
def test_processes_that_cannot_be_estimated(arguments: list[str], said: str, cli) -> None:
    for command in ("train", "classify"):
        answer = cli(command, *arguments)
        assert answer.code == 2
        assert said in answer.err
