"""The page of a comparison."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from fewshot_mcl.comparison import words
from fewshot_mcl.comparison.session import Comparison
from fewshot_mcl.data.names import first_few
from fewshot_mcl.pages import PALETTE, write_page
from fewshot_mcl.pages.charts import chart, new_figure

ROW = 0.42  # inches
DOT, SQUARE = "o", "s"


def write(found: Comparison, path: Path, command: list[str]) -> Path:
    """Write the page; `command` makes it again.

    Raises:
        UserError: without matplotlib, or where something else lies at `path`.
    """
    charts = [_accuracies(found)]
    if found.pairs:
        charts.append(_differences(found))
    sides = [[f"{g.letter}  {g.name}", ", ".join(map(str, g.seeds)), _paths(found, g.letter)] for g in found.groups]
    settings = [[name, *values] for name, values in found.differing.items()]
    exact = [
        [f"{pair.first.letter} - {pair.second.letter}", each.seed, words.p_value(each.holm)]
        for pair in found.pairs
        for each in pair.exact
    ]
    return write_page(
        path, "compare.html", title=_title(found), command=command, heading=words.heading(found), unit=words.unit(found),
        sentences=words.sentences(found), charts=charts, groups=sides, accuracies=words.accuracy_rows(found),
        pairs=words.difference_rows(found), letters=[g.letter for g in found.groups], settings=settings, notes=found.notes,
        exact=exact, explanation=words.explanation(found) if found.pairs else [],
    )  # fmt: skip


def _title(found: Comparison) -> str:
    return f"Compared: {first_few([group.name for group in found.groups], 4)}"


def _paths(found: Comparison, letter: str) -> str:
    [group] = [group for group in found.groups if group.letter == letter]
    return ", ".join(str(run.path) for run in group.runs.values())


def _accuracies(found: Comparison) -> Markup:
    """A dot a group with its interval over episodes, a small square for each seed."""
    rows = [(measure, group) for measure in found.measures for group in found.groups]
    figure, axes = new_figure(7, 1.1 + ROW * len(rows))
    said = []
    for y, (measure, group) in enumerate(rows):
        result, spread = words.summary(found, group, measure)
        color = PALETTE[found.groups.index(group) % len(PALETTE)]
        means = [100 * float(values.mean()) for values in found.accuracies(group, measure).values()]
        if spread is not None:
            axes.plot(means, [y + 0.22] * len(means), SQUARE, color=color, markersize=4, alpha=0.8)
        axes.errorbar(100 * result.mean, y, xerr=100 * result.ci95, fmt=DOT, color=color, capsize=4)
        over = "" if spread is None else f", seeds {' '.join(f'{mean:.2f}' for mean in means)}"
        said.append(f"{group.letter} {measure} {100 * result.mean:.2f} ± {100 * result.ci95:.2f}{over}")
    axes.set_yticks(range(len(rows)), [f"{group.letter}, {measure}" for measure, group in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"accuracy in %; bar: 95% over {words.unit(found)}; squares: training seeds")
    return chart(figure, "Accuracy", "; ".join(said))


def _differences(found: Comparison) -> Markup:
    """A dot a pair with its interval over episodes, a square with that over seeds beside it, and a line at zero."""
    figure, axes = new_figure(7, 1.1 + 1.3 * ROW * len(found.pairs))
    said = []
    axes.axvline(0, color="#888888", linewidth=1.5)
    for y, pair in enumerate(found.pairs):
        for difference, offset, mark, color in (
            (pair.episodes, 0.0, DOT, PALETTE[0]),
            (pair.seeds, 0.25, SQUARE, PALETTE[1]),
        ):
            if difference is not None:
                mean = 100 * difference.mean
                ends = [[mean - 100 * difference.low], [100 * difference.high - mean]]
                axes.errorbar(mean, y + offset, xerr=ends, fmt=mark, color=color, capsize=4)
        name = f"{pair.first.letter} - {pair.second.letter}, {pair.measure}"
        over = f", over seeds {words.interval(pair.seeds.low, pair.seeds.high)}" if pair.seeds else ""
        mean = 100 * pair.episodes.mean
        said.append(f"{name}: {mean:+.2f} ({words.interval(pair.episodes.low, pair.episodes.high)}{over})")
    axes.set_yticks(
        range(len(found.pairs)), [f"{p.first.letter} - {p.second.letter}, {p.measure}" for p in found.pairs]
    )
    axes.set_ylim(len(found.pairs) - 0.4, -0.6)
    squares = "; squares: 95% over seeds" if any(pair.seeds for pair in found.pairs) else ""
    axes.set_xlabel(f"difference in points; dots: 95% over {words.unit(found)}{squares}")
    return chart(figure, "Differences", "; ".join(said))
