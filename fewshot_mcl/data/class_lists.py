"""The lists beside a folder of images: `train.csv`, `val.csv`, `test.csv`.

Three kinds, told apart by their first line: images under `filename,label`, images under `class_name,image_name`
(further columns are allowed in both), and classes in the first column, with or without a header.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from fewshot_mcl.data.listing import SPLIT_NAMES, Classes, class_tree, image_files, scan, take_split
from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.errors import UserError

Finder = Callable[[str, str], Path | None]  # (class, file name in a list) -> the file, where there is one

MOST_BYTES, MOST_LINES, LONGEST = 1 << 26, 1 << 21, 1 << 16  # of a list and, in characters, of a line
IMAGE_COLUMNS = (("label", "filename"), ("class_name", "image_name"))  # class, file


@dataclass(frozen=True)
class Row:
    """A class, or one image of it, and the line it stands on."""

    line: int
    label: str
    file: str | None


@dataclass(frozen=True)
class ClassList:
    """One list. `columns`: those of an image list. `header`: the first line of a class list, where it is no class."""

    path: Path
    rows: list[Row]
    columns: tuple[str, str] | None
    header: str | None


@dataclass
class Listed:
    """What the lists of a folder come to."""

    files: dict[str, Classes] = field(default_factory=dict)  # by split
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kind: str = ""


def split_lists(root: Path) -> dict[str, Path]:
    """The lists at `root` by split."""
    found: dict[str, Path] = {}
    for name in SPLIT_NAMES:
        if (root / f"{name}.csv").is_file():
            take_split(found, root / f"{name}.csv")
    return found


def read_lists(root: Path, paths: dict[str, Path], find: Finder) -> Listed:
    """The images that the lists of a folder name, one by one or by class."""
    tree = class_tree(root)
    folders = scan(tree)[0]
    lists = {split: read_list(path, folders) for split, path in paths.items()}
    listed = Listed()
    for split, each in lists.items():
        listed.files[split] = _images(each, find, listed) if each.columns else _classes(each, tree, listed)
    listed.kind = " and ".join(sorted({" and ".join(each.columns or ("class",)) for each in lists.values()}))
    by_class = [each for each in lists.values() if each.columns is None]
    _judge_headers(by_class, listed)
    unlisted = set(folders) - {name for classes in listed.files.values() for name in classes}
    if unlisted and by_class:
        names = first_few([printable(name) for name in sorted(unlisted)])
        listed.notes.append(f"{len(unlisted)} folders are in no list and stay unused: {names}")
    return listed


def read_list(path: Path, class_folders: Collection[str]) -> ClassList:
    """Read one list; a first line that names no class folder is a header.

    Raises:
        UserError: where the file is empty, no text, or lacks a cell.
    """
    lines = _cells(path)
    if not lines:
        raise UserError(f"{printable(path)} is empty: write one class name per line.")
    first = [cell.lower() for cell in lines[0][1]]
    columns = next((pair for pair in IMAGE_COLUMNS if set(pair) <= set(first)), None)
    if columns is not None:
        label, file = (first.index(column) for column in columns)
        return ClassList(path, [_image_row(path, line, cells, label, file) for line, cells in lines[1:]], columns, None)
    header = None if lines[0][1][0] in class_folders else lines.pop(0)[1][0]
    return ClassList(path, [Row(line, cells[0], None) for line, cells in lines], None, header)


def _cells(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, stripped cells) of every line that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.stat().st_size > MOST_BYTES:
                raise csv.Error(f"it has more than {MOST_BYTES:,} bytes")
            reader = csv.reader(_lines(file))
            rows = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
            return [(line, cells) for line, cells in rows if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{printable(path)} is no readable csv file ({error}): save it as UTF-8 text.") from error


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a list, as long as there are no more of them, and none is longer, than a list has."""
    for number, line in enumerate(file, 1):
        if number > MOST_LINES or len(line) > LONGEST:
            raise csv.Error(f"line {number:,} is too long or one too many")
        yield line


def _image_row(path: Path, line: int, cells: list[str], label: int, file: int) -> Row:
    if len(cells) <= max(label, file) or not cells[label] or not cells[file]:
        raise UserError(f"{printable(path)}, line {line}: a class and a file name are needed.")
    return Row(line, cells[label], cells[file])


def _classes(each: ClassList, tree: Path, listed: Listed) -> Classes:
    folders, classes = set(scan(tree)[0]), Classes()
    for row in each.rows:
        where = f"{each.path.name}, line {row.line}: class '{printable(row.label)}'"
        if row.label in classes:
            listed.problems.append(f"{where} is listed twice (a list of images needs the header filename,label)")
        elif row.label not in folders or not (files := image_files(tree / row.label)):
            listed.problems.append(f"{where} has no folder with images in {printable(tree)}")
        else:
            classes[row.label] = files
    return classes


def _images(each: ClassList, find: Finder, listed: Listed) -> Classes:
    classes: Classes = {}
    seen: set[Path] = set()
    for row in each.rows:
        path = find(row.label, row.file or "")
        if path is None:
            listed.problems.append(f"{each.path.name}, line {row.line}: no file '{printable(row.file)}' is there")
        elif path in seen:
            listed.problems.append(f"{each.path.name}, line {row.line}: file '{printable(row.file)}' is listed twice")
        else:
            seen.add(path)
            classes.setdefault(row.label, []).append(path)
    return classes


def _judge_headers(lists: list[ClassList], listed: Listed) -> None:
    """A header is the same in every list; a first line that differs is a misspelt class more likely than not."""
    differ = len({each.header.lower() for each in lists if each.header is not None}) > 1
    for each in lists:
        if each.header is None:
            continue
        line = f"{each.path.name}, line 1: '{printable(each.header)}'"
        if differ:
            listed.problems.append(f"{line} is no class folder, nor the header of the other lists")
        else:
            listed.notes.append(f"{line} taken as a header")
