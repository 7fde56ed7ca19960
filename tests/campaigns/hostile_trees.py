# ruff: noqa: E501 (tables of bytes)
"""Folders of images to be fuzzed: names that command terminals, links in circles, pipes, devices, and what leaves the folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
from pathlib import Path

from builders import picture
from guarded import Case

from fewshot_mcl.data.check import check
from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import UserError

NAMES = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"train", b"val", b"test", b"valid", b"images", b"\x1b[2J\x1b]0;owned\x07", b"a\nb", b"\r", b"\xff\xfe", b"...", b" ",
         b"<script>alert(1)</script>", b"[red]x[/red]", b"$(touch ran)", b"a;b", b"-rf", "\u202egnp.exe".encode(), b"x" * 250, b"\xc2\x9b2J", b"~", b"a'b\"c", b"%s%n", b"\\", b"{}", b".hidden"]  # fmt: skip
SUFFIXES = [b".png", b".PNG", b".jpg", b".txt", b"", b".png\n", b".gif"]
KINDS = (
    "image",
    "image",
    "image",
    "image",
    "empty",
    "text",
    "self",
    "loop",
    "nowhere",
    "pipe",
    "socket",
    "device",
    "folder",
    "locked",
    "up",
)


def _place(draw: random.Random, path: bytes, image: bytes, root: bytes, kinds: tuple[str, ...] = KINDS) -> None:
    """One thing of a kind at `path`."""
    kind = draw.choice(kinds)
    with contextlib.suppress(OSError):
        if kind in ("image", "empty", "text", "locked"):
            Path(os.fsdecode(path)).write_bytes({"empty": b"", "text": b"hello"}.get(kind, image))
            if kind == "locked":
                os.chmod(path, 0)
        elif kind in ("self", "nowhere", "device", "up", "loop"):
            ends = {"self": path, "nowhere": b"/nowhere", "up": b"..", "loop": root}
            os.symlink(
                ends.get(kind) or draw.choice((b"/dev/zero", b"/dev/stdin", b"/dev/tty", b"/proc/self/mem")), path
            )
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
        else:
            os.mkdir(path)


def grow(draw: random.Random, root: Path, image: bytes) -> None:
    """A tree of up to three levels with hostile names and things."""
    base = os.fsencode(root)
    os.makedirs(base)
    splits = [b"train", b"val", b"test"] if draw.random() < 0.6 else [b""]
    sound = draw.random() < 0.5
    names = draw.sample(NAMES, len(NAMES))
    for split in splits:
        for name in (names.pop() for _ in range(draw.randrange(6, 9))):
            folder = os.path.join(base, split, name)
            with contextlib.suppress(OSError):
                os.makedirs(folder, exist_ok=True)
            for number in range(3 if sound else draw.randrange(5)):
                end = b"%d" % number + (b".png" if sound else draw.choice(SUFFIXES))
                place = os.path.join(folder, draw.choice(NAMES)[:200] + end)
                _place(draw, place, image, base, ("image",) if sound else KINDS)
        if not sound:
            _place(draw, os.path.join(base, split, draw.choice(NAMES)), image, base)
    if draw.random() < 0.2:
        with contextlib.suppress(OSError):
            lines = b"\n".join(draw.choice(NAMES) for _ in range(4))
            (root / f"{draw.choice(('train', 'val', 'test'))}.csv").write_bytes(lines)


def case(folder: Path) -> Case:
    """`data check`, and loading for either task; every line that is to be shown must be fit for a terminal."""
    image = picture(folder / "one.png").read_bytes()
    root = folder / "tree"

    def read(draw: random.Random, number: int) -> object:
        shutil.rmtree(root, ignore_errors=True)
        grow(draw, root, image)
        options = ImageOptions(
            image_size=8, on_bad_image=draw.choice(("skip", "refuse")), decode=draw.choice(("once", "always"))
        )
        task = draw.choice(("few-shot", "classify"))
        for line in check(str(root), None, options, task).lines():
            assert line.isprintable(), f"not fit for a terminal: {line!r}"
        try:
            source = (open_source if task == "few-shot" else open_labelled)(str(root), None, options)
            stores = [source.load(split, options) for split in source.splits]
            pixels = [store.images[: len(store)] for store in stores]
            for note in source.notes:
                assert note.isprintable(), f"not fit for a terminal: {note!r}"
        except UserError as error:
            if str(error) != printable(error):  # the command line escapes it once more; here it is to be fit already
                raise AssertionError(f"not fit for a terminal: {str(error)!r}") from error
            raise
        return pixels

    return read
