"""The lists of CUB_200_2011: lines of numbers and names, `images.txt` saying which file image 1, 2, ... is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fewshot_mcl.data.listing import Classes, NamedFiles
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError

FILES = ("images.txt", "image_class_labels.txt", "classes.txt")
MOST_BYTES = 1 << 24  # of a list

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


@dataclass
class Birds:
    """What the lists come to: the files of each class, the boxes that were asked for, and what is wrong with them."""

    root: Path
    classes: Classes = field(default_factory=dict)
    boxes: dict[Path, Box] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_birds(root: Path, boxes: bool) -> Birds:
    """The published folder at `root`, an existing folder.

    Args:
        root: holds the lists and images/.
        boxes: read `bounding_boxes.txt` too.

    Raises:
        UserError: where a list is missing, is no text, or has a line of another form.
    """
    wanted = [*FILES, *(["bounding_boxes.txt"] if boxes else [])]
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing or not (root / "images").is_dir():
        lacks = " and ".join([*missing, *([] if (root / "images").is_dir() else ["images/"])])
        raise UserError(f"{printable(root)} lacks {lacks}: CUB_200_2011 has them beside each other. Unpack it again.")
    names = {number: text for number, (text,) in _lines(root / "classes.txt", 1).items()}
    labels = {number: text for number, (text,) in _lines(root / "image_class_labels.txt", 1).items()}
    listed = {number: text for number, (text,) in _lines(root / "images.txt", 1).items()}
    found, birds, problems = NamedFiles(root), Birds(root), []
    sides = _lines(root / "bounding_boxes.txt", 4) if boxes else {}
    for number, text in listed.items():
        file = PurePosixPath(text)
        label = names.get(labels.get(number, ""))
        path = found(file.parent.name, file.name) if file.parent.name == label else None
        if label is None:
            problems.append(f"images.txt: image {number} has no class in image_class_labels.txt and classes.txt")
        elif file.parent.name != label:
            problems.append(f"images.txt: '{printable(text)}' is not of class {printable(label)}, as its label says")
        elif path is None:
            problems.append(f"images.txt: no file 'images/{printable(text)}' is there")
        elif boxes and number not in sides:
            problems.append(f"bounding_boxes.txt: image {number} has no box")
        else:
            birds.classes.setdefault(label, []).append(path)
            if boxes:
                birds.boxes[path] = _box(root, number, sides[number])
    birds.problems = tuple(problems)
    return birds


def _box(root: Path, number: str, sides: list[str]) -> Box:
    try:
        left, top, width, height = map(float, sides)
        if math.isfinite(left + top + width + height):
            return left, top, left + width, top + height
    except ValueError:
        pass
    raise UserError(f"{printable(root / 'bounding_boxes.txt')}: the box of image {number} is not four numbers.")


def _lines(path: Path, columns: int) -> dict[str, list[str]]:
    """The rest of each line by the number that it begins with."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{printable(path)} cannot be read as a list ({printable(error)[:100]}).") from error
    for i, row in enumerate(rows):
        if len(row) != 1 + columns:
            raise UserError(f"{printable(path)}, line {i + 1}: a number and {columns} more expected. Fetch it again.")
    if len({row[0] for row in rows}) < len(rows):
        raise UserError(f"{printable(path)} gives one number twice: fetch it again.")
    return {row[0]: row[1:] for row in rows}
