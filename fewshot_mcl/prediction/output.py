"""Where answers go: a new folder with a table for spreadsheets and a page for people."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError
from fewshot_mcl.prediction.answers import NEAREST, Prediction
from fewshot_mcl.runs import files

NONE = "none of these"
COLUMNS = (
    "path", "class", "probability", "nearest class", "second class", "second probability", "score",
    *(f"nearest image {place + 1}" for place in range(NEAREST)), "same pixels as",
)  # fmt: skip


def new_folder(out: Path | None, queries: Sequence[Path]) -> Path:
    """Make the folder `out`, or predictions/NAME after the first query, then -2, -3, ...

    Raises:
        UserError: where `out` exists, or nothing can be made there.
    """
    if out is not None:
        return _made(out)
    name = re.sub(r"[^\w.]+", "-", queries[0].resolve().stem)[:80].strip("-.") or "queries"
    for number in range(1, 10**6):
        path = Path("predictions") / (name if number == 1 else f"{name}-{number}")
        if not os.path.lexists(path):
            return _made(path)
    raise UserError("predictions/ is full: choose another folder, --out FOLDER.")


def _made(path: Path) -> Path:
    refuse_existing(path)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot make {printable(path)}: {error.strerror}. Choose another place: --out FOLDER."
        ) from error
    return path


def refuse_existing(path: Path) -> None:
    """Raise `UserError` where something is at `path`."""
    if os.path.lexists(path):
        raise UserError(f"{printable(path)} exists, and nothing is overwritten: choose another --out.")


def cell(text: str) -> str:
    """A name as a cell of a table: on one line, and text even to a spreadsheet that takes =, +, - and @ for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(("=", "+", "-", "@")) else shown


def write_table(path: Path, predictions: Sequence[Prediction]) -> int:
    """Write the CSV file; how many of its rows have a name that was prefixed with ' to keep it from being a formula."""
    out, prefixed = io.StringIO(), 0
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in predictions:
        nearest = [*each.nearest, *[""] * (NEAREST - len(each.nearest))]
        label = NONE if each.label is None else each.label
        names = [each.path, label, each.best, each.second, *nearest, each.same_as]
        prefixed += any(cell(name) != printable(name) for name in names)
        writer.writerow([
            cell(each.path), cell(label), f"{each.probability:.4f}", cell(each.best), cell(each.second),
            f"{each.second_probability:.4f}", f"{each.score:.6g}", *map(cell, nearest), cell(each.same_as),
        ])  # fmt: skip
    files.write(path, out.getvalue().encode("utf-8", "backslashreplace"))
    return prefixed
