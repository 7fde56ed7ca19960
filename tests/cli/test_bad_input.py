"""Bad input: one line that says what, where and how to mend it, exit code 2, nothing lost, no traceback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import PROTOCOL, TINY, bad, good, picture, split_folders, tree
from PIL import Image

from fewshot_mcl.networks.peers import PeerOutputs
from fewshot_mcl.runs.files import read_json, write_json
from fewshot_mcl.training.episodic import EpisodicTask

# Options and configuration files.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], ["episodes = 0", "greater than or equal to 1"]),
        (["--episodes", "-5"], ["episodes = -5"]),
        (["--episodes", "1e3"], ["--episodes 1e3", "whole number"]),
        (["--way", "1"], ["way = 1", "greater than or equal to 2"]),
        (["--way", "5"], ["training", "5-way", "there are 4", "--way 4 or fewer"]),
        (["--set", "val_way=4"], ["validation", "there are 3", "val_way"]),
        (["--shot", "0"], ["shot = 0"]),
        (["--shot", "5"], ["training", "class 'ant' has 6 images", "needs 7", "--query 1"]),
        (["--set", "val_query=9"], ["validation", "class 'elk' has 6 images", "val_query"]),
        (["--query", "0"], ["query = 0"]),
        (["--peers", "0"], ["peers = 0"]),
        (["--method", "mcl", "--peers", "1"], ["at least 2 peers", "--peers 2"]),
        (["--lr", "0"], ["lr = 0"]),
        (["--lr", "nan"], ["lr = nan", "finite"]),
        (["--lr", "inf"], ["lr = inf", "finite"]),
        (["--seed", "-1"], ["seed = -1"]),
        (["--image-size", "8"], ["conv4", "at least 16"]),
        (["--image-size", "0"], ["image_size = 0"]),
        (["--color", "pink"], ["color = pink", "'rgb'", "'grey'"]),
        (["--resize", "stretch"], ["resize = stretch", "'crop'"]),
        (["--on-bad-image", "ignore"], ["on_bad_image = ignore", "'skip'"]),
        (["--method", "mcl-okdd"], ["unknown method 'mcl-okdd'", "did you mean 'mcl-okd'", "baseline"]),
        (["--backbone", "conv44"], ["unknown backbone 'conv44'", "did you mean 'conv4'"]),
        (["--set", "wya=3"], ["unknown config key 'wya'", "did you mean 'way'"]),
        (["--set", "zzz=3"], ["unknown config key 'zzz'", "did you mean"]),
        (["--set", "temperature=1"], ["unknown config key", "did you mean 'objective.temperature'"]),
        (["--set", "t=1"], ["unknown config key", "did you mean 'objective.T'"]),
        (["--set", "objective.temprature=1"], ["unknown option of method 'mcl-okd'", "did you mean 'temperature'"]),
        (["--method", "baseline", "--set", "objective.T=1"], ["'baseline' has no options", "leave it out"]),
        (["--set", "objective.T=hot"], ["objective.T = hot", "valid number"]),
        (["--set", "objective.T=nan"], ["objective.T = nan", "finite"]),
        (["--set", "objective.temperature=0"], ["temperature > 0"]),
        (["--set", "objective.negatives=none"], ["objective.negatives = none", "'other-class'"]),
        (["--set", "objective=3"], ["objective is a table", "--set objective.KEY=VALUE"]),
        (["--set", "objective.a.b=3"], ["unknown config key 'objective.a'"]),
        (["--set", "way"], ["--set way", "key=value"]),
        (["--set", "=3"], ["--set =3", "key=value"]),
        (["--set", "way=abc"], ["way = abc", "valid integer"]),
        (["--set", "way.x=3"], ["way = ", "valid integer"]),
        (["--set", "way=3\nshot=1"], ["way = 3\\nshot=1", "valid integer"]),
        (["--set", "kl_source=aux", "--set", "aux_weight=0"], ["kl_source", "aux_weight=1"]),
        (["--set", "form=stacked", "--set", "precision=bfloat16"], ["form = stacked", "form=grouped or loop"]),
        (["--set", "device=nonsense"], ["device 'nonsense'", "use cpu"]),
        (["--set", "device=meta"], ["device 'meta'", "use cpu"]),
        (["--set", "device=cuda:99"], ["device 'cuda:99'", "use cpu"]),
        (["--set", "objective.embedding_dim=100000000000"], ["not enough memory"]),
        (["--config", "nowhere.toml"], ["cannot read", "nowhere.toml", "no such file"]),
        (["--config", "papr"], ["cannot read", "papr", "recipes", "paper-5shot"]),
        (["--epsodes", "3"], ["no such option", "--episodes", "train --help"]),
        (["--way"], ["--way", "argument", "--help"]),
        (["extra"], ["extra", "train --help"]),
    ],
    ids=lambda value: " ".join(value).replace("\n", "+") if value and value[0].startswith(("-", "extra")) else "",
)
def test_bad_options(arguments: list[str], words: list[str], train, tmp_path: Path) -> None:
    bad(train("--out", tmp_path / "run", *arguments), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("way = ", ["mine.toml is not valid TOML", "end of document"]),
        ("wya = 3", ["unknown config key 'wya'", "did you mean 'way'"]),
        ("val_shot = 'three'", ["val_shot = three", "valid integer"]),
        ("method = ['mcl']", ["unknown method"]),
        ("objective = 3", ["objective is a table"]),
        ("[objective]\nbetta = 1", ["unknown option of method 'mcl-okd'", "did you mean 'beta'"]),
        ("out = 3", ["out = 3", "valid string"]),
        ("\udcff", ["mine.toml is not valid TOML"]),
        ("x = " + "[" * 100_000, ["mine.toml is not valid TOML"]),
        ("[" + "a." * 20_000 + "a]", ["mine.toml is not valid TOML", "nested deeper"]),
        ("#" * 2_000_000, ["mine.toml is not valid TOML", "longer"]),
        ("schema = 99", ["mine.toml was written by a newer fewshot-mcl"]),
        ("when = 3", ["[[when]] is a table"]),
        ("when = [3]", ["[[when]] is a table"]),
        ("[[when]]\nmethod = ['mcl']", ["[[when]] is a table"]),
        ("[[when]]\nmethod = 3\nthen = {}", ["[[when]] is a table"]),
        ("[[when]]\nmethod = ['mcl-okd']\nthen = 3", ["[[when]] is a table"]),
        ("task = [1]", ["unknown task"]),
    ],
    ids=lambda value: value[:20].replace("\n", " ") if isinstance(value, str) else "",
)
def test_bad_configuration_files(text: str, words: list[str], train, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    bad(train("--config", file), *words)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "a\nb"])
def test_names_that_no_file_can_have(name: str, cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"data = {json.dumps(name)}")
    for answer in (cli("train", "--config", file), cli("classify", "--set", f"data={json.dumps(name)}")):
        bad(answer, "error: ")
        assert len(answer.err) < 500


def test_unknown_commands(cli) -> None:
    bad(cli("trian"), "trian", "did you mean 'train'", "fewshot-mcl --help")
    bad(cli("evaluate"), "run", "evaluate --help")
    bad(cli("data", "chek"), "chek", "did you mean 'check'")


# Folders.


def empty(root: Path) -> None:
    root.mkdir()


def one_file(root: Path) -> None:
    root.write_text("no folder")


def empty_split(root: Path) -> None:
    split_folders(root, 3)
    shutil.rmtree(root / "val")
    (root / "val").mkdir()


def no_validation(root: Path) -> None:
    split_folders(root, 3)
    shutil.rmtree(root / "val")


def too_few_images(root: Path) -> None:
    split_folders(root, 3)
    (root / "train/cat/2.png").unlink()


def too_few_classes(root: Path) -> None:
    for name in "abc":
        picture(root / name / "0.png", 1)


def shared_class(root: Path) -> None:
    split_folders(root, 3)
    shutil.copytree(root / "train/ant", root / "test/ant")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, ["pictures does not exist", "give the path of a folder"]),
        (empty, ["pictures holds no images", "expected CLASS/"]),
        (one_file, ["pictures is a file", "give the folder"]),
        (empty_split, ["val split", "no class folder with images", "remove it"]),
        (no_validation, ["has no val split", "Put its classes into PATH/val/CLASS/"]),
        (too_few_images, ["training", "class 'cat' has 2 images", "needs 3", "--query 1"]),
        (too_few_classes, ["3 class folders", "too few", "add classes"]),
        (shared_class, ["class 'ant' is in both train and test"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_folders(make: Callable[[Path], None], words: list[str], cli, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    make(root)
    before = tree(tmp_path)
    bad(cli("train", "--data", root, *TINY, "--out", tmp_path / "run"), *words)
    assert tree(tmp_path) == before


def test_unknown_data(cli) -> None:
    bad(cli("train", "--data", "glyps"), "unknown data source", "'glyps'", "did you mean 'glyphs'")
    bad(cli("train", "--data", "mini-imagenet"), "--root DIR")
    bad(cli("train", "--data", ""), "data = ", "at least 1 character")
    bad(cli("train", "--data", "x" * 300), "name too long")
    bad(cli("data", "convert", "glyphs", "--out", "."), ". exists", "new folder")


# Images that cannot be used.


def bomb() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


BAD_IMAGES = {
    "corrupt": (lambda good: good[:60] + bytes(40) + good[100:], "damaged"),
    "truncated": (lambda good: good[: len(good) // 2], "damaged"),
    "zero-byte": (lambda good: b"", "empty file"),
    "enormous": (lambda good: bomb(), "million"),
    "text": (lambda good: b"hello", "not an image"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images(kind: str, cli, tmp_path: Path) -> None:
    spoil, reason = BAD_IMAGES[kind]
    root = split_folders(tmp_path / "pictures", 4)
    file = root / "train/bee/1.png"
    file.write_bytes(spoil(file.read_bytes()))
    before = tree(tmp_path)
    bad(
        cli("train", "--data", root, *TINY, "--out", tmp_path / "run"),
        "1 of 16",
        "bee/1.png",
        reason,
        "--on-bad-image skip",
    )
    checked = cli("data", "check", root)
    assert checked.code == 2
    assert f"bee/1.png ({reason}" in checked.out or reason in checked.out
    bad(cli("data", "convert", root, "--out", tmp_path / "packed"), "bee/1.png", reason)
    assert tree(tmp_path) == before
    skipped = cli("train", "--data", root, *TINY, "--out", tmp_path / "run", "--on-bad-image", "skip")
    good(skipped, "1 of 16 images skipped", "bee/1.png")


# Images that look odd and are read correctly.


def odd_images() -> dict[str, tuple[Image.Image, dict[str, object], tuple[int, int, int]]]:
    """By name: the image, how it is saved, and the colour that every pixel of it has."""
    palette = Image.new("P", (16, 16), 7)
    palette.putpalette([value for i in range(256) for value in (i, 200, 3 * i % 256)])
    deep = Image.fromarray(np.full((16, 16), 0x8080, np.uint16))
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#ff0000", "#0000ff")]
    return {
        "cmyk.jpg": (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
        "palette.png": (palette, {}, (7, 200, 21)),
        "deep.png": (deep, {}, (128, 128, 128)),
        "moving.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}, (255, 0, 0)),
    }


@pytest.mark.parametrize("name", odd_images())
def test_odd_images_are_read_correctly(name: str, cli, tmp_path: Path) -> None:
    image, how, colour = odd_images()[name]
    root = split_folders(tmp_path / "pictures", 4)
    image.save(root / "train/ant" / name, **how)  # sorted, it comes after the four others
    good(cli("data", "check", root), "17 images", "no problem found")
    good(cli("train", "--data", root, *TINY, "--out", tmp_path / "run"))
    good(cli("data", "convert", root, "--image-size", 16, "--out", tmp_path / "packed"))
    stored = np.load(tmp_path / "packed/train/images.npy")[4]
    assert np.abs(stored.astype(int) - np.array(colour)[:, None, None]).max() <= 2


# The run directory.


@pytest.mark.parametrize("kind", ["run", "folder", "empty folder", "file", "dead link"])
def test_an_existing_out_is_never_written_into(kind: str, train, cli, run: Path, tmp_path: Path) -> None:
    out = run if kind == "run" else tmp_path / "there"
    if "folder" in kind:
        out.mkdir()
    if kind == "folder":
        (out / "thesis.txt").write_text("three years of work")
    if kind == "file":
        out.write_text("three years of work")
    if kind == "dead link":
        out.symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    bad(train("--out", out), f"{out} exists", "another --out")
    if kind != "run":
        bad(cli("train", "--out", out, "--resume"), "run directory")
        bad(cli("evaluate", out), "run directory")
    assert tree(tmp_path) == before


def test_out_in_a_place_that_cannot_be_written(train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bad(train("--out", tmp_path / "file" / "run"), "cannot make the run directory", "not a directory", "--out DIR")
    bad(train("--out", tmp_path / ("x" * 300)), "name too long")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "1"], ["seed = 1", "has seed = 0", "leave it out", "another --out"]),
        (["--method", "baseline"], ["method = baseline", "has method = mcl-okd"]),
        (["--method", "mcl"], ["method = mcl", "has method = mcl-okd"]),
        (["--episodes", "4"], ["episodes = 4", "has episodes = 3"]),
        (["--data", "glyphs"], ["data = glyphs", "has data = "]),
        (["--set", "objective.T=4"], ["objective.T = 4.0", "has objective.T = 3.0"]),
        (["--config", "paper"], ["data = mini-imagenet", "another --out"]),
        (["--set", "objective.x=4"], ["unknown option"]),
    ],
    ids=lambda value: " ".join(value[:2]) if value[0].startswith("--") else "",
)
def test_resuming_with_other_settings(arguments: list[str], words: list[str], cli, run: Path) -> None:
    before = tree(run)
    bad(cli("train", "--out", run, "--resume", *arguments), *words)
    assert tree(run) == before


def test_resuming_with_other_images(cli, tmp_path: Path) -> None:
    root, out = split_folders(tmp_path / "pictures", 4), tmp_path / "run"
    good(cli("train", "--data", root, *TINY, "--out", out))
    picture(root / "train/ant/0.png", 999_999)
    before = tree(out)
    bad(cli("train", "--out", out, "--resume"), "train images", "fingerprint", "nothing was changed", "another --out")
    assert tree(out) == before


def test_resuming_what_is_not_there(cli, tmp_path: Path) -> None:
    bad(cli("train", "--resume"), "which run", "--out RUN --resume")
    bad(cli("train", "--out", tmp_path / "nowhere", "--resume"), "nowhere does not exist", "'fewshot-mcl train' prints")
    assert not (tmp_path / "nowhere").exists()


# Checkpoints.


def weights_of(run: Path, name: str = "best") -> Path:
    return run / "checkpoints" / json.loads((run / f"checkpoints/{name}.json").read_text())["file"]


def cut(path: Path, keep: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: cut(weights_of(run)), ["damaged or cut short", "SHA-256", "--checkpoint last"]),
        (lambda run: cut(weights_of(run), 0), ["damaged or cut short"]),
        (lambda run: weights_of(run).unlink(), ["cannot read", "no such file", "--checkpoint last"]),
        (lambda run: (run / "checkpoints/best.json").unlink(), ["no checkpoint 'best'", "--resume"]),
        (lambda run: cut(run / "checkpoints/best.json"), ["best.json is damaged", "from a copy"]),
        (lambda run: (run / "checkpoints/best.json").write_text("[]"), ["best.json is damaged"]),
        (lambda run: (run / "checkpoints/best.json").write_text('{"schema": 1}'), ["best.json is damaged", "'file'"]),
        (lambda run: (run / "checkpoints/best.json").write_text('{"schema": 99}'), ["newer fewshot-mcl", "update"]),
        (lambda run: cut(run / "data.json"), ["data.json is damaged", "from a copy"]),
        (lambda run: (run / "data.json").unlink(), ["cannot read", "data.json", "no such file"]),
        (lambda run: (run / "config.toml").write_text("way = "), ["config.toml was changed"]),
        (lambda run: (run / "config.toml").unlink(), ["not a run directory", "config.toml"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_damaged_runs(spoil: Callable[[Path], None], words: list[str], cli, run: Path) -> None:
    spoil(run)
    before = tree(run)
    bad(cli("evaluate", run, *PROTOCOL), *words)
    assert tree(run) == before


def test_of_a_damaged_last_checkpoint_the_one_before_is_resumed(cli, run: Path, trained: Path) -> None:
    cut(weights_of(run, "last"), 0.99)
    resumed = cli("train", "--out", run, "--resume")
    good(resumed, "last-00000003.safetensors is damaged or cut short", "the checkpoint before it is used, of episode 2")
    good(resumed, "episodes 3 to 3")
    for name in ("model.safetensors", "metrics.csv", "checkpoints/last-00000003.safetensors"):
        assert (run / name).read_bytes() == (trained / name).read_bytes()


def test_two_damaged_checkpoints_are_not_resumed(cli, run: Path) -> None:
    for path in (run / "checkpoints").glob("last-*.safetensors"):
        cut(path, 0.99)
    before = tree(run)
    bad(
        cli("train", "--out", run, "--resume"),
        "last-00000002",
        "damaged or cut short",
        "--checkpoint best",
        "start a new run",
    )
    assert tree(run) == before
    good(cli("evaluate", run, *PROTOCOL))


def transplant(source: Path, target: Path) -> None:
    """The checkpoints of another run, as if they belonged to this one."""
    shutil.rmtree(target / "checkpoints")
    shutil.copytree(source / "checkpoints", target / "checkpoints")
    for path in (target / "checkpoints").glob("*.json"):
        manifest = read_json(path)
        for key in ("belongs_to", "metrics"):
            manifest.pop(key, None)
        write_json(path, manifest)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (["--peers", "3"], ["belongs to another"]),
        (["--set", "share=none"], ["belongs to another network"]),
        (["--set", "aux_weight=1"], ["classifiers", "belongs to another"]),
        (["--color", "grey"], ["of shape", "belongs to another network"]),
    ],
    ids=["more peers", "nothing shared", "with a classifier", "grey"],
)
def test_a_checkpoint_of_another_network(
    other: list[str], words: list[str], train, cli, run: Path, tmp_path: Path
) -> None:
    good(train("--out", tmp_path / "other", *other))
    transplant(tmp_path / "other", run)
    before = tree(run)
    bad(cli("evaluate", run, *PROTOCOL), str(run), *words)
    bad(cli("train", "--out", run, "--resume"), str(run), "belongs to another")
    assert tree(run) == before
    transplant(run, tmp_path / "other")
    good(cli("evaluate", tmp_path / "other", *PROTOCOL))


def test_files_of_another_run_are_told_apart(train, cli, run: Path, tmp_path: Path) -> None:
    good(train("--out", tmp_path / "other", "--seed", "1"))
    for name in ("config.toml", "data.json"):
        kept = (run / name).read_bytes()
        if (tmp_path / "other" / name).read_bytes() == kept:
            continue
        shutil.copy(tmp_path / "other" / name, run / name)
        for command in (("evaluate", run, *PROTOCOL), ("train", "--out", run, "--resume")):
            bad(cli(*command), name, "put the file")
        (run / name).write_bytes(kept)
    last, best = (run / f"checkpoints/{name}.json" for name in ("last", "best"))
    last.write_bytes(best.read_bytes())
    (run / "checkpoints/last.previous.json").unlink()
    bad(cli("train", "--out", run, "--resume"), "last.json is of the checkpoint 'best'")


def test_a_checkpoint_of_another_number_of_classes(cli, tmp_path: Path) -> None:
    for name, classes in (("four", "ant bee cat dog"), ("five", "ant bee cat dog emu")):
        root = split_folders(tmp_path / f"{name} classes", 4, train=classes)
        good(cli("train", "--data", root, *TINY, "--set", "aux_weight=1", "--out", tmp_path / name))
    transplant(tmp_path / "five", tmp_path / "four")
    words = ["classifiers.0.weight", "(5, 64)", "(4, 64)", "number of classes"]
    bad(cli("evaluate", tmp_path / "four", *PROTOCOL), *words)
    bad(cli("train", "--out", tmp_path / "four", "--resume"), *words)


# Evaluating.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], ["2 to 1,000,000 episodes", "not 0", "--episodes 600"]),
        (["--episodes", "1"], ["not 1", "--episodes 600"]),
        (["--episodes", "1000000000000"], ["2 to 1,000,000"]),
        (["--shot", "0"], ["at least 1", "0"]),
        (["--query", "0"], ["at least 1"]),
        (["--way", "1"], ["1-way", "--way 2"]),
        (["--way", "5"], ["5-way", "there are 3", "--way 3 or fewer"]),
        (["--shot", "5", "--query", "15"], ["class 'hen' has 6 images", "needs 20", "2 more classes", "--query 1"]),
        (["--shot", "6", "--query", "15"], ["class 'hen' has 6 images", "--shot 5 --query 1"]),
        (["--split", "tset"], ["unknown split 'tset'", "did you mean 'test'"]),
        (["--checkpoint", "bets"], ["unknown checkpoint 'bets'", "did you mean 'best'"]),
        (["--device", "nonsense"], ["device 'nonsense'", "use cpu"]),
        (["--shot", "two"], ["--shot two", "whole number"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_protocols(arguments: list[str], words: list[str], cli, run: Path) -> None:
    before = tree(run)
    shot = [] if "--shot" in arguments else ["--shot", "1"]
    bad(cli("evaluate", run, "--episodes", 5, "--way", 3, "--query", 2, *shot, *arguments, "--json"), *words)
    assert tree(run) == before


def test_an_evaluation_that_cannot_be_kept(cli, run: Path) -> None:
    (run / "evaluations").write_text("in the way")
    bad(cli("evaluate", run, *PROTOCOL), "cannot keep the evaluation", "evaluations", "file exists")


# Losses that are no number.


def sha256(run: Path) -> str:
    return hashlib.sha256(weights_of(run, "last").read_bytes()).hexdigest()


def test_a_learning_rate_that_overflows(train, cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    bad(
        train("--out", out, "--lr", "1e30", "--episodes", 20, "--set", "schedule=constant"),
        "is not a number", "term ce", "of peer 0, 1", "last good checkpoint is kept", "--lr",
    )  # fmt: skip
    state = json.loads((out / "checkpoints/last.json").read_text())
    assert sha256(out) == state["sha256"]
    assert all(np.isfinite(tensor.numpy()).all() for tensor in load(weights_of(out, "last")))
    before = tree(out)
    bad(cli("train", "--out", out, "--resume"), "is not a number")
    assert {k: v for k, v in tree(out).items() if k.startswith("checkpoints")} == {
        k: v for k, v in before.items() if k.startswith("checkpoints")
    }
    good(cli("evaluate", out, *PROTOCOL, "--checkpoint", "last"))
    good(cli("evaluate", out, *PROTOCOL))


def load(path: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return [value for name, value in load_file(path).items() if name.startswith("peers.")]


@pytest.mark.parametrize("peer", [0, 1])
def test_the_peer_that_fails_is_named(peer: int, train, cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, steps = EpisodicTask._forward, []

    def broken(self: EpisodicTask, indices: torch.Tensor, support: int) -> PeerOutputs:
        out = forward(self, indices, support)
        steps.append(1)
        if len(steps) == 3:
            out.features.data[peer, 0] = float("nan")
        return out

    good(train("--out", tmp_path / "whole", "--episodes", 2, "--set", "schedule=constant"))
    monkeypatch.setattr(EpisodicTask, "_forward", broken)
    out = tmp_path / "run"
    bad(
        train("--out", out, "--episodes", 5, "--set", "schedule=constant"),
        "loss of episode 3 is not a number", "term ce", f"of peer {peer}.", str(out / "checkpoints/last.json"), "--lr",
    )  # fmt: skip
    assert sha256(out) == sha256(tmp_path / "whole")  # what it was before the failure
    good(cli("evaluate", out, *PROTOCOL, "--checkpoint", "last"), "episode 2")


def test_a_peer_whose_contrast_alone_fails_is_named(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = EpisodicTask.step

    def broken(self: EpisodicTask, number: int):
        if number == 1:
            self.objective.contrast.heads[1].weight.data[0, 0] = float("nan")
        return step(self, number)

    monkeypatch.setattr(EpisodicTask, "step", broken)
    bad(train("--out", tmp_path / "run"), "loss of episode 2 is not a number: term contrast of peer 1", "checkpoint")


# Names that a terminal must not obey.

NASTY = "[red]a\nb\x1b[31m\u202e\udcff"


def test_nasty_names_are_printed_safely(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tmp_path / "[bold]up\n\x1b[2J"
    root = split_folders(parent / "pictures", 3)
    for split, name in (("train", "ant"), ("val", "elk"), ("test", "hen")):
        (root / split / name).rename(root / split / os.fsdecode(os.fsencode(split + NASTY)))
    out = tmp_path / "[blue]run\n\x1b[31m"
    answers = [
        cli("train", "--data", root, *TINY, "--out", out),
        cli("train", "--out", out, "--resume"),
        cli("evaluate", out, *PROTOCOL),
        cli("data", "check", root),
        cli("data", "convert", root, "--out", parent / "packed"),
    ]
    for answer in answers:
        good(answer)
        assert all(line.isprintable() for line in answer.out.splitlines())
    assert "[blue]run\\n\\x1b[31m" in answers[0].out
    next(root.glob("test/test*/0.png")).unlink()
    bad(cli("evaluate", out, *PROTOCOL), "test[red]a\\nb\\x1b[31m")
    bad(cli("evaluate", out, *PROTOCOL, "--data", "\x1b[31m[red]"), "\\x1b[31m[red]")
    bad(cli("train", "--out", out), "[blue]run\\n\\x1b[31m")
    good(cli("train", "--config", out / "config.toml", "--out", tmp_path / "again"))


def test_a_path_that_is_no_text(cli, tmp_path: Path) -> None:
    root = split_folders(tmp_path / "pict\udcffures", 3)
    bad(cli("train", "--data", root, *TINY), "data", "unicode")


def test_advice_on_validation_names_its_own_settings(cli, data: Path, tmp_path: Path) -> None:
    answer = cli("train", "--data", data, *TINY, "--set", "val_way=9", "--out", tmp_path / "new")
    bad(answer, "validation episodes", "--set val_way=3 or fewer")
