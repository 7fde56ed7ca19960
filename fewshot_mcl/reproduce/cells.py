"""The cells of a table: what has to be trained for it, and what has been already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot_mcl.config import COMMANDS, Config, resolve
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.objectives import options_of
from fewshot_mcl.progress import tracked
from fewshot_mcl.reproduce.paper import Table
from fewshot_mcl.runs import Run


@dataclass(frozen=True)
class Choice:
    """What of a table is wanted, on which data, at what budget.

    Attributes:
        rows, columns: names of the table's; empty for all of them.
        seeds: how many; 0, 1, ...
        config: a recipe or file in the place of the table's own recipe.
        options, settings: as for `config.resolve`.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    seeds: int
    config: str | None
    options: dict[str, Any]
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        row, column, seed: where its figure goes.
        config: of the run.
        path: its directory.
    """

    row: str
    column: str
    seed: int
    config: Config
    path: Path

    @property
    def done(self) -> bool:
        return (self.path / "model.json").exists()


def cells_of(table: Table, choice: Choice, out: Path) -> list[Cell]:
    """The runs that the chosen part of a table needs, baselines first: RKD learns from the one of its own seed.

    Raises:
        UserError: for a row or column that the table lacks, or a run in `out` that was made with other settings.
    """
    rows, columns = _chosen("row", choice.rows, table.rows), _chosen("column", choice.columns, table.columns)
    if table.task == "few-shot" and "baseline" not in rows and any(row.startswith("rkd") for row in rows):
        raise UserError("RKD learns from the baseline: add it, --rows baseline.")
    _require_options(table, rows, columns, choice.settings)
    cells = [
        _cell(table, row, column, seed, choice, out)
        for seed in range(choice.seeds)
        for row in rows
        for column in columns
    ]
    unique = {cell.path: cell for cell in cells}  # a network and its ensemble are one run
    for cell in unique.values():
        _refuse_other_settings(cell)
    return sorted(unique.values(), key=lambda cell: (cell.seed, cell.config.method != "baseline"))


def _chosen(kind: str, asked: tuple[str, ...], valid: tuple[str, ...]) -> tuple[str, ...]:
    for name in asked:
        if name not in valid:
            raise unknown(kind, name, valid)
    return tuple(name for name in valid if name in asked) if asked else valid


def _method(table: Table, row: str, column: str) -> str:
    """The method of a cell; a variant of MCL-OKD is MCL-OKD."""
    name = column.partition(" ")[0] if table.task == "classify" else row
    return "mcl-okd" if name.startswith("mcl-okd") else name


def _option(setting: str) -> str:
    """X of "objective.X=value", or ""."""
    name = setting.partition("=")[0].strip()
    return name.removeprefix("objective.") if name.startswith("objective.") else ""


def _require_options(table: Table, rows: tuple[str, ...], columns: tuple[str, ...], settings: tuple[str, ...]) -> None:
    """Options of methods go to the cells whose method has them; one that none has is refused."""
    valid = {name for row in rows for column in columns for name in options_of(_method(table, row, column))}
    for option in filter(None, map(_option, settings)):
        if option not in valid:
            raise unknown("option of the table's methods: objective", option, valid)


def _cell(table: Table, row: str, column: str, seed: int, choice: Choice, out: Path) -> Cell:
    method = _method(table, row, column)
    options = {"data": table.data, **choice.options, "seed": seed, "method": method}
    settings = [each for each in choice.settings if not _option(each) or _option(each) in options_of(method)]
    if table.task == "classify":
        config = choice.config or "paper-code"
        options["backbone"] = row
        name = f"{row}-{method}-seed{seed}"
    else:
        shot = int(column.partition("-")[0])
        source = row.partition("-okd-")[2]
        options["shot"] = shot
        settings = [f"val_shot={shot}", *([f"kl_source={source}"] if source else []), *settings]
        config = choice.config or _few_shot_recipe(str(options["data"]), shot)
        if row.startswith("rkd"):
            options["teacher"] = str((out / f"baseline-{column.replace('-', '')}-seed{seed}").resolve())
        name = f"{row}-{column.replace('-', '')}-seed{seed}"
    return Cell(row, column, seed, resolve(config, options, settings, task=table.task), out / name)


def _few_shot_recipe(data: str, shot: int) -> str:
    if data != "mini-imagenet":
        return "default"
    return "paper" if shot == 1 else "paper-5shot"


def _refuse_other_settings(cell: Cell) -> None:
    if not cell.path.exists():
        return
    was = Run.open(cell.path).config.flat()
    for name, value in cell.config.flat().items():
        if was.get(name) != value and name not in ("device", "teacher"):
            raise UserError(
                f"{cell.path} was made with {name} = {was.get(name)}, not {value}: give another --out, or the settings it was "
                "made with."
            )


def train_cells(cells: list[Cell], jobs: int, say: Callable[[str], None]) -> list[str]:
    """Train what is not done, resuming what was begun, `jobs` runs at a time; what went wrong, a line each.

    Every cell is a `fewshot-mcl` process of its own, with its share of the cores; its output goes into PATH.log.
    """
    todo = [cell for cell in cells if not cell.done]
    say(f"{len(cells)} runs, {len(cells) - len(todo)} of them done already")
    failures: list[str] = []

    def run(cell: Cell) -> None:
        failure = _train(cell, jobs)
        if failure:
            failures.append(f"{cell.path.name}: {failure}")
        left = sum(not each.done for each in cells)
        say(f"{cell.path.name}: {failure or 'done'}; {left} runs left")

    teachers = [cell for cell in todo if cell.config.method == "baseline"]
    for group in (teachers, [cell for cell in todo if cell not in teachers]):
        with ThreadPoolExecutor(jobs) as pool:
            list(tracked(pool.map(run, group), "training runs", len(group)))
    return failures


def _train(cell: Cell, jobs: int) -> str:
    """Run one cell to its end; its error in words, or ""."""
    path, file = cell.path, cell.path.with_name(f"{cell.path.name}.toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(cell.config.to_toml(), encoding="utf-8")
    begun = (path / "checkpoints" / "last.json").exists()
    if path.exists() and not begun:
        shutil.rmtree(path)  # stopped before its first checkpoint: there is nothing to go on from
    command = [sys.executable, "-m", "fewshot_mcl", COMMANDS[cell.config.task], "--out", str(path)]
    command += ["--resume"] if begun else ["--config", str(file)]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with path.with_name(f"{path.name}.log").open("a", encoding="utf-8") as log:
        answer = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        log.write(answer.stderr)
    lines = answer.stderr.strip().splitlines()
    return "" if answer.returncode == 0 else (lines[-1] if lines else f"ended with code {answer.returncode}")
