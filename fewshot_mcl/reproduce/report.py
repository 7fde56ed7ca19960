"""A reproduced table as Markdown: the paper's figures beside ours, and what may be said of the differences.

Whichever way the paper prints a table, here methods are rows, and what they are compared on (networks, or shots) columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewshot_mcl import __version__
from fewshot_mcl.data.names import markdown
from fewshot_mcl.evaluation.session import Protocol
from fewshot_mcl.evaluation.statistics import Result, pooled
from fewshot_mcl.reproduce.cells import Cell
from fewshot_mcl.reproduce.paper import LABELS, Figure, Table
from fewshot_mcl.reproduce.results import Found, is_papers_data

SETTINGS = (
    "batch",
    "lr",
    "way",
    "query",
    "image_size",
    "color",
    "augment",
    "precision",
    "images_per_class",
    "val_share",
    "share",
)


@dataclass(frozen=True)
class Series:
    """A line of the report: one network of a method's runs, and the name by which the paper's figure of it is found."""

    label: str
    method: str
    network: str
    name: str = ""


class Report:
    """The text of one table.

    Args:
        table: of the paper.
        cells: its finished runs.
        found: their figures, in the same order.
        protocol: of the episodes, or None; its shots are those of the columns.
    """

    def __init__(self, table: Table, cells: list[Cell], found: list[Found], protocol: Protocol | None) -> None:
        self.table, self.cells, self.protocol = table, cells, protocol
        self.few_shot = table.task == "few-shot"
        self.content = found[0].content
        self.of_paper = all(is_papers_data(each.content, table.data) for each in found)
        self.runs: dict[tuple[str, str], list[Found]] = {}  # (group, method) -> by seed
        for cell, each in zip(cells, found):
            self.runs.setdefault(self._place(cell.row, cell.column), []).append(each)
        self.groups = list(dict.fromkeys(group for group, _ in self.runs))
        self.series = self._series()

    def _place(self, row: str, column: str) -> tuple[str, str]:
        return (column, row) if self.few_shot else (row, column.partition(" ")[0])

    def _series(self) -> list[Series]:
        methods = {method for _, method in self.runs}
        names = self.table.rows if self.few_shot else self.table.columns
        series = []
        for name in (name for name in names if name.partition(" ")[0] in methods):
            method, _, network = name.partition(" ")
            networks = next(runs for (_, each), runs in self.runs.items() if each == method)[0].networks
            twice = self.table.network == "ensemble" and "ensemble as published" in networks
            series.append(Series(_label(name), method, network or self.table.network, "" if twice else name))
            if self.few_shot and "ensemble" in networks:
                series.append(Series(f"{_label(name)}, ensemble", method, "ensemble"))
            if twice:
                label = f"{_label(name)}, last peer left out as published"
                series.append(Series(label, method, "ensemble as published", name))
        return series

    def text(self) -> str:
        """The whole page."""
        parts = [*self._heading(), self._figures(), self._against_baseline(), self._against_best_rival()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _heading(self) -> list[str]:
        content, seeds = self.content, len({cell.seed for cell in self.cells})
        minutes = sum(each.minutes for runs in self.runs.values() for each in runs)
        data = markdown(content["data"]) + "".join(f" ({markdown(note)})" for note in content["notes"])
        other = "This is not the data of the paper's table: its figures are of another kind, shown for reference only."
        return [
            f"# {self.table.title}",
            f"fewshot-mcl {__version__}, torch {torch.__version__}. Data: {data}, test split, {content['classes']} "
            f"classes, {content['images']:,} images of {content['image_size']} pixels. {_budget(self.cells)}, {seeds} "
            f"seed{'s' * (seeds > 1)}; {minutes:.0f} minutes of training in all. {_settings(self.cells)}",
            "" if self.of_paper else other,
            self._measure(),
        ]

    def _measure(self) -> str:
        """What a figure is."""
        p = self.protocol
        if p is None:
            which = "the deployed peer" if self.table.network == "deployed" else "the ensemble of all peers"
            what = f"Top-1 error in % after the last epoch, of {which} where a line does not say otherwise"
            over = f"test images (1.96 s / sqrt N of the seeds' mean, N = {self.content['images']:,})"
        else:
            what = (
                f"Accuracy in % on {p.episodes:,} episodes (seed {p.seed}), {p.way}-way, {p.query} queries a class, the same for "
                "every line; best checkpoint by validation; of the deployed peer where a line does not say otherwise"
            )
            over = "episodes (1.96 s / sqrt E of the seeds' mean)"
        return (
            f"{what}. Mean over training seeds ± 95% interval over {over}; in brackets the deviation over seeds, which the "
            "interval does not cover."
        )

    def _figures(self) -> str:
        paper = f"paper, on {self.table.data}"
        head = ["", *(f"{_label(group)}, {kind}" for group in self.groups for kind in (paper, "here")), "min a run"]
        lines = [_line(head), _line(["---"] * len(head))]
        for each in self.series:
            cells = [
                text
                for group in self.groups
                for text in (_published(self._paper(group, each)), self._figure(group, each))
            ]
            runs = [run.minutes for group in self.groups for run in self.runs.get((group, each.method), [])]
            lines.append(_line([each.label, *cells, f"{sum(runs) / len(runs):.1f}"]))
        return "\n".join(lines)

    def _paper(self, group: str, series: Series) -> Figure | None:
        row, column = (series.name, group) if self.few_shot else (group, series.name)
        return self.table.figures.get(row, {}).get(column)

    def _results(self, group: str, series: Series) -> list[Result]:
        runs = self.runs.get((group, series.method), [])
        return [run.networks[series.network] for run in runs if series.network in run.networks]

    def _figure(self, group: str, series: Series) -> str:
        results = self._results(group, series)
        if not results:
            return "-"
        mean = pooled(results)
        value = mean.mean if self.few_shot else 1 - mean.mean
        spread = f" ({100 * float(torch.tensor([r.mean for r in results]).std()):.2f})" if len(results) > 1 else ""
        return f"{100 * value:.2f} ± {100 * mean.ci95:.2f}{spread}"

    def _against_baseline(self) -> str:
        base = Series("", "baseline", "deployed")
        others = [each for each in self.series if each.method != "baseline"]
        if not any(self._results(group, base) for group in self.groups) or not others:
            return ""
        lines = [_line(["", *map(_label, self.groups)]), _line(["---"] * (1 + len(self.groups)))]
        for each in others:
            lines.append(_line([each.label, *(self._difference(group, each, base) for group in self.groups)]))
        pairs, sign = ("episode", "") if self.few_shot else ("image", " Of errors: negative is better.")
        head = f"Minus Baseline, paired by seed and {pairs}: mean ± 95% interval (each seed's own).{sign}"
        return head + "\n\n" + "\n".join(lines)

    def _against_best_rival(self) -> str:
        main = [each for each in self.series if each.network == self.table.network]
        ours = next((each for each in main if each.method == "mcl-okd"), None)
        rivals = [each for each in main if not each.method.startswith(("baseline", "mcl"))]
        lines = []
        for group in self.groups:
            there = [each for each in rivals if self._results(group, each)]
            if ours and there and self._results(group, ours):
                best = max(there, key=lambda each: pooled(self._results(group, each)).mean)
                difference = self._difference(group, ours, best)
                lines.append(
                    f"* {_label(group)}: MCL-OKD minus {best.label}, the best rival by these very figures: {difference}"
                )
        return "\n".join(lines)

    def _difference(self, group: str, ours: Series, theirs: Series) -> str:
        first, second = self._results(group, ours), self._results(group, theirs)
        if not first or len(first) != len(second):
            return "-"
        by_seed = [a.minus(b) for a, b in zip(first, second)]
        sign, mean = (1 if self.few_shot else -1), pooled(by_seed)
        each = ", ".join(f"{100 * sign * r.mean:+.2f}" for r in by_seed)
        return f"{100 * sign * mean.mean:+.2f} ± {100 * mean.ci95:.2f} ({each})"


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _published(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    mean, deviation = figure
    return f"{mean:.2f}" + (f" ({deviation:.2f})" if deviation is not None else "")


def _budget(cells: list[Cell]) -> str:
    """How long the runs trained, in words."""
    name = "epochs" if cells[0].config.task == "classify" else "episodes"
    lengths = sorted({cell.config.flat()[name] for cell in cells})
    return f"{' or '.join(f'{length:,}' for length in lengths)} training {name}"


def _settings(cells: list[Cell]) -> str:
    """The settings that matter in a comparison; where runs differ, all their values."""
    flats = [cell.config.flat() for cell in cells]
    values = {name: list(dict.fromkeys(str(flat.get(name)) for flat in flats)) for name in SETTINGS}
    parts = [f"{name} {' or '.join(each)}" for name, each in values.items() if each != ["None"]]
    return f"Settings: {', '.join(parts)}."
