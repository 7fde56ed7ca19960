"""`fewshot-mcl reproduce`: train what a table lacks, then write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.session import Protocol
from fewshot_mcl.progress import tracked
from fewshot_mcl.reproduce.cells import Cell, Choice, cells_of, train_cells
from fewshot_mcl.reproduce.paper import TABLES, Table
from fewshot_mcl.reproduce.report import Report
from fewshot_mcl.reproduce.results import result_of
from fewshot_mcl.training.estimate import Estimate, estimate
from fewshot_mcl.training.session import open_data

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """A table of the paper, as it is to be reproduced.

    Attributes:
        name: of `TABLES`.
        choice: the cells, their data and budget.
        out: the folder of their runs and of the tables made of them; tables that share runs may share it.
        jobs: runs at a time.
        protocol: (episodes, queries a class) of a few-shot table.
    """

    name: str
    choice: Choice
    out: Path
    jobs: int
    protocol: tuple[int, int]

    @property
    def table(self) -> Table:
        return TABLES[self.name]

    def cells(self) -> list[Cell]:
        """Every run of it."""
        return cells_of(self.table, self.choice, self.out)


def reproduce(request: Request, say: Say) -> tuple[str, Path]:
    """Train what is not done, evaluate it, and write OUT/NAME.md.

    Returns:
        The page, and where it was written.

    Raises:
        UserError: where a cell cannot be trained; all others are, and are kept.
    """
    table, cells = request.table, request.cells()
    if not all(cell.done for cell in cells):
        open_data(cells[0].config)  # all are on the same: one sentence now, not one of every run
    failures = train_cells(cells, request.jobs, say)
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise UserError(
            f"{failures[0].replace('error: ', '')}{more}. What is done is kept: mend it and give the command again."
        )
    found = [result_of(cell, _protocol(request, cell)) for cell in tracked(cells, "testing runs", len(cells))]
    episodes, query = request.protocol
    protocol = Protocol(5, (1, 5), query, episodes, 0) if table.task == "few-shot" else None
    text = Report(table, cells, found, protocol).text()
    path = request.out / f"{request.name}.md"
    path.write_text(text, encoding="utf-8")
    return text, path


def _protocol(request: Request, cell: Cell) -> Protocol | None:
    if request.table.task == "classify":
        return None
    episodes, query = request.protocol
    return Protocol(5, (int(cell.column.partition("-")[0]),), query, episodes, 0)


def estimates(request: Request, say: Say) -> list[tuple[Cell, Estimate]]:
    """What each run of the first seed would take, from a few timed steps of it; no run is made."""
    found = []
    cells = [cell for cell in request.cells() if cell.seed == 0]
    for cell in tracked(cells, "timing runs", len(cells)):
        say(f"timing {cell.path.name} ...")
        found.append((cell, estimate(cell.config)))
    return found
