"""`report`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.options import DATA, EPISODES, OUTPUT, SHOWN, AsJson, Quiet, Root, given, option
from fewshot_mcl.resources import program
from fewshot_mcl.screen import Screen, print_lines

if TYPE_CHECKING:
    from fewshot_mcl.evaluation.session import Protocol
    from fewshot_mcl.runs import Run


def report(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    evaluation: Annotated[
        int | None,
        option(EPISODES, "Of a saved evaluation: its episodes, split and checkpoint, and its figures again."),
    ] = None,
    episodes: Annotated[int | None, option(EPISODES, "How many.", default=600)] = None,
    way: Annotated[int | None, option(EPISODES, "Classes in an episode.", default=5)] = None,
    shot: Annotated[int | None, option(EPISODES, "Support images of each class.", default=1)] = None,
    query: Annotated[int | None, option(EPISODES, "Query images of each class.", default=15)] = None,
    seed: Annotated[int | None, option(EPISODES, "Of the episodes.", default=0)] = None,
    split: Annotated[str | None, option(DATA, "test or val.", default="test")] = None,
    data: Annotated[str | None, option(DATA, "Other data: as for train.", default="the run's own")] = None,
    root: Root = None,
    checkpoint: Annotated[str | None, option(SHOWN, "best (by validation) or last.", default="best")] = None,
    device: Annotated[str, given(SHOWN, "auto, cpu, cuda, ...")] = "auto",
    out: Annotated[Path | None, option(OUTPUT, "The HTML file to write.", default="RUN/report.html")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write what a run learned as one HTML page, to be opened in a browser: figures, curves, classes, episodes as pictures."""
    screen = Screen(as_json, quiet)
    for kind, value, valid in (("split", split, ("test", "val")), ("checkpoint", checkpoint, ("best", "last"))):
        if value is not None and value not in valid:
            raise unknown(kind, value, valid)
    from fewshot_mcl.report.session import Place, report_episodes, report_images
    from fewshot_mcl.runs import Run

    opened, page = Run.open(run), out or run / "report.html"
    wanted: dict[str, Any] = {"episodes": episodes, "way": way, "shot": shot, "query": query, "seed": seed}
    wanted |= {"split": split, "checkpoint": checkpoint}
    place, end = Place(checkpoint or "best", data, root, device), {"data": data, "root": root, "out": out}
    with screen.progress():
        if opened.config.task == "classify":
            _refuse(wanted, f"{run} learned to classify, so there are no episodes")
            command = _command(run, {"evaluation": evaluation, **end})
            report_images(opened, evaluation, place, page, command)
        elif evaluation is None:
            protocol = _protocol(wanted)
            command = _command(run, _words(protocol) | {"checkpoint": place.checkpoint, **end})
            report_episodes(opened, protocol, place, page, command)
        else:
            _report_again(opened, evaluation, wanted, place, page, end)
    screen.answer(lambda: {"run": str(run), "written": str(page)}, lambda: print_lines(f"written {page}"))
    screen.say(f"Open it in a browser: it is one file of {page.stat().st_size / 1e6:.1f} MB.")


def _report_again(
    run: "Run", evaluation: int, wanted: dict[str, Any], place: Any, page: Path, end: dict[str, Any]
) -> None:
    """The page of a saved evaluation on episodes."""
    from dataclasses import replace

    from fewshot_mcl.report.evaluations import protocol_of, read_evaluation
    from fewshot_mcl.report.session import report_episodes

    shot = wanted.pop("shot")
    _refuse(wanted, f"evaluation {evaluation} says which episodes")
    saved = read_evaluation(run, evaluation)
    command = _command(run.path, {"evaluation": evaluation, "shot": shot, **end})
    place = replace(place, checkpoint=saved["checkpoint"])
    report_episodes(run, protocol_of(saved, shot), place, page, command, saved)


def _refuse(wanted: dict[str, Any], why: str) -> None:
    """Raise `UserError` where something is given that means nothing."""
    if names := [name for name, value in wanted.items() if value is not None]:
        raise UserError(f"{why}, and --{names[0]} means nothing: leave it out.")


def _protocol(wanted: dict[str, Any]) -> "Protocol":
    from fewshot_mcl.evaluation.session import Protocol

    usual = {"episodes": 600, "way": 5, "query": 15, "seed": 0, "split": "test"}
    chosen: dict[str, Any] = {n: value if wanted[n] is None else wanted[n] for n, value in usual.items()}
    return Protocol(shots=(1 if wanted["shot"] is None else wanted["shot"],), **chosen)


def _words(protocol: "Protocol") -> dict[str, Any]:
    return {
        "episodes": protocol.episodes, "way": protocol.way, "shot": protocol.shots[0], "query": protocol.query,
        "seed": protocol.seed, "split": protocol.split,
    }  # fmt: skip


def _command(run: Path, options: dict[str, Any]) -> list[str]:
    """The words that make a page again, as a shell takes them."""
    pairs = (f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None)
    return [program(), "report", shlex.quote(str(run)), *pairs]
