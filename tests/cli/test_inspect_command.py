"""`data inspect` as a command: its suggestion trains, its page shows what it found, hostile names stay text."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from command_line import bad, class_folders, good, picture, split_folders


def suggested(text: str, command: str) -> list[str]:
    """The words of a suggested command."""
    [line] = [line for line in text.splitlines() if line.startswith(f"  fewshot-mcl {command} ")]
    return shlex.split(line)[1:]


def test_the_suggested_commands_work(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    root = split_folders(tmp_path / "my pictures", 4)
    (root / "train" / "ant" / "0.png").write_text("no image")
    answer = cli("data", "inspect", root)
    good(answer, "bad images: 1", "(--query 2 for training: the smallest class of train has 3 images)")
    words = suggested(answer.out, "train")
    assert words[words.index("--way") + 1] == "4"
    good(cli(*words, "--episodes", 2, "--peers", 2, "--set", "val_episodes=3", "--out", tmp_path / "run"))
    test = [tmp_path / "run" if word == "RUN" else word for word in suggested(answer.out, "evaluate")]
    good(cli(*test, "--episodes", 5))


def test_the_suggested_classification_works(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    root = class_folders(tmp_path / "coloured", ant=2, bee=2, cat=9)
    answer = cli("data", "inspect", root, "--task", "classify")
    good(answer, "no validation: a class has one training image")
    words = suggested(answer.out, "classify")
    good(cli(*words, "--epochs", 1, "--peers", 2, "--out", tmp_path / "run"))


def test_two_classes_are_too_few_for_new_ones(cli, tmp_path: Path) -> None:
    bad(cli("data", "inspect", class_folders(tmp_path / "two", ant=3, bee=3)), "too few for train, val and test")


def test_the_page_shows_classes_and_copies(cli, tmp_path: Path) -> None:
    root = split_folders(tmp_path / "pictures", 4)
    shutil.copy(root / "train" / "ant" / "1.png", root / "test" / "jay" / "leak.png")
    page = tmp_path / "page.html"
    good(cli("data", "inspect", root, "--out", page), f"written {page}", "IN SEVERAL SPLITS")
    text = page.read_text()
    assert text.count("<img ") == 41 + 2  # every class has at most five images, and the copies stand once more
    assert "1 group(s) of images lie in more than one split" in text
    assert "the same, in several splits" in text


def test_hostile_names_stay_text(cli, tmp_path: Path) -> None:
    root = split_folders(
        tmp_path / "pict\x1b[31mures", 3, train="a\x1b[2Jb <script>alert(1)<|script> c", test="d\x07 e"
    )
    picture(root / "val" / "elk" / "\u202e<b>x.png", 7)
    (root / "val" / "elk" / "y\n\x1b[2J.png").write_bytes(b"")
    answer = cli("data", "inspect", root, "--out", tmp_path / "page.html")
    good(answer, "y\\n\\x1b[2J.png (empty file)")
    assert all(line.isprintable() for line in answer.out.split("\n"))
    text = (tmp_path / "page.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert all(line.isprintable() for line in text.split("\n"))
