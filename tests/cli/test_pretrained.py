"""Peers that start from ImageNet weights: wherever their figures stand, it is said what the weights have seen."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from command_line import PROTOCOL, TINY, TINY_CLASSIFY, bad, class_folders, good

from fewshot_mcl.evaluation.restore import IMAGENET_SEEN

STARTED = ("--backbone", "efficientnet-lite0", "--set", "weights=imagenet", "--image-size", 32)


def test_training_and_evaluation_say_what_the_weights_have_seen(cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    good(cli("train", "--data", data, *TINY, *STARTED, "--episodes", 1, "--out", run), IMAGENET_SEEN)
    good(cli("evaluate", run, *PROTOCOL), IMAGENET_SEEN)
    plain = cli("train", "--data", data, *TINY, *STARTED[:2], "--image-size", 32, "--episodes", 1)
    good(plain)
    assert IMAGENET_SEEN not in plain.out


def test_the_online_teacher_may_be_an_auxiliary_classifier(cli, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    aux = ("--set", "kl_source=aux", "--set", "log_every=1", "--episodes", 2, "--out", run)
    good(cli("train", "--data", data, *TINY, *STARTED, *aux), IMAGENET_SEEN)
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(
        math.isfinite(float(row[name])) and float(row[name]) > 0 for row in rows for name in ("aux_ce", "aux_kl")
    )
    good(cli("evaluate", run, *PROTOCOL), IMAGENET_SEEN)


def test_classification_says_so_twice(cli, tmp_path: Path) -> None:
    pictures = class_folders(tmp_path / "pictures", side=32, ant=10, bee=10, cat=10)
    answer = cli("classify", "--data", pictures, *TINY_CLASSIFY, *STARTED, "--epochs", 1)
    good(answer, IMAGENET_SEEN)
    assert answer.out.count(IMAGENET_SEEN) == 2  # above training, and above the test


def test_what_does_not_go_together(cli, data: Path) -> None:
    bad(cli("train", "--data", data, *TINY, *STARTED, "--color", "grey"), "ImageNet weights", "--color rgb")
    bad(cli("train", "--data", data, *TINY, "--set", "weights=imagenet"), "efficientnet-lite0", "not to conv4")
    bad(cli("train", "--data", data, *TINY, *STARTED[:3], "weights=imagenett", *STARTED[4:]), "Did you mean 'imagenet'")
