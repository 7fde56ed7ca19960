#!/usr/bin/env python3
"""Render a stand-in for CIFAR-100, in its file layout, from the fonts that arrive inside PyPI packages.

For trying and testing what reads or trains on CIFAR-100 where the real files cannot be had; no result on it compares
with one on CIFAR-100. A class is one character of the Latin, Greek or Cyrillic script; an image is that character in
one font face, slightly distorted, on a coloured ground. No font family is in both train and test.

The packages are those of `build_glyphs.py`; GLYPH_FONTS.md, beside this file, names them. From the root of the
repository (the last line takes half a minute on one core):

    env=$(mktemp -d)
    python3.11 -m venv "$env"
    "$env/bin/pip" install pillow==13.0.0 numpy==2.4.6 scipy==1.17.1 fonttools==4.68.0
    grep -oE '(fontpkg-[a-z0-9-]+|matplotlib)==[0-9a-z.]+' tools/GLYPH_FONTS.md | xargs "$env/bin/pip" install --no-deps

    "$env/bin/python" tools/build_font_cifar.py --out font-cifar

It writes font-cifar/cifar-100-python/{train,test,meta}, as Python 2 would. The same versions of the packages give the
same files. torchvision reads them through a subclass of CIFAR100 that asks for no MD5: train_list = [["train", None]],
test_list = [["test", None]], meta = {**CIFAR100.meta, "md5": None}.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from build_glyphs import (
    MATPLOTLIB_FONTS,
    MIN_BITMAPS,
    SAME_BITMAP,
    SAME_SHAPE,
    SCRIPTS,
    Bitmap,
    Character,
    Face,
    distinct_bitmaps,
    distort,
    faces_of,
    font_files,
    likeness,
    seeded,
)

SIDE = 32  # of an image
FOLDER = "cifar-100-python"
BATCH_LABELS = {"train": b"training batch 1 of 1", "test": b"testing batch 1 of 1"}
GROUP = 5  # fine classes in a coarse one
GROUPS = {"Latin": 10, "Greek": 5, "Cyrillic": 5}  # coarse classes of each script
TEST_FAMILIES = 0.25  # of all font families
LUMA = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue appear
CONTRAST = 70  # least difference in brightness, of 255, between ink and ground
NOISE = 12  # standard deviation, of 255


@dataclass(frozen=True)
class FineClass:
    """A character with its bitmaps from the train families (in `shape`) and from the test families."""

    name: str
    shape: Character
    test: list[Bitmap]


def family(face: Face, site: Path) -> str:
    """The first word of the package's name: `noto-sans-thai` has the Latin letters of `noto-sans`."""
    package = face.path.relative_to(site).parts[0]
    return package.removeprefix("fontpkg_").split("_")[0]


def part_families(faces: list[Face], site: Path) -> tuple[list[Face], list[Face]]:
    """The faces of the train and of the test families."""
    families = sorted({family(face, site) for face in faces})
    drawn = seeded("font-cifar", "families").permutation(len(families))[: round(TEST_FAMILIES * len(families))]
    held_out = {families[i] for i in drawn}
    train = [face for face in faces if family(face, site) not in held_out]
    return train, [face for face in faces if family(face, site) in held_out]


def unseen(bitmaps: list[Bitmap], seen: list[Bitmap]) -> list[Bitmap]:
    """The bitmaps that no seen one equals to the eye: some families took their letters over from another."""
    return [
        bitmap
        for bitmap in bitmaps
        if all((bitmap.ink & old.ink).sum() <= SAME_BITMAP * (bitmap.ink | old.ink).sum() for old in seen)
    ]


def choose_classes(train: list[Face], test: list[Face]) -> list[FineClass]:
    """GROUP times GROUPS characters of each script, of different shapes, sorted by name as in CIFAR-100.

    Raises:
        ValueError: where a script has too few.
    """
    chosen: list[FineClass] = []
    for script, groups in GROUPS.items():
        wanted = len(chosen) + GROUP * groups
        for char in SCRIPTS[script][1]:
            new = Character(char, script, "train", distinct_bitmaps(train, char, seeded("font-cifar", "train", script)))
            others = unseen(distinct_bitmaps(test, char, seeded("font-cifar", "test", script)), new.bitmaps)
            if min(len(new.bitmaps), len(others)) < MIN_BITMAPS:
                continue
            if all(likeness(new, old.shape) <= SAME_SHAPE for old in chosen):
                chosen.append(FineClass(f"{script.lower()}_{ord(char):04x}", new, others))
            if len(chosen) == wanted:
                break
        else:
            raise ValueError(f"only {len(chosen) - wanted + GROUP * groups} of {GROUP * groups} {script} characters")
    return sorted(chosen, key=lambda fine: fine.name)


def draw_colours(rng: np.random.RandomState) -> np.ndarray:
    """(3, 3): the RGB colours of the two ends of the ground, and of the ink, which stands out against both."""
    while True:
        colours = rng.uniform(0, 255, (3, 3))
        first, second, ink = colours @ LUMA
        if min(abs(first - ink), abs(second - ink)) >= CONTRAST:
            return colours


def paint(glyph: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: a smaller grey glyph, in colour on a gradient of two colours, with noise on each pixel."""
    ink = np.pad(glyph, (SIDE - len(glyph)) // 2)[..., None] / 255
    start, end, colour = draw_colours(rng)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    along = np.cos(angle) * x + np.sin(angle) * y
    share = ((along - along.min()) / np.ptp(along))[..., None]
    ground = start * (1 - share) + end * share
    noise = rng.standard_normal((SIDE, SIDE, 3)) * NOISE
    return np.clip(np.rint(ground * (1 - ink) + colour * ink + noise), 0, 255).astype(np.uint8)


def draw_part(classes: list[FineClass], part: str, count: int) -> dict[bytes, object]:
    """What CIFAR-100's file `part` holds: `count` images of each class, shuffled."""
    images, names = [], []
    for fine in classes:
        rng = seeded("font-cifar", part, fine.name)
        bitmaps = fine.shape.bitmaps if part == "train" else fine.test
        for i in range(count):  # where faces are too few they return, differently distorted and coloured
            bitmap = bitmaps[i % len(bitmaps)]
            images.append(paint(distort(bitmap.grey, rng), rng).transpose(2, 0, 1).reshape(-1))
            names.append(f"{fine.name}_{bitmap.face}_{i:06d}.png")
    order = seeded("font-cifar", part, "order").permutation(len(images))
    labels = order // count
    return {
        b"filenames": [names[i].encode() for i in order],
        b"batch_label": BATCH_LABELS[part],
        b"fine_labels": labels.tolist(),
        b"coarse_labels": (labels // GROUP).tolist(),
        b"data": np.stack(images)[order],
    }


def meta(classes: list[FineClass]) -> dict[bytes, object]:
    """What CIFAR-100's file `meta` holds; sorted, five neighbours are of one script and make a coarse class."""
    coarse = [f"{fine.shape.script.lower()}_from_{fine.name[-4:]}" for fine in classes[::GROUP]]
    return {
        b"fine_label_names": [fine.name.encode() for fine in classes],
        b"coarse_label_names": [name.encode() for name in coarse],
    }


def python2(value: object) -> bytes:
    """The instructions with which Python 2 and NumPy 1 pickled a value.

    Python 3 would write the keys so that `encoding="latin1"`, with which torchvision reads, does not give text.
    """
    match value:
        case None:
            return pickle.NONE
        case int():
            return pickle.BININT + struct.pack("<i", value)
        case bytes():
            return pickle.BINSTRING + struct.pack("<i", len(value)) + value
        case tuple():
            return pickle.MARK + b"".join(map(python2, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(python2, value)) + pickle.APPENDS
        case dict():
            items = b"".join(python2(key) + python2(item) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case np.ndarray():
            return python2_array(value)
    raise TypeError(f"cannot write a {type(value).__name__}")


def python2_array(array: np.ndarray) -> bytes:
    """The same for an array of bytes: an empty one is made, then filled."""
    made = pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n" + pickle.MARK + pickle.GLOBAL + b"numpy\nndarray\n"
    made += python2((0,)) + python2(b"b") + pickle.TUPLE + pickle.REDUCE
    dtype = pickle.GLOBAL + b"numpy\ndtype\n" + python2((array.dtype.str[1:].encode(), 0, 1)) + pickle.REDUCE
    dtype += python2((3, b"|", None, None, None, -1, -1, 0)) + pickle.BUILD
    content = python2(1) + python2(array.shape) + dtype + python2(0) + python2(array.tobytes())
    return made + pickle.MARK + content + pickle.TUPLE + pickle.BUILD


def parse_arguments() -> argparse.Namespace:
    site = next((Path(entry) for entry in sys.path if Path(entry, MATPLOTLIB_FONTS).is_dir()), None)
    parser = argparse.ArgumentParser(description="Render a stand-in for CIFAR-100 from fonts in installed packages.")
    parser.add_argument("--site", type=Path, default=site, help="the folder that the font packages are installed in")
    parser.add_argument("--out", type=Path, required=True, help=f"the folder to write {FOLDER}/ in")
    parser.add_argument("--train", type=int, default=100, help="train images of each class (default: %(default)s)")
    parser.add_argument("--test", type=int, default=20, help="test images of each class (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.site is None:
        parser.error("found no installed matplotlib: name the folder that holds it with --site")
    if min(arguments.train, arguments.test) < 1:
        parser.error("--train and --test must be at least 1")
    if (arguments.out / FOLDER).exists():
        parser.error(f"{arguments.out / FOLDER} exists: remove it, or choose another folder")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    started = time.monotonic()
    try:
        faces = [face for path in font_files(arguments.site) for face in faces_of(path)]
    except FileNotFoundError as error:
        sys.exit(f"build_font_cifar.py: {error} (see GLYPH_FONTS.md)")
    classes = choose_classes(*part_families(faces, arguments.site))
    contents = {
        "train": draw_part(classes, "train", arguments.train),
        "test": draw_part(classes, "test", arguments.test),
        "meta": meta(classes),
    }
    folder = arguments.out / FOLDER
    folder.mkdir(parents=True)
    for name, content in contents.items():
        pickled = pickle.PROTO + b"\x02" + python2(content) + pickle.STOP
        (folder / name).write_bytes(pickled)
        print(f"{name:5} {len(pickled):9} bytes {hashlib.sha256(pickled).hexdigest()}")
    print(f"{len(faces)} faces, {len(classes)} classes, {time.monotonic() - started:.0f} s: {folder}")


if __name__ == "__main__":
    main()
