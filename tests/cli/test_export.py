"""`fewshot-mcl export`: what a user types, and what is there afterwards."""

from __future__ import annotations

import shutil

import pytest
from command_line import TINY_CLASSIFY, bad, class_folders, good, tree

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_finished_run_is_handed_to_other_programs(cli, run) -> None:
    before = tree(run)
    good(cli("export", run), f"written {run / 'model.onnx'}", f"{run / 'model.onnx.json'}")
    good(cli("export", run, "--format", "torch-export", "--out", "net.pt2"), "net.pt2.json")
    good(cli("export", run, "--format", "huggingface"), "README.md, config.json, model.safetensors")
    good(cli("export", run, "--format", "tensorboard"), "3 new rows", "tensorboard --logdir")
    good(cli("export", run, "--format", "tensorboard"), "0 new rows")
    after = tree(run)
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {
        "model.onnx", "model.onnx.json", "huggingface", "tensorboard",
    }  # fmt: skip
    bad(cli("export", run), "model.onnx exists, and nothing is overwritten", "--out")
    bad(cli("export", run, "--format", "huggingface"), "config.json exists")
    assert tree(run) == after


def test_what_cannot_be_exported_is_refused_in_a_sentence(cli, run, tmp_path) -> None:
    bad(cli("export", run, "--format", "onxx"), "unknown format 'onxx'", "Did you mean 'onnx'")
    bad(cli("export", "nowhere"), "nowhere does not exist")
    (run / "model.json").unlink()
    bad(cli("export", run), "no deployed network", "--resume")
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    good(cli("export", run, "--format", "tensorboard"), "3 new rows")


def test_a_run_of_any_loss_of_the_library_is_trained_evaluated_and_exported(cli, tmp_path) -> None:
    data = class_folders(tmp_path / "data", ant=20, bee=20, cat=20)
    method = ("--method", "metric-learning", "--set", "objective.loss=ArcFaceLoss", "--out", "run")
    good(cli("classify", "--data", data, *TINY_CLASSIFY, *method))
    good(cli("evaluate", "run"), "metric-learning")
    good(cli("export", "run", "--format", "huggingface"))
    assert "test split" in (tmp_path / "here" / "run" / "huggingface" / "README.md").read_text()
    wrong = ("--method", "metric-learning", "--set", "objective.loss=ArkFaceLoss")
    bad(cli("classify", "--data", data, *TINY_CLASSIFY, *wrong), "ArkFaceLoss", "Did you mean 'ArcFaceLoss'")
