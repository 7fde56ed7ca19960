"""Damage to the files of a run: refused with the name of the file, or the checkpoint before is used and that is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import PROTOCOL, Answer, bad, good

from fewshot_mcl.runs import Run
from fewshot_mcl.runs.files import read_json, write_json

FILES = ["config.toml", "data.json", "checkpoints/best.json", "checkpoints/last.json", "best weights", "last weights"]


def path_of(run: Path, name: str) -> Path:
    kind, weights, _ = name.partition(" weights")
    return run / "checkpoints" / read_json(run / f"checkpoints/{kind}.json")["file"] if weights else run / name


def flip(path: Path, part: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(part * len(data))] ^= 4
    path.write_bytes(data)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "first": lambda path: flip(path, 0),
    "middle": lambda path: flip(path, 0.5),
    "last": lambda path: flip(path, 0.9999),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: replace(path, Path.touch),
    "folder": lambda path: replace(path, Path.mkdir),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_named_by_every_command_that_reads_the_file(name: str, how: str, cli, run: Path) -> None:
    path = path_of(run, name)
    DAMAGE[how](path)
    kinds = ("best", "last") if name in ("config.toml", "data.json") else ("last",) if "last" in name else ("best",)
    for checkpoint in kinds:
        named(cli("evaluate", run, *PROTOCOL, "--checkpoint", checkpoint), path)
    if kinds != ("best",):
        named(cli("train", "--out", run, "--resume"), path)


def named(answer: Answer, path: Path) -> None:
    if answer.code:
        bad(answer, path.name)
    else:
        good(answer, path.name, "the checkpoint before it is used")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_teacher_is_named(name: str, how: str, train, run: Path, tmp_path: Path) -> None:
    DAMAGE[how](run / name)
    taught = ("--method", "rkd-d", "--peers", 1, "--teacher", run, "--out", tmp_path / "taught")
    bad(train(*taught), name, "damaged" if how != "folder" else "cannot read")
    assert not (tmp_path / "taught").exists()


@pytest.mark.parametrize("part", [0.1, 0.9])
def test_damaged_metrics_are_not_continued(part: float, cli, run: Path) -> None:
    flip(run / "metrics.csv", part)
    named(cli("train", "--out", run, "--resume"), run / "metrics.csv")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.json", {"backbone": 3}),
        ("model.json", {"backbone": {}}),
        ("model.json", {"image_size": [16]}),
        ("model.json", {"in_channels": 1 << 40}),
        ("model.json", {"mean": "abc"}),
        ("model.json", {"std": [float("nan")] * 3}),
        ("model.json", {"std": [10**400] * 3}),
        ("data.json", {"train": {"classes": 3}}),
        ("data.json", {"train": {"classes": [["a"]]}}),
    ],
    ids=str,
)
def test_a_card_that_describes_no_network_is_refused(name: str, change: dict, train, run: Path, tmp_path: Path) -> None:
    """Its own check holds: it was written to be so."""
    content = {key: value for key, value in json.loads((run / name).read_text()).items() if key != "check"}
    write_json(run / name, content | change)
    taught = ("--method", "rkd-d", "--peers", 1, "--teacher", run, "--out", tmp_path / "taught")
    bad(train(*taught), f"{name} is damaged", "from a copy")


@pytest.mark.parametrize("file", ["\ud800", "a\0b", "", ".."])
def test_a_manifest_that_names_no_file_is_refused(file: str, cli, run: Path) -> None:
    (run / "checkpoints/best.previous.json").unlink(missing_ok=True)
    write_json(run / "checkpoints/best.json", read_json(run / "checkpoints/best.json") | {"file": file})
    bad(cli("evaluate", run, *PROTOCOL), "best.json is damaged")


@pytest.mark.parametrize("name", ["command.txt", "environment.json", "metrics.csv", "model.json", "model.safetensors"])
def test_what_is_not_read_changes_no_figure(name: str, cli, run: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "intact")
    (run / name).write_bytes(b"\0")
    answers = [cli("evaluate", path, *PROTOCOL, "--json") for path in (run, tmp_path / "intact")]
    one, other = (json.loads(answer.out)["results"] for answer in answers)
    assert one == other


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_a_checkpoint_that_is_not_needed_is_said(how: str, cli, run: Path) -> None:
    path = run / "checkpoints/last.previous.json"
    assert path.exists()
    DAMAGE[how](path)
    good(cli("evaluate", run, *PROTOCOL, "--checkpoint", "last"), path.name, "it is not needed")
    good(cli("train", "--out", run, "--resume"), path.name, "it is not needed")


def of_another_run(run: Path) -> None:
    path = run / "checkpoints/last.previous.json"
    manifest = read_json(path)
    write_json(path, manifest | {"belongs_to": manifest["belongs_to"] | {"data.json": "0" * 64}, "episode": 99})


def exchanged_with_the_best(run: Path) -> None:
    shutil.copy(run / "checkpoints/best.json", run / "checkpoints/last.previous.json")


def without_its_tensors(run: Path) -> None:
    (run / "checkpoints" / read_json(run / "checkpoints/last.previous.json")["file"]).unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (of_another_run, "belongs to another data.json"),
        (exchanged_with_the_best, "is of the checkpoint 'best'"),
        (without_its_tensors, "names a file that is missing, 'last-00000002.safetensors'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_sound_file_in_the_wrong_place_is_said(spoil: Callable[[Path], None], words: str, cli, run: Path) -> None:
    spoil(run)
    good(cli("evaluate", run, *PROTOCOL, "--checkpoint", "last"), "last.previous.json", words, "it is not needed")
    good(cli("train", "--out", run, "--resume"), "last.previous.json", words, "it is not needed")


def test_what_is_of_another_checkpoint_takes_the_place_of_no_good_one(run: Path) -> None:
    folder = run / "checkpoints"
    before = read_json(folder / "last.previous.json")
    shutil.copy(folder / "best.json", folder / "last.json")
    Run.open(run).save_checkpoint("last", {}, {"episode": 4, "best": None, "seconds": 1.0})
    assert read_json(folder / "last.json")["episode"] == 4
    assert read_json(folder / "last.previous.json") == before
    assert (folder / before["file"]).exists()


def test_a_teacher_whose_data_are_of_another_run_is_refused(train, run: Path, tmp_path: Path) -> None:
    """Its classes are the same: only the configuration beside it says that the file is not its own."""
    write_json(run / "data.json", read_json(run / "data.json") | {"config sha256": "0" * 64})
    taught = ("--method", "rkd-d", "--peers", 1, "--teacher", run, "--out", tmp_path / "taught")
    bad(train(*taught), "data.json", "do not belong together")


def test_data_whose_images_have_no_sides_are_refused(cli, run: Path) -> None:
    content, name = read_json(run / "data.json"), "checkpoints/best.json"
    write_json(run / "data.json", content | {"train": content["train"] | {"image_size": []}})
    write_json(run / name, {k: v for k, v in read_json(run / name).items() if k != "belongs_to"})
    bad(cli("evaluate", run, *PROTOCOL), "data.json is damaged", "no size")


def test_the_small_run_is_as_the_tests_take_it(run: Path) -> None:
    assert all(path_of(run, name).is_file() for name in FILES)
