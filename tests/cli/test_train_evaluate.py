"""Training, resuming and evaluating, as a user does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from command_line import CLASSES, PROTOCOL, TINY, bad, good, split_folders, tree
from safetensors.torch import load_file

from fewshot_mcl.config import resolve
from fewshot_mcl.training.episodic import EpisodicTask


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch):
    """`stop(k)`: Ctrl-C in episode k (from 1); `stop(0)`: no more."""
    step, at = EpisodicTask.step, [0]

    def interrupted(self: EpisodicTask, number: int):
        if number + 1 == at[0]:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(EpisodicTask, "step", interrupted)
    return lambda episode: at.__setitem__(0, episode)


def weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "checkpoints").glob("*.safetensors")}


# The shell's view: real processes.


def test_train_evaluate_resume_as_processes(data: Path, tmp_path: Path) -> None:
    def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fewshot_mcl", *map(str, arguments)]
        plain = {**os.environ, "PYTHONIOENCODING": "ascii"}  # the poorest terminal there is
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False, env=plain
        )

    trained = shell("train", "--data", data, *TINY)
    assert trained.returncode == 0, trained.stderr
    [run] = (tmp_path / "runs").iterdir()
    assert run.name == "pictures-mcl-okd-3way-1shot-seed0"
    assert f"fewshot-mcl evaluate runs/{run.name} --query 2\n" in trained.stdout  # as validation had: classes are small
    evaluated = shell("evaluate", f"runs/{run.name}", *PROTOCOL)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert "3-way, 2 queries a class, 5 episodes, seed 0" in evaluated.stdout
    resumed = shell("train", "--out", f"runs/{run.name}", "--resume")
    assert resumed.returncode == 0
    assert "all 3 episodes are done already" in resumed.stdout
    refused = shell("evaluate", f"runs/{run.name}", "--split", "tset")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: unknown split 'tset'. Did you mean 'test'? Valid: test, val.\n"


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_step_saved(
    asked: signal.Signals, code: int, data: Path, tmp_path: Path, cli
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fewshot_mcl", "train", "--data", str(data), *TINY, "--out", str(out)]
    command += [
        "--episodes",
        "1000000",
        "--set",
        "schedule=constant",
        "--set",
        "val_every=1000",
        "--set",
        "log_every=1000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not list(out.glob("config.toml")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        heading = [process.stdout.readline() for _ in range(3)]
        assert "episodes 1 to" in heading[-1]
        time.sleep(1)
        process.send_signal(asked)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    first, last = err.splitlines()
    assert first == "stopping: this step is finished and saved first; again to stop at once"
    [done, saved] = re.findall(r"episode (\d+)", last)
    assert done == saved
    assert last.endswith(f"fewshot-mcl train --out {out} --resume")
    good(cli("evaluate", out, *PROTOCOL, "--checkpoint", "last"), "3-way")


# The run directory.


def test_what_a_run_leaves(trained: Path) -> None:
    kept = {path.split("-0000")[0] for path in tree(trained)}
    assert kept == {
        "checkpoints", "checkpoints/best", "checkpoints/best.json", "checkpoints/last", "checkpoints/last.json",
        "checkpoints/last.previous.json", "command.txt", "config.toml", "data.json", "environment.json", "metrics.csv",
        "model.json", "model.safetensors", "run.lock",
    }  # fmt: skip
    assert (trained / "command.txt").read_text().startswith("fewshot-mcl train --data ")
    data = json.loads((trained / "data.json").read_text())
    assert {split: data[split]["classes"] for split in ("train", "val")} == {
        split: CLASSES[split].split() for split in ("train", "val")
    }
    assert len(data["train"]["fingerprint"]) == 64
    assert "test" not in data
    assert json.loads((trained / "environment.json").read_text())["packages"]["torch"]
    rows = (trained / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("episode,lr,ce,kl,contrast,total,peer0,peer1,val peer 0,val peer 0 ci95,")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3"]
    state = json.loads((trained / "checkpoints/last.json").read_text())
    assert state["episode"] == 3
    names = set(load_file(trained / "checkpoints" / state["file"]))
    for part in (
        "peers.stages.",
        "objective.contrast.heads.",
        "objective.contrast.banks",
        "objective.contrast.step",
        "optimizer.",
    ):
        assert any(name.startswith(part) for name in names), part
    deployed = load_file(trained / "model.safetensors")
    assert {name.split(".")[0] for name in deployed} == {"stages"}
    assert json.loads((trained / "model.json").read_text())["feature_dim"] == 64


def test_the_best_by_validation_is_kept_beside_the_last(trained: Path) -> None:
    import csv

    with (trained / "metrics.csv").open(newline="") as file:
        means = [float(row["val peer 1"]) for row in csv.DictReader(file)]
    best = json.loads((trained / "checkpoints/best.json").read_text())
    assert best["val"] == max(means)
    assert best["episode"] == 1 + means.index(max(means))


def test_a_saved_configuration_repeats_the_run(train, cli, tmp_path: Path) -> None:
    good(train("--out", tmp_path / "one", "--seed", 3))
    saved = tmp_path / "one" / "config.toml"
    good(cli("train", "--config", saved, "--out", tmp_path / "two"))
    assert saved.read_bytes() == (tmp_path / "two/config.toml").read_bytes()
    assert (tmp_path / "one/metrics.csv").read_bytes() == (tmp_path / "two/metrics.csv").read_bytes()
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_all_that_an_option_sets_can_stand_in_a_file(cli, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f"""
        data = {str(data)!r}
        image_size = 16
        method = "mcl"
        backbone = "conv4"
        peers = 2
        episodes = 2
        way = 3
        shot = 2
        query = 1
        lr = 0.01
        seed = 5
        val_way = 2
        val_query = 1
        val_episodes = 2
        out = {str(tmp_path / "run")!r}
        [objective]
        beta = 0.5
        """
    )
    good(cli("train", "--config", file, "--set", "objective.temperature=0.2"))
    saved = tomllib.loads((tmp_path / "run/config.toml").read_text())
    asked = tomllib.loads(file.read_text())
    assert asked.pop("out") == str(tmp_path / "run")
    assert asked.pop("objective") == {"beta": 0.5}
    assert {name: saved[name] for name in asked} == asked
    assert (saved["objective"]["beta"], saved["objective"]["temperature"]) == (0.5, 0.2)
    good(cli("train", "--config", file, "--set", "objective.temperature=0.2", "--resume"), "done already")


def test_options_win_over_the_file_and_set_wins_over_options(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('way = 3\nshot = 2\nquery = 4\nmethod = "mcl-okd"\n[objective]\nT = 2\nbeta = 0.5\n')
    config = resolve(str(file), {"way": 4, "shot": 3}, ["way=5"])
    assert (config.way, config.shot, config.query, config.objective["T"]) == (5, 3, 4, 2.0)
    other = resolve(str(file), {"method": "mcl"})  # T is an option of the method that was replaced, beta of both
    assert ("T" in other.objective, other.objective["beta"]) == (False, 0.5)
    assert resolve(str(file), {"method": "baseline"}).objective == {}


def test_the_default_run_directory_never_collides(train) -> None:
    for number in ("", "-2"):
        good(train("--method", "baseline"), f"run runs/pictures-baseline-3way-1shot-seed0{number}\n")


# Resuming.


def test_a_resumed_run_equals_one_that_never_stopped(cli, data: Path, tmp_path: Path, stop) -> None:
    """As its user sees it; `test_resume` compares every method by every way to stop."""
    arguments = ["train", "--data", data, *TINY, "--episodes", 5, "--set", "val_every=2"]
    good(cli(*arguments, "--out", tmp_path / "whole"))
    stop(4)
    answer = cli(*arguments, "--out", tmp_path / "parts")
    assert answer.code == 130
    assert answer.err.startswith("stopped after episode 3; the checkpoint of episode 2 is safe. Continue with: ")
    assert (tmp_path / "parts/metrics.csv").read_text().splitlines()[-1].startswith("3,")
    stop(0)
    good(cli("train", "--out", tmp_path / "parts", "--resume"), "episodes 3 to 5")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    for name in ("metrics.csv", "model.safetensors", "config.toml"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len((tmp_path / "parts/command.txt").read_text().splitlines()) == 2


def test_resuming_a_finished_run_says_so_and_writes_nothing(cli, run: Path) -> None:
    before = tree(run)
    answer = cli("train", "--out", run, "--resume")
    good(answer, "all 3 episodes are done already", "Best checkpoint by validation", f"fewshot-mcl evaluate {run}")
    assert tree(run) == before


def test_a_resumed_run_takes_options_that_agree(cli, run: Path, data: Path) -> None:
    good(
        cli(
            "train",
            "--out",
            run,
            "--resume",
            "--data",
            data,
            "--peers",
            2,
            "--set",
            "objective.T=3",
            "--config",
            run / "config.toml",
        )
    )


def test_stopped_before_the_first_checkpoint(train, cli, tmp_path: Path, stop) -> None:
    stop(1)
    answer = train("--out", tmp_path / "run")
    assert answer.code == 130
    assert "before the first checkpoint" in answer.err
    bad(cli("evaluate", tmp_path / "run", *PROTOCOL), "no checkpoint 'best'", "train --out", "--resume")


# The test split.


@pytest.fixture
def corrupt_test(tmp_path: Path) -> Path:
    """Data whose test images are all corrupt."""
    root = split_folders(tmp_path / "corrupt", count=3)
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    return root


def test_training_never_opens_the_test_split(cli, corrupt_test: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    good(cli("train", "--data", corrupt_test, *TINY, "--out", out))
    before = tree(out)
    bad(cli("evaluate", out, *PROTOCOL), "test", "hen", "0.png", "not an image", "9 of 9")
    assert tree(out) == before
    good(cli("evaluate", out, *PROTOCOL, "--split", "val"), "val split")


# Evaluating.


def test_json_is_one_object_and_the_run_keeps_it_with_every_episode(cli, run: Path) -> None:
    answer = cli("evaluate", run, *PROTOCOL, "--shot", "2", "--seed", "7", "--json")
    assert (answer.code, answer.err) == (0, "")
    printed = json.loads(answer.out)
    kept = json.loads((run / "evaluations/evaluation-001.json").read_text())
    assert [r["shot"] for r in printed["results"]] == [1, 2]
    for result in printed["results"]:
        assert {"way", "shot", "query", "episodes", "seed", "mean", "ci95", "std", "network", "split"} <= set(result)
        assert (result["way"], result["query"], result["episodes"], result["seed"]) == (3, 2, 5, 7)
        assert (result["network"], result["split"]) == ("peer 1", "test")
        [same] = [r for r in kept["results"] if (r["shot"], r["network"]) == (result["shot"], "peer 1")]
        assert {name: same[name] for name in result} == result
        assert len(same["accuracies"]) == 5
        assert sum(same["accuracies"]) / 5 == pytest.approx(result["mean"])
        assert len(same["episode_list"]) == 64
    assert {r["network"] for r in kept["results"]} == {"peer 0", "peer 1", "ensemble"}


def test_bfloat16_says_what_it_changes(cli, run: Path) -> None:
    answer = cli("evaluate", run, *PROTOCOL, "--precision", "bfloat16")
    good(answer, "bfloat16 changes peer 1, 1-shot, by ", "from float32 (paired, the first 5 episodes")
    good(cli("evaluate", run, *PROTOCOL))
    half, full = (json.loads((run / f"evaluations/evaluation-00{n}.json").read_text()) for n in (1, 2))
    assert (half["precision"], full["precision"]) == ("bfloat16", "float32")
    for ours, exact in zip(half["results"], full["results"]):
        assert ours["episode_list"] == exact["episode_list"]
        assert ours["change"]["mean"] == pytest.approx(ours["mean"] - exact["mean"], abs=1e-12)
        assert ours["change"]["differing"] == sum(a != b for a, b in zip(ours["accuracies"], exact["accuracies"]))
        assert "change" not in exact
    bad(cli("evaluate", run, *PROTOCOL, "--precision", "float16"), "precision 'float16'", "bfloat16")


def test_evaluations_repeat_and_pile_up(cli, run: Path) -> None:
    (run / "evaluations").mkdir()
    (run / "evaluations/evaluation-mine.json").write_text("{}")
    good(cli("evaluate", run, *PROTOCOL, "--peers"), "ensemble", "peer 1 (deployed)", "evaluation-001.json")
    good(cli("evaluate", run, *PROTOCOL), "evaluation-002.json")
    first, second = (json.loads((run / f"evaluations/evaluation-00{n}.json").read_text()) for n in (1, 2))
    assert first == second
    good(cli("evaluate", run, *PROTOCOL, "--checkpoint", "last"), "last checkpoint (episode 3)")


def test_evaluate_needs_the_run_directory_alone(cli, run: Path, data: Path, tmp_path: Path) -> None:
    """It may lie elsewhere than it was made, and the model file is not needed."""
    moved = Path(shutil.move(run, tmp_path / "else where"))
    (moved / "model.safetensors").unlink()
    good(cli("evaluate", moved, *PROTOCOL), "pictures, test split: 3 classes, 18 images")


def test_cross_domain(cli, run: Path, tmp_path: Path) -> None:
    good(cli("evaluate", run, *PROTOCOL, "--data", "glyphs"), "glyphs, test split")
    other = split_folders(tmp_path / "other", count=3, train="pig", test="cat bee owl")
    before = tree(run)
    bad(
        cli("evaluate", run, *PROTOCOL, "--data", other),
        "2 of 3 classes",
        "were classes of training",
        "bee, cat",
        "other classes",
    )
    bad(cli("evaluate", run, *PROTOCOL, "--data", tmp_path / "nowhere"), "does not exist")
    assert tree(run) == before
