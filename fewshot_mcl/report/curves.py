"""How training went: every loss term, every peer, validation with intervals, and the learning rate."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import DamagedError
from fewshot_mcl.pages import PALETTE, fragment
from fewshot_mcl.pages.charts import INK, chart, new_figure
from fewshot_mcl.report.material import Material
from fewshot_mcl.runs import Run
from fewshot_mcl.runs.files import read

HEADING = "How training went"
ANCHOR = "curves"
SIZE = (4.4, 2.9)  # inches: on a phone a chart is shrunk by a fifth, and still to be read
DASHES = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)))
MARKERS = "osD^vPX"
POINTS = 800  # of a line; more cannot be told apart, and fill the page

Columns = dict[str, list[float | None]]


def section(material: Material) -> Markup:
    """The curves of a few-shot run, with the checkpoint that the report is of."""
    c = material.config
    episodes = f"{c.val_query} queries a class, {c.val_episodes} fixed episodes of the validation split"
    what = f"{c.val_way}-way {c.val_shot}-shot, {episodes}"
    return render(material.run, material.state["episode"], what)


def render(run: Run, kept: int | None, validated: str) -> Markup:
    """The curves of any run.

    Args:
        run: whose metrics.csv is drawn; where it has none there is nothing to say.
        kept: the step of the checkpoint that is marked.
        validated: what validation measured, in words.

    Raises:
        UserError: if the file is damaged.
    """
    columns, unit = metrics(run), run.config.unit
    steps = columns.pop(unit, [])
    if not steps:
        return Markup()
    rate = columns.pop("lr", [])
    peers = {name: columns[name] for name in columns if re.fullmatch(r"peer\d+", name)}
    terms = {name: columns[name] for name in columns if name not in peers and not name.startswith("val ")}
    charts = [_lines(steps, {name: values}, _title(name), unit, kept) for name, values in terms.items()]
    if peers:
        named = {name.replace("peer", "peer "): values for name, values in peers.items()}
        charts.append(_lines(steps, named, "Class loss of each peer", unit, kept))
    charts.append(_lines(steps, {"learning rate": rate}, "Learning rate", unit, kept))
    validation = _validation(steps, columns, unit, kept, validated)
    return fragment("report/curves.html", unit=unit, kept=kept, charts=charts, validation=validation)


def metrics(run: Run) -> Columns:
    """The columns of metrics.csv, None where a row has no value; a last line that is still being written is left out.

    Raises:
        UserError: if it holds something else than numbers.
    """
    path = run.path / "metrics.csv"
    if not path.exists():
        return {}
    lines = [line for line in read(path).decode("utf-8", "replace").splitlines(keepends=True) if line.endswith("\n")]
    rows = list(csv.reader(lines))
    try:
        values = [[float(text) if text else None for text in row] for row in rows[1:]]
        if any(len(row) != len(rows[0]) or row[0] is None for row in values):
            raise ValueError("a row of another length")
    except ValueError as error:
        raise DamagedError(f"{path} is damaged ({str(error)[:80]})", "Put the file back from a copy.") from error
    return {name: [row[i] for row in values] for i, name in enumerate(rows[0])} if rows else {}


def style(number: int) -> dict[str, Any]:
    """Colour and dash of line `number`: lines of equal colour differ by their dashes."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": DASHES[(number + number // len(PALETTE)) % len(DASHES)],
    }


def _title(term: str) -> str:
    return "Total loss" if term == "total" else f"Loss term {printable(term)}"


def _points(steps: Sequence[float | None], values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    pairs = [(step, value) for step, value in zip(steps, values) if step is not None and value is not None]
    kept = pairs[:: -(-len(pairs) // POINTS) or 1]
    return [step for step, _ in kept], [value for _, value in kept]


def _mark(axes: Any, kept: int | None, unit: str) -> None:
    axes.set_xlabel(unit)
    axes.set_xlim(left=0)
    if kept is not None:
        axes.axvline(kept, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.2)


def _lines(steps: list[Any], lines: Columns, title: str, unit: str, kept: int | None) -> Markup:
    """A chart of one or several lines, and their first and last values in words."""
    figure, axes = new_figure(*SIZE)
    words = []
    for number, (name, values) in enumerate(lines.items()):
        x, y = _points(steps, values)
        few = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4} if len(x) < 30 else {}
        axes.plot(x, y, label=name, linewidth=1.6, **style(number), **few)
        if x:
            words.append(
                f"{f'{name}: ' if len(lines) > 1 else ''}{y[0]:.3g} at {unit} {x[0]:.0f}, {y[-1]:.3g} at {x[-1]:.0f}"
            )
    if len(lines) > 1:
        axes.legend(fontsize=8, ncols=2)
    _mark(axes, kept, unit)
    return chart(figure, title, "; ".join(words) + ".")


def _validation(steps: list[Any], columns: Columns, unit: str, kept: int | None, validated: str) -> Markup | None:
    """Validation accuracy of every network, with the intervals of the deployed peer and the ensemble as bands."""
    names = [name.removeprefix("val ") for name in columns if name.startswith("val ") and not name.endswith(" ci95")]
    if not any(value is not None for name in names for value in columns[f"val {name}"]):
        return None
    figure, axes = new_figure(*SIZE)
    banded = {max((name for name in names if name != "ensemble"), key=_number), "ensemble"}
    words = []
    for number, name in enumerate(names):
        x, means = _points(steps, columns[f"val {name}"])
        _, halves = _points(steps, columns.get(f"val {name} ci95", []))
        y = [100 * mean for mean in means]
        look, ends = style(number), [100 * half for half in halves]
        axes.plot(x, y, label=name, linewidth=1.6, marker=MARKERS[number % len(MARKERS)], markersize=4, **look)
        if name in banded and len(ends) == len(y):
            low, high = ([a + s * b for a, b in zip(y, ends)] for s in (-1, 1))
            axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
        at = x.index(kept) if kept in x else -1
        half = f" ± {ends[at]:.1f}" if len(ends) == len(y) else ""
        words.append(f"{name} {y[at]:.1f}{half} at {unit} {x[at]:.0f}")
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    _mark(axes, kept, unit)
    said = f"{validated}. {'; '.join(words)}. Bands are 95% intervals of {' and '.join(sorted(banded & set(names)))}."
    return chart(figure, "Accuracy in validation, in %", said)


def _number(name: str) -> int:
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else -1
