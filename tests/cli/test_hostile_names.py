"""Names that would command a terminal are shown as escapes by every command that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import PROTOCOL, TINY, Answer, good, split_folders

CLASSES = {
    "train": "a\x1b[2Jb c\x07d [red]e <b>f",
    "val": "g\u202eh i\x9b31mj k",
    "test": "\x1b]0;l\x07 m..n \udcff",
}


def shown(answer: Answer) -> None:
    text = answer.out + answer.err
    assert all(line.isprintable() for line in text.split("\n")), ascii(text)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return split_folders(tmp_path / "pict\x1b[31mures", 4, **CLASSES)


def test_a_sound_tree_of_hostile_names(hostile: Path, cli, tmp_path: Path) -> None:
    out, packed = tmp_path / "r\x1b[1mun", tmp_path / "p\x1b[1macked"
    for command in (
        ("data", "check", hostile),
        ("train", "--data", hostile, *TINY, "--out", out),
        ("train", "--out", out, "--resume"),
        ("evaluate", out, *PROTOCOL, "--peers"),
        ("evaluate", out, *PROTOCOL, "--json"),
        ("data", "convert", hostile, "--image-size", 16, "--out", packed),
        ("data", "check", packed),
    ):
        answer = cli(*command)
        good(answer)
        shown(answer)


@pytest.mark.parametrize("command", ["data check", "train", "classify", "data convert"])
def test_what_is_wrong_with_hostile_names_is_said_on_lines_of_their_own(
    command: str, hostile: Path, cli, tmp_path: Path
) -> None:
    (hostile / "train" / "c\x07d" / "x\n\x1b[2Jy.png").write_bytes(b"no image")
    (hostile / "val" / "k" / "self\r.png").symlink_to("self\r.png")
    data = (hostile,) if "data" in command else ("--data", hostile)
    out = () if "check" in command else ("--out", tmp_path / "o\x1but")
    answer = cli(*command.split(), *data, *out)
    assert answer.code == 2
    shown(answer)
    if command != "classify":
        assert "x\\n\\x1b[2Jy.png" in answer.out + answer.err
