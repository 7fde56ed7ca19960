"""`classify`: training, testing and resuming on labelled images, as a user does."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import TINY, TINY_CLASSIFY, Answer, bad, class_folders, good, picture, split_folders, tree
from PIL import Image
from safetensors.torch import load_file

from fewshot_mcl import cli as command_line_interface
from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.sources import ImageOptions, Source
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.evaluation.restore import load_deployed
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.resources import program
from fewshot_mcl.runs import Run
from fewshot_mcl.runs.files import read_json, write_json
from fewshot_mcl.training.supervised import SupervisedTask

COUNTS = {
    "ant": 16,
    "bee": 12,
    "cat": 8,
    "dog": 8,
    "elk": 8,
    "fox": 8,
}  # a quarter is for test, one of each for validation
TESTED, TRAINED = 15, 39
STEPS = 6  # two epochs of batches of 16, 16 and 7
METHODS = {
    "baseline": ["--peers", "1"],
    "mcl": ["--set", "objective.num_negatives=8"],
    "mcl-okd": [],
    **{name: ["--peers", "3"] for name in ("dml", "cl-ilr", "one", "okddip")},
    **{name: ["--peers", "1"] for name in ("rkd-d", "rkd-da")},
}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes in flat folders; not to be written to."""
    return class_folders(tmp_path_factory.mktemp("labelled") / "pictures", **COUNTS)


@pytest.fixture
def classify(cli, pictures: Path) -> Callable[..., Answer]:
    """`fewshot-mcl classify` on `pictures` and a moment's work, unless the arguments say otherwise."""
    return lambda *arguments: cli("classify", "--data", pictures, *TINY_CLASSIFY, *arguments)


def made(path: Path, pictures: Path, *arguments: str) -> Path:
    """A finished run at `path`."""
    command = ["fewshot-mcl", "classify", "--data", str(pictures), *TINY_CLASSIFY, *arguments, "--out", str(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exit_:
            command_line_interface.main()
    assert not exit_.value.code
    return path


@pytest.fixture(scope="session")
def classified(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished MCL-OKD run; not to be written to."""
    return made(tmp_path_factory.mktemp("classified") / "run", pictures)


@pytest.fixture(scope="session")
def teacher(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished baseline on the same data; not to be written to."""
    return made(tmp_path_factory.mktemp("teacher") / "run", pictures, "--method", "baseline", "--peers", "1")


@pytest.fixture
def run(classified: Path, tmp_path: Path) -> Path:
    """A copy of `classified`."""
    return Path(shutil.copytree(classified, tmp_path / "run"))


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop(k)`: Ctrl-C in step k (from 1); `stop(0)`: no more."""
    step, at = SupervisedTask.step, [0]

    def interrupted(self: SupervisedTask, number: int):
        if number + 1 == at[0]:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(SupervisedTask, "step", interrupted)
    return lambda number: at.__setitem__(0, number)


def evaluation(run: Path, number: int = 1) -> dict[str, Any]:
    return json.loads((run / f"evaluations/evaluation-{number:03d}.json").read_text())


def answers(run: Path, number: int = 1) -> dict[str, list[int]]:
    """Labels, and answers by "CHECKPOINT/NETWORK", image by image."""
    file = run / f"evaluations/evaluation-{number:03d}-predictions.safetensors"
    return {name: each.tolist() for name, each in load_file(file).items()}


def errors(run: Path, number: int = 1) -> dict[str, float]:
    """Top-1 errors by "CHECKPOINT/NETWORK"."""
    return {f"{r['checkpoint']}/{r['network']}": r["top1_error"] for r in evaluation(run, number)["results"]}


def shown(answer: Answer) -> dict[str, float]:
    """Top-1 errors in % on the screen by "CHECKPOINT/NETWORK"."""
    titles = {"last epoch": "last", "best by validation": "best", "best on test": "best-on-test"}
    found, checkpoint = {}, ""
    for line in answer.out.splitlines():
        if line.endswith(":") and line.rstrip(":").partition(":")[0] in titles:
            checkpoint = titles[line.rstrip(":").partition(":")[0]]
        elif line.startswith(("  peer", "  ensemble")) and "±" in line:
            name, _, figure = line.partition(" ± ")[0].strip().rpartition(" ")
            found[f"{checkpoint}/{name.replace('(deployed)', '').strip()}"] = float(figure)
    return found


def test_images(run: Path, pictures: Path) -> ImageStore:
    options = ImageOptions(image_size=Run.open(run).data("train")["image_size"][0])
    return open_labelled(str(pictures), None, options).load("test", options)


test_images.__test__ = False  # type: ignore[attr-defined]


def deployed_answers(run: Path, pictures: Path) -> list[int]:
    """What model.safetensors by itself says of the test images."""
    network, card = load_deployed(Run.open(run))
    images = torch.stack(list(test_images(run, pictures).images))
    with torch.inference_mode():
        logits = network(normalise(images, torch.tensor(card["mean"]), torch.tensor(card["std"])))
    return logits.argmax(-1).tolist()


def weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "checkpoints").glob("*.safetensors")}


# What a run leaves and shows.


def test_what_a_run_leaves(classified: Path) -> None:
    assert {path.split("-0000")[0] for path in tree(classified)} == {
        "checkpoints", "checkpoints/best", "checkpoints/best.json", "checkpoints/last", "checkpoints/last.json",
        "checkpoints/best.previous.json", "checkpoints/last.previous.json", "command.txt", "run.lock", "config.toml", "data.json",
        "environment.json", "metrics.csv", "model.json", "model.safetensors", "evaluations", "evaluations/lock",
        "evaluations/evaluation-001.json", "evaluations/evaluation-001-confusion.csv",
        "evaluations/evaluation-001-predictions.safetensors",
    }  # fmt: skip
    assert 'task = "classify"' in (classified / "config.toml").read_text()
    assert (classified / "command.txt").read_text().startswith("fewshot-mcl classify --data ")
    data = Run.open(classified).data("train")
    assert (data["classes"], data["images"]) == (list(COUNTS), TRAINED + len(COUNTS))
    rows = (classified / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,lr,ce,kl,contrast,total,peer0,peer1,val peer 0,val peer 0 ci95,")
    assert [row.split(",")[0] for row in rows[1:]] == [str(step) for step in range(1, STEPS + 1)]
    card = json.loads((classified / "model.json").read_text())
    assert (card["task"], card["num_classes"], card["classes"]) == ("classify", 6, list(COUNTS))
    assert (card["checkpoint"], card["step"], card["image_size"]) == ("last", STEPS, 16)
    assert set(load_file(classified / "model.safetensors")) >= {"classifier.weight", "classifier.bias"}


def test_the_rate_is_set_once_an_epoch_and_validation_comes_at_its_end(classified: Path) -> None:
    with (classified / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.02] * 3 + [0.01] * 3)
    assert [row["step"] for row in rows if row["val ensemble"]] == ["3", "6"]


def test_the_kept_evaluation_agrees_with_itself(classified: Path) -> None:
    content, said = evaluation(classified), answers(classified)
    labels = said.pop("labels")
    assert set(said) == {f"{c}/{n}" for c in ("last", "best") for n in ("peer 0", "peer 1", "ensemble")}
    assert [labels.count(i) for i in range(6)] == [4, 3, 2, 2, 2, 2]
    assert errors(classified) == pytest.approx(
        {name: sum(a != b for a, b in zip(each, labels)) / TESTED for name, each in said.items()}
    )
    confusion = np.loadtxt(classified / "evaluations/evaluation-001-confusion.csv", delimiter=",", dtype=int)
    counted = np.zeros((6, 6), int)
    for label, answer in zip(labels, said["last/peer 1"]):
        counted[label, answer] += 1
    assert np.array_equal(confusion, counted)
    assert confusion.sum() == content["images"] == TESTED
    right = {name: confusion[i, i] / confusion[i].sum() for i, name in enumerate(COUNTS)}
    assert content["class_accuracy"] == pytest.approx(right)
    assert (content["headline"], content["deployed"], content["split"]) == ("last", "peer 1", "test")
    for result in content["results"]:
        p = result["top1_error"]
        assert result["top1_ci95"] == pytest.approx(1.96 * (p * (1 - p) / (TESTED - 1)) ** 0.5)
        assert 0 <= result["top5_error"] <= p


def test_top_5_is_counted_from_the_logits(classify, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    good(classify("--lr", 1e-4, "--out", out))  # it has learned next to nothing: labels are of every rank
    network, card = load_deployed(Run.open(out))
    store = test_images(out, pictures)
    with torch.inference_mode():
        logits = network(normalise(store.images, torch.tensor(card["mean"]), torch.tensor(card["std"])))
    above = [sum(value > row[label] for value in row) for row, label in zip(logits.tolist(), store.labels.tolist())]
    assert {4, 5} <= set(above)
    [entry] = [r for r in evaluation(out)["results"] if (r["checkpoint"], r["network"]) == ("last", "peer 1")]
    assert entry["top1_error"] == pytest.approx(sum(rank > 0 for rank in above) / TESTED)
    assert entry["top5_error"] == pytest.approx(sum(rank > 4 for rank in above) / TESTED)


def test_the_screen_shows_every_network_of_the_last_epoch_and_of_the_best(classify, tmp_path: Path) -> None:
    answer = classify("--out", tmp_path / "run")
    good(answer, "6 classes, 39 training images, 6 for validation", "2 epochs of 3 batches of 16")
    good(answer, "test split: 6 classes, 15 images, 16 pixels", "peer 1 (deployed)", "a quarter of each class")
    figures = errors(tmp_path / "run")
    assert shown(answer) == {name: pytest.approx(100 * value, abs=0.006) for name, value in figures.items()}
    assert len(figures) == 6
    headline = f"Deployed network, last epoch: top-1 error {100 * figures['last/peer 1']:.2f} ± "
    assert headline in answer.out
    assert answer.out.index("last epoch:") < answer.out.index("best by validation:")


def test_the_deployed_network_is_the_last_peer_of_the_last_epoch(classified: Path, pictures: Path) -> None:
    assert deployed_answers(classified, pictures) == answers(classified)["last/peer 1"]


def test_evaluate_repeats_the_figures(cli, run: Path) -> None:
    first = cli("evaluate", run)
    good(first, "Deployed network, last epoch", "evaluation-002.json")
    assert shown(first) == {name: pytest.approx(100 * value, abs=0.006) for name, value in errors(run).items()}
    again = cli("evaluate", run, "--json")
    assert (again.code, again.err) == (0, "")
    printed = json.loads(again.out)
    assert printed["results"] == evaluation(run)["results"]
    contents = [evaluation(run, number) for number in (1, 2, 3)]
    for content in contents:  # the directory was copied since the first
        content.pop("run")
        content.pop("check")  # so it differs, too
    assert contents[0] == contents[1] == contents[2]
    assert answers(run, 1) == answers(run, 2) == answers(run, 3)


@pytest.mark.parametrize("option", ["--split val", "--protocol baseline-repo"])
def test_a_classifier_is_tested_on_its_test_images_alone(option: str, cli, run: Path) -> None:
    bad(cli("evaluate", run, *option.split()), f"{option.split()[0]} means nothing")


@pytest.mark.parametrize("option", ["--way", "--shot", "--query", "--episodes", "--seed"])
def test_episodes_mean_nothing_to_a_classifier(option: str, cli, run: Path) -> None:
    before = tree(run)
    bad(cli("evaluate", run, option, 5), "learned to classify", f"{option} means nothing", "leave it out")
    assert tree(run) == before


def test_other_data_must_have_the_same_classes(cli, run: Path, tmp_path: Path) -> None:
    same = class_folders(tmp_path / "same", **dict.fromkeys(COUNTS, 4))
    good(cli("evaluate", run, "--data", same), "same, test split: 6 classes, 6 images, 16 pixels")
    before = tree(run)
    bad(cli("evaluate", run, "--data", class_folders(tmp_path / "other", ant=4, bee=4)), "other classes")
    assert tree(run) == before


def test_a_saved_configuration_repeats_the_run(cli, classified: Path, tmp_path: Path) -> None:
    good(cli("classify", "--config", classified / "config.toml", "--out", tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(classified)
    for name in ("metrics.csv", "model.safetensors", "config.toml"):
        assert (tmp_path / "again" / name).read_bytes() == (classified / name).read_bytes()


def test_each_command_names_the_other(cli, classified: Path, trained: Path, data: Path, tmp_path: Path) -> None:
    before = tree(classified)
    bad(
        cli("train", "--config", classified / "config.toml"), "configuration for 'fewshot-mcl classify'", "that command"
    )
    bad(cli("train", "--out", classified, "--resume"), "a run of 'fewshot-mcl classify'", "that command")
    assert tree(classified) == before
    bad(cli("classify", "--config", trained / "config.toml"), "configuration for 'fewshot-mcl train'")
    bad(cli("classify", "--out", trained, "--resume"), "a run of 'fewshot-mcl train'")
    bad(cli("classify", "--config", "paper"), "paper is a configuration for 'fewshot-mcl train'", "another --config")
    bad(cli("train", "--config", "paper-code"), "paper-code is a configuration for 'fewshot-mcl classify'")
    bad(cli("classify", "--data", data, "--out", tmp_path / "new"), "not in both", "new classes: fewshot-mcl train")


def test_the_default_run_directory(classify) -> None:
    good(classify("--method", "baseline", "--peers", 1), "run runs/pictures-baseline-conv4-seed0\n")


# How well: what the headline is of.


def test_without_validation(classify, tmp_path: Path) -> None:
    answer = classify("--set", "val_share=0", "--out", tmp_path / "run")
    good(answer, "45 training images, none for validation", "last epoch:")
    assert "validation:" not in answer.out
    assert set(errors(tmp_path / "run")) == {"last/peer 0", "last/peer 1", "last/ensemble"}
    assert not (tmp_path / "run/checkpoints/best.json").exists()
    assert "validation" not in json.loads((tmp_path / "run/model.json").read_text())
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        assert {row["val peer 1"] for row in csv.DictReader(file)} == {""}
    good(classify("--out", tmp_path / "run", "--resume", "--set", "val_share=0"), "all 6 steps are done already")


def test_the_headline_may_be_of_the_best_by_validation(
    classify, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate, calls = SupervisedTask.validate, []

    def peaks_early(self: SupervisedTask) -> dict[str, Result]:
        calls.append(1)
        good_or_bad = torch.ones(4) if len(calls) == 1 else torch.zeros(4)
        return dict.fromkeys(validate(self), Result(good_or_bad.double()))

    monkeypatch.setattr(SupervisedTask, "validate", peaks_early)
    out = tmp_path / "run"
    answer = classify("--set", "report=validation", "--lr", 0.002, "--out", out)
    good(answer, f"Deployed network, best by validation: top-1 error {100 * errors(out)['best/peer 1']:.2f} ± ")
    assert answer.out.index("best by validation:\n") < answer.out.index("last epoch:\n")
    steps = {(r["checkpoint"], r["step"]) for r in evaluation(out)["results"]}
    assert steps == {("best", 3), ("last", 6)}
    card = json.loads((out / "model.json").read_text())
    assert (card["checkpoint"], card["step"], evaluation(out)["headline"]) == ("best", 3, "best")
    assert deployed_answers(out, pictures) == answers(out)["best/peer 1"] != answers(out)["last/peer 1"]
    confusion = np.loadtxt(out / "evaluations/evaluation-001-confusion.csv", delimiter=",", dtype=int)
    assert 1 - np.trace(confusion) / TESTED == pytest.approx(errors(out)["best/peer 1"])


def test_the_best_on_test_has_its_own_name_and_every_epoch_to_show_for_it(classify, cli, tmp_path: Path) -> None:
    three = ("--epochs", 3, "--lr", 0.05)
    good(classify(*three, "--out", tmp_path / "last"))
    out = tmp_path / "run"
    answer = classify(*three, "--set", "report=best-on-test", "--out", out)
    good(answer, "best on test: chosen by these very images: top-1 error ")
    assert {p.stem for p in (out / "checkpoints").glob("after-*.json")} == {"after-3", "after-6", "after-9"}
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "last/model.safetensors").read_bytes()
    assert json.loads((out / "model.json").read_text())["checkpoint"] == "last"
    figures, plain = errors(out), errors(tmp_path / "last")
    assert {name: figures[name] for name in plain} == plain
    by_epoch = []
    for number in (3, 6, 9):  # each epoch's network in the place of the last one's
        copy = Path(shutil.copytree(out, tmp_path / f"after {number}"))
        state = read_json(copy / "checkpoints/last.json") | read_json(copy / f"checkpoints/after-{number}.json")
        write_json(copy / "checkpoints/last.json", state | {"checkpoint": "last"})
        (copy / "checkpoints/last.previous.json").unlink()
        good(cli("evaluate", copy))
        by_epoch.append(errors(copy, 2))
    for network in ("peer 0", "peer 1", "ensemble"):
        assert figures[f"best-on-test/{network}"] == min(each[f"last/{network}"] for each in by_epoch)
    assert shown(answer) == {name: pytest.approx(100 * value, abs=0.006) for name, value in figures.items()}
    assert evaluation(out)["headline"] == "best-on-test"
    assert len({tuple(each.values()) for each in by_epoch}) > 1


# Resuming.


def test_a_resumed_run_equals_one_that_never_stopped(classify, cli, tmp_path: Path, stop) -> None:
    """As its user sees it; `test_resume` compares every method by every way to stop."""
    arguments = ["--set", "save_every=2"]
    whole = tmp_path / "whole"
    good(classify(*arguments, "--out", whole))
    for at, saved in ((4, 3), (6, 4)):  # at the end of an epoch; in mid-epoch, with a step behind the checkpoint
        parts = tmp_path / f"stopped at {at}"
        stop(at)
        answer = classify(*arguments, "--out", parts)
        assert answer.code == 130
        assert answer.err.splitlines() == [
            f"stopped after step {at - 1}; the checkpoint of step {saved} is safe. Continue with: {program()} classify "
            f"--out '{parts}' --resume"
        ]
        assert (parts / "metrics.csv").read_text().splitlines()[-1].startswith(f"{at - 1},")
        assert not (parts / "evaluations").exists()
        stop(0)
        good(cli("classify", "--out", parts, "--resume"), f"steps {saved + 1} to 6", "last epoch:")
        assert weights(parts) == weights(whole)
        for name in (
            "metrics.csv",
            "model.safetensors",
            "config.toml",
            "evaluations/evaluation-001-predictions.safetensors",
        ):
            assert (parts / name).read_bytes() == (whole / name).read_bytes()
        assert len((parts / "command.txt").read_text().splitlines()) == 2


def test_resuming_a_finished_run_only_tests_it_again(cli, run: Path) -> None:
    before = tree(run)
    good(cli("classify", "--out", run, "--resume"), "all 6 steps are done already", "evaluation-002.json")
    after = tree(run)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {name for name in after if "evaluation-002" in name}


def test_a_resumed_run_keeps_its_settings(cli, run: Path) -> None:
    before = tree(run)
    bad(cli("classify", "--out", run, "--resume", "--epochs", 3), "epochs = 3", "has epochs = 2", "another --out")
    bad(cli("classify", "--out", run), "exists", "--resume")
    assert tree(run) == before


def test_stopped_before_the_first_checkpoint(classify, cli, tmp_path: Path, stop) -> None:
    stop(2)
    answer = classify("--out", tmp_path / "run")
    assert answer.code == 130
    assert "stopped after step 1, before the first checkpoint (save_every)" in answer.err
    bad(cli("evaluate", tmp_path / "run"), "no checkpoint 'last'", "classify --out", "--resume")


# The test split.


def test_the_test_split_is_opened_only_after_training(
    classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, step, events = Source.load, SupervisedTask.step, []

    def recording_load(self: Source, split: str, options: ImageOptions) -> ImageStore:
        events.append((split, (tmp_path / "run/model.safetensors").exists()))
        return load(self, split, options)

    def recording_step(self: SupervisedTask, number: int):
        events.append(("step", False))
        return step(self, number)

    monkeypatch.setattr(Source, "load", recording_load)
    monkeypatch.setattr(SupervisedTask, "step", recording_step)
    good(classify("--set", "report=best-on-test", "--out", tmp_path / "run"))
    assert events == [("train", False), *[("step", False)] * STEPS, ("test", True)]


def labelled_splits(root: Path, count: int = 6, **splits: str) -> Path:
    """root/SPLIT/CLASS/K.png."""
    return split_folders(root, count, **({"train": "ant bee cat", "val": "", "test": "ant bee cat"} | splits))


def test_a_test_image_that_cannot_be_read_costs_no_training(cli, tmp_path: Path) -> None:
    root, out = labelled_splits(tmp_path / "pictures"), tmp_path / "run"
    whole = (root / "test/bee/1.png").read_bytes()
    (root / "test/bee/1.png").write_bytes(b"hello")
    bad(cli("classify", "--data", root, *TINY_CLASSIFY, "--out", out), "bee/1.png", "not an image", "1 of 18")
    assert (out / "model.safetensors").exists()
    assert not (out / "evaluations").exists()
    (root / "test/bee/1.png").write_bytes(whole)
    good(cli("evaluate", out), "pictures, test split: 3 classes, 18 images")


def test_a_validation_split_of_its_own_leaves_all_training_images_to_training(cli, tmp_path: Path) -> None:
    root = labelled_splits(tmp_path / "pictures", val="ant bee cat")
    answer = cli("classify", "--data", root, *TINY_CLASSIFY, "--out", tmp_path / "run")
    good(answer, "3 classes, 18 training images, 18 for validation", "best by validation:")
    assert set(json.loads((tmp_path / "run/data.json").read_text())) == {
        "schema",
        "check",
        "config sha256",
        "train",
        "val",
    }


@pytest.mark.parametrize("method", METHODS)
def test_validation_and_test_agree_on_the_same_images(method: str, cli, teacher: Path, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for split, count in (("train", 12), ("val", 7), ("test", 7)):
        class_folders(root / split, **dict.fromkeys(COUNTS, count))
    arguments = [
        "--method",
        method,
        *METHODS[method],
        "--epochs",
        "1",
        *(["--teacher", str(teacher)] * ("rkd" in method)),
    ]
    good(cli("classify", "--data", root, *TINY_CLASSIFY, *arguments, "--out", tmp_path / "run"))
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        *_, row = csv.DictReader(file)
    found = errors(tmp_path / "run")
    networks = [name.removeprefix("val ") for name in row if name.startswith("val ") and not name.endswith(" ci95")]
    assert len(networks) == len([name for name in found if name.startswith("last/") and "published" not in name])
    for name in networks:
        assert float(row[f"val {name}"]) == pytest.approx(1 - found[f"last/{name}"])


def test_the_ensemble_of_one_weighs_as_its_gate_has_learned(classify, cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    good(classify("--method", "one", "--peers", 2, "--lr", 1e-4, "--out", out))
    said = answers(out)
    assert said["last/peer 0"] != said["last/peer 1"]
    run = Run.open(out)
    for m in (0, 1):  # a gate that lets peer m through alone
        tensors, state = run.load_checkpoint("last")
        tensors["objective.gate.1.weight"] = torch.zeros(2)
        tensors["objective.gate.1.bias"] = torch.tensor([100.0 * (m == 0), 100.0 * (m == 1)])
        run.save_checkpoint("last", tensors, {name: state[name] for name in ("step", "best", "seconds")})
        good(cli("evaluate", out))
        assert answers(out, 2 + m)["last/ensemble"] == said[f"last/peer {m}"]


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], ["epochs = 0", "greater than or equal to 1"]),
        (["--batch", "0"], ["batch = 0"]),
        (["--batch", "1"], ["batch would hold one of the 39", "batch norm", "--batch 3"]),
        (["--batch", "19"], ["the last batch of an epoch", "39 training images", "--batch 20"]),
        (["--set", "images_per_class=3", "--batch", "11"], ["the last batch of an epoch", "12 training images"]),
        (["--peers", "1"], ["at least 2 peers", "--peers 2", "--method baseline"]),
        (["--peers", "1", "--method", "one"], ["at least 2 peers", "--method baseline"]),
        (["--peers", "1", "--method", "dml"], ["at least 2 peers", "--method baseline"]),
        (["--peers", "1", "--method", "okddip"], ["at least 3 peers", "--peers 3"]),
        (["--peers", "2", "--method", "cl-ilr"], ["at least 3 peers", "--peers 3"]),
        (["--set", "objective.replacement=no"], ["num_negatives = 256", "only 28 negatives", "num_negatives=28"]),
        (["--set", "periods=[0]"], ["periods", "= 0", "greater than or equal to 1"]),
        (["--set", "periods=2"], ["periods = 2", "valid list"]),
        (["--set", "val_share=1"], ["val_share = 1", "less than 1"]),
        (["--set", "val_share=0", "--set", "report=validation"], ["there are none", "--set val_share=0.1"]),
        (["--set", "report=test"], ["report = test", "'best-on-test'"]),
        (["--set", "augment=mirror"], ["augment = mirror", "'crop-flip'"]),
        (["--set", "precision=half"], ["precision = half", "'bfloat16'"]),
        (["--set", "momentum=1"], ["momentum = 1", "less than 1"]),
        (["--set", "images_per_class=0"], ["images_per_class = 0"]),
        (
            ["--set", "images_per_class=1"],
            ["class 'ant' has one training image", "--set images_per_class=2", "val_share=0"],
        ),
        (["--set", "way=5"], ["unknown config key 'way'", "did you mean"]),
        (["--way", "5"], ["no such option", "--way", "classify --help"]),
        (["--image-size", "8"], ["conv4", "at least 16"]),
        (["--method", "rkd-d", "--peers", "1"], ["--teacher RUN"]),
        (["--method", "mcl-kod"], ["unknown method 'mcl-kod'", "did you mean 'mcl-okd'"]),
        (["--backbone", "resnet33"], ["unknown backbone 'resnet33'", "did you mean 'resnet3"]),
        (["--data", "cifar10"], ["unknown data source or folder 'cifar10'", "did you mean 'cifar100'"]),
        (["--data", "cifar100"], ["cifar100 needs the folder", "--root DIR"]),
        (["--data", "imagenet"], ["imagenet needs the folder", "--root DIR"]),
        (["--data", "nowhere/at/all"], ["does not exist", "give the path of a folder"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_options(arguments: list[str], words: list[str], classify, tmp_path: Path) -> None:
    bad(classify("--out", tmp_path / "run", *arguments), *words)
    assert not (tmp_path / "run").exists()


def other_classes(root: Path) -> None:
    labelled_splits(root, 2, test="ant bee cow")


def one_class(root: Path) -> None:
    class_folders(root, ant=4)


def one_class_in_splits(root: Path) -> None:
    labelled_splits(root, 4, train="ant", test="ant")


def no_test(root: Path) -> None:
    labelled_splits(root, 2, test="")


def one_image(root: Path) -> None:
    class_folders(root, ant=4, bee=1)


def corrupt(root: Path) -> None:
    class_folders(root, ant=4, bee=4)
    for path in (root / "bee").iterdir():
        path.write_bytes(b"hello")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_classes, ["2 classes are not in both train and test", "cat, cow", "fewshot-mcl train"]),
        (one_class, ["holds 1 class folders", "two classes or more"]),
        (one_class_in_splits, ["the contrast needs negatives", "at least two classes"]),
        (no_test, ["no test split", "found: train"]),
        (one_image, ["class 'bee' has one image", "training and test take one each", "add images"]),
        (corrupt, ["bee/", "not an image", "--on-bad-image skip"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_folders(make: Callable[[Path], None], words: list[str], cli, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    make(root)
    before = tree(tmp_path)
    bad(cli("classify", "--data", root, *TINY_CLASSIFY, "--out", tmp_path / "run"), *words)
    assert tree(tmp_path) == before


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def incomplete_cifar(root: Path) -> None:
    put(root, "cifar-100-python/train", "cifar-100-python/test")


def cifar_10(root: Path) -> None:
    put(root, "cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta")


def no_cifar(root: Path) -> None:
    root.mkdir()


def imagenet(root: Path, train: str = "n1 n2 n3", val: str = "n1 n2 n3") -> None:
    for i, (folder, names) in enumerate((("train", train), ("val", val))):
        for j, name in enumerate(names.split()):
            for k in range(4):
                picture(root / folder / name / f"{k}.png", 100 * i + 10 * j + k)


def imagenet_lacking_a_class(root: Path) -> None:
    imagenet(root, val="n1 n3")


def imagenet_with_an_empty_class(root: Path) -> None:
    imagenet(root)
    for path in (root / "val/n2").iterdir():
        path.unlink()


def imagenet_with_a_bad_file(root: Path) -> None:
    imagenet(root)
    (root / "train/n2/1.png").write_bytes(b"hello")


def imagenet_in_one_part(root: Path) -> None:
    imagenet(root, val="")


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("cifar100", incomplete_cifar, ["cifar-100-python lacks meta", "fetch it again"]),
        ("cifar100", cifar_10, ["this is CIFAR-10", "cifar100 needs the CIFAR-100 files"]),
        ("cifar100", no_cifar, ["no CIFAR-100 files at", "--set download=true"]),
        ("imagenet", imagenet_lacking_a_class, ["1 class(es) of train/ are not in val/: n2", "data check"]),
        ("imagenet", imagenet_with_an_empty_class, ["class folders without images: val/n2", "data check"]),
        ("imagenet", imagenet_with_a_bad_file, ["train/n2/1.png", "not an image", "1 of 12"]),
        ("imagenet", imagenet_in_one_part, ["has no val/", "train/CLASS/"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_files_of_named_data(
    name: str, make: Callable[[Path], None], words: list[str], cli, tmp_path: Path
) -> None:
    root = tmp_path / "files"
    make(root)
    before = tree(tmp_path)
    tiny = (*TINY_CLASSIFY, "--backbone", "conv4", "--image-size", "20", "--out", tmp_path / "run")
    bad(cli("classify", "--data", name, "--root", root, *tiny), *words)
    assert tree(tmp_path) == before


def test_an_imagenet_read_file_by_file_stops_at_the_bad_one(cli, tmp_path: Path) -> None:
    imagenet_with_a_bad_file(tmp_path / "files")
    answer = cli(
        "classify", "--data", "imagenet", "--root", tmp_path / "files", *TINY_CLASSIFY, "--backbone", "conv4", "--image-size",
        "20", "--set", "decode=always", "--batch", "3", "--out", tmp_path / "run",
    )  # fmt: skip
    bad(answer, "train/n2/1.png", "not an image")


def test_teachers_that_do_not_fit(classify, cli, teacher: Path, tmp_path: Path) -> None:
    rkd = ("--method", "rkd-d", "--peers", 1, "--teacher", teacher, "--out", tmp_path / "new")
    bad(classify(*rkd, "--image-size", 20), "images of 16x16x3, not 20x20x3", "--image-size 16")
    bad(classify(*rkd, "--color", "grey"), "images of 16x16x3, not 16x16x1", "--color rgb")
    bad(classify(*rkd[:4], "--teacher", tmp_path / "nowhere", "--out", tmp_path / "new"), "nowhere does not exist")
    fewer = class_folders(tmp_path / "fewer", ant=8, bee=8)
    bad(cli("classify", "--data", fewer, *TINY_CLASSIFY, *rkd), "would leak", "same data")
    assert not (tmp_path / "new").exists()


def test_a_learning_rate_that_overflows(classify, tmp_path: Path) -> None:
    out = tmp_path / "run"
    bad(
        classify("--out", out, "--lr", "1e20", "--epochs", 9, "--set", "save_every=1"),
        "the loss of step", "is not a number", "term ce", "last good checkpoint is kept", "--lr",
    )  # fmt: skip
    state = json.loads((out / "checkpoints/last.json").read_text())
    tensors = load_file(out / "checkpoints" / state["file"])
    assert all(bool(each.isfinite().all()) for name, each in tensors.items() if name.startswith("peers."))
    assert not (out / "model.json").exists()


def test_images_of_other_sizes_and_colours_are_tested_as_they_were_trained_on(cli, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", side=24, ant=8, bee=8)
    with Image.open(root / "ant/0.png") as image:
        image.convert("L").resize((40, 30)).save(root / "ant/0.png")
    answer = cli(
        "classify", "--data", root, *TINY_CLASSIFY, "--image-size", 20, "--set", "augment=resized-crop", "--color", "grey",
        "--out", tmp_path / "run",
    )  # fmt: skip
    good(answer, "20x20x1", "augmentation resized-crop", "4 images, 17 pixels")
    good(cli("evaluate", tmp_path / "run"), "4 images, 17 pixels")
    assert errors(tmp_path / "run", 1) == errors(tmp_path / "run", 2)


def test_the_commands_do_not_mix_their_options(cli, data: Path, tmp_path: Path) -> None:
    bad(cli("train", "--data", data, *TINY, "--epochs", 2), "no such option", "--epochs")
    bad(cli("train", "--data", data, *TINY, "--set", "epochs=2"), "unknown config key 'epochs'")
    bad(cli("classify", "--episodes", 2), "no such option", "--episodes")
