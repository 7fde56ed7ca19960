"""`reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from fewshot_mcl.commands import completion
from fewshot_mcl.commands.estimates import estimates_content, print_estimates
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.options import (
    CLASS_RECIPES,
    DATA,
    RECIPES,
    RUN,
    TABLE,
    TRAINING,
    AsJson,
    ProtocolName,
    Quiet,
    Root,
    Settings,
    given,
    option,
)
from fewshot_mcl.screen import Screen, print_lines

TABLE_NAMES = ("table1", "table2", "table3", "table4", "ablation")


def reproduce(
    table: Annotated[
        str,
        typer.Argument(
            help="table1, table2, table3, table4 or ablation.",
            show_default=False,
            autocompletion=completion.one_of(*TABLE_NAMES),
        ),
    ],
    rows: Annotated[list[str] | None, option(TABLE, "Rows; may be repeated.", default="all")] = None,
    columns: Annotated[list[str] | None, option(TABLE, "Columns; may be repeated.", default="all")] = None,
    seeds: Annotated[int, given(TABLE, "Runs of each cell.")] = 3,
    data: Annotated[
        str | None, option(DATA, "As for train or classify.", default="the table's own", complete=completion.data_sets)
    ] = None,
    root: Root = None,
    epochs: Annotated[int | None, option(TRAINING, "Of table1, table2, table3, ablation.", default="by recipe")] = None,
    episodes: Annotated[int | None, option(TRAINING, "Training episodes of table4.", default="by recipe")] = None,
    config: Annotated[
        str | None,
        option(
            TRAINING,
            f"A TOML file, or a recipe: {', '.join([*CLASS_RECIPES, *RECIPES])}.",
            default="that of the table's data",
            complete=completion.one_of(*CLASS_RECIPES, *RECIPES),
        ),
    ] = None,
    settings: Settings = None,
    protocol: ProtocolName = None,
    jobs: Annotated[int, given(RUN, "Runs at a time.")] = 1,
    out: Annotated[
        Path | None,
        option(
            RUN,
            "Folder of the runs and the table; tables may share it.",
            default="reproduced/DATA",
            complete=completion.files,
        ),
    ] = None,
    dry_run: Annotated[bool, option(RUN, "Only list the runs, with what each would take.", "--dry-run")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train the cells of a table of the paper that are not done yet, and write the table: the paper's figures and ours."""
    screen = Screen(as_json, quiet)
    from fewshot_mcl.reproduce.paper import TABLES

    if table not in TABLES:
        raise unknown("table", table, TABLES)
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise UserError(f"--{name} {value}: at least one is needed.")
    wrong, length = ("epochs", epochs) if TABLES[table].task == "few-shot" else ("episodes", episodes)
    if length is not None:
        raise UserError(f"--{wrong} means nothing for {table}: use --{'episodes' if wrong == 'epochs' else 'epochs'}.")
    from fewshot_mcl.evaluation.session import preset
    from fewshot_mcl.reproduce.cells import Choice
    from fewshot_mcl.reproduce.session import Request, estimates
    from fewshot_mcl.reproduce.session import reproduce as run

    named = {"data": data, "root": str(root) if root else None, "epochs": epochs, "episodes": episodes}
    options = {name: value for name, value in named.items() if value is not None}
    choice = Choice(tuple(rows or ()), tuple(columns or ()), seeds, config, options, tuple(settings or ()))
    folder = out or Path("reproduced") / Path(data or TABLES[table].data).name
    request = Request(table, choice, folder, jobs, preset(protocol or "paper-text"))
    runs = len(request.cells())
    if dry_run:
        with screen.progress():
            found = estimates(request, screen.say)
        screen.answer(lambda: estimates_content(found, runs, jobs), lambda: print_estimates(found, runs, jobs))
        return
    with screen.progress():
        text, path = run(request, screen.say)
    screen.say("")
    screen.answer(
        lambda: {"table": table, "file": str(path), "runs": [str(cell.path) for cell in request.cells()]},
        lambda: print_lines(*text.splitlines(), f"written {path}"),
    )
