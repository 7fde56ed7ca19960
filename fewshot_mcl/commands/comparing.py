"""`compare`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewshot_mcl.commands.looking import fitted
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.options import DATA, EPISODES, OUTPUT, SHOWN, AsJson, ProtocolName, Quiet, Root, given, option
from fewshot_mcl.screen import Screen, print_lines

if TYPE_CHECKING:
    from fewshot_mcl.comparison.results import Request


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, two or more.", show_default=False)],
    way: Annotated[int | None, option(EPISODES, "Classes in an episode.", default=5)] = None,
    shot: Annotated[
        list[int] | None, option(EPISODES, "Support images of each class; may be repeated.", default="1 and 5")
    ] = None,
    query: Annotated[int | None, option(EPISODES, "Query images of each class.", default=15)] = None,
    episodes: Annotated[int | None, option(EPISODES, "How many.", default=600)] = None,
    seed: Annotated[int | None, option(EPISODES, "Of the episodes.", default=0)] = None,
    protocol: ProtocolName = None,
    split: Annotated[str | None, option(DATA, "test or val.", default="test")] = None,
    data: Annotated[str | None, option(DATA, "Other data for all, as for train.", default="the runs' own")] = None,
    root: Root = None,
    other_training_data: Annotated[
        bool,
        option(DATA, "Compare even runs trained on different images; it is said.", "--other-training-data"),
    ] = False,
    checkpoint: Annotated[
        str | None, option(SHOWN, "best (by validation) or last.", default="best; of classify: last")
    ] = None,
    device: Annotated[str, given(SHOWN, "auto, cpu, cuda, ...")] = "auto",
    out: Annotated[Path | None, option(OUTPUT, "An HTML page with charts to write.", default="none")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs on the same episodes (of classify: the same images): paired differences, how sure they are, in plain words.

    Runs that differ in nothing but their seed form a group. Example: fewshot-mcl compare runs/mine runs/baseline
    """
    screen = Screen(as_json, quiet)
    if len(runs) < 2:
        raise UserError(f"{runs[0]} alone cannot be compared: name two runs or more, fewshot-mcl compare RUN RUN...")
    for kind, value, valid in (("split", split, ("test", "val")), ("checkpoint", checkpoint, ("best", "last"))):
        if value not in (None, *valid):
            raise unknown(kind, str(value), valid)
    from fewshot_mcl.comparison import session, words
    from fewshot_mcl.comparison.results import Request
    from fewshot_mcl.evaluation.session import Protocol, preset

    def request(task: str) -> "Request":
        if task == "classify":
            asked = {"way": way, "shot": shot, "query": query, "episodes": episodes, "seed": seed, "split": split}
            if named := [name for name, value in (asked | {"protocol": protocol}).items() if value is not None]:
                raise UserError(f"these runs learned to classify, so --{named[0]} means nothing: leave it out.")
            return Request(None, checkpoint or "last", data, root, device)
        usual_episodes, usual_query = preset(protocol or "paper-text")
        counts = {
            "way": (way, 5),
            "query": (query, usual_query),
            "episodes": (episodes, usual_episodes),
            "seed": (seed, 0),
        }
        values = {name: usual if value is None else value for name, (value, usual) in counts.items()}
        measured = Protocol(shots=tuple(dict.fromkeys(shot or (1, 5))), split=split or "test", **values)
        return Request(measured, checkpoint or "best", data, root, device)

    if out:
        from fewshot_mcl.comparison import page
        from fewshot_mcl.pages import refuse_other

        refuse_other(out)
    with screen.progress():
        found = session.compare(runs, request, other_training_data, screen.say)
    screen.answer(lambda: words.as_json(found), lambda: print_lines(*fitted(words.lines(found))))
    if out:
        page.write(found, out, [printable(shlex.join(["fewshot-mcl", *sys.argv[1:]]))])
        screen.say(f"written {out}")
