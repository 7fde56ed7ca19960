"""What the tests of the command line share: tiny pictures, tiny episodes, and how an answer is judged."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"train": "ant bee cat dog", "val": "elk fox gnu", "test": "hen ibis jay"}
TINY = shlex.split(
    "--image-size 16 --peers 2 --episodes 3 --way 3 --shot 1 --query 2 --set val_every=1 --set val_episodes=4 "
    "--set val_way=2 --set val_query=2 --set log_every=1"
)
TINY_CLASSIFY = shlex.split(
    "--image-size 16 --peers 2 --epochs 2 --batch 16 --lr 0.02 --set val_every=1 --set log_every=1"
)
PROTOCOL = shlex.split("--episodes 5 --way 3 --shot 1 --query 2")


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def good(answer: Answer, *words: str) -> None:
    """It did what it was asked."""
    assert answer.code == 0, answer.err
    for word in words:
        assert word in answer.out


def bad(answer: Answer, *words: str) -> None:
    """One line that has `words` (whatever their case), exit code 2, no traceback."""
    assert answer.code == 2, answer
    assert "Traceback" not in answer.out + answer.err
    lines = [
        line for line in answer.err.splitlines() if not line.endswith(" left")
    ]  # but for how far a slow machine was
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    for word in words:
        assert word.lower() in lines[0].lower(), lines[0]


def picture(path: Path, seed: int, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def split_folders(root: Path, count: int, **classes: str) -> Path:
    """root/SPLIT/CLASS/K.png, no image twice."""
    for i, (split, names) in enumerate((CLASSES | classes).items()):
        for j, name in enumerate(names.split()):
            for k in range(count):
                picture(root / split / name / f"{k}.png", 10_000 * i + 100 * j + k)
    return root


def class_folders(root: Path, side: int = 16, **counts: int) -> Path:
    """root/CLASS/K.png, as many as `counts` says; each class shines in a colour of its own, so there is something to learn."""
    for j, (name, count) in enumerate(counts.items()):
        for k in range(count):
            pixels = np.random.default_rng((j, k)).integers(0, 256, (side, side, 3), dtype=np.uint8)
            pixels[..., j % 3] |= 128 >> j // 3
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


def tree(root: Path) -> dict[str, str]:
    """Every path below `root` with the hash of what is in it."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }
