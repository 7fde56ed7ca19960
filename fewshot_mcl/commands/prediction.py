"""`predict`."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewshot_mcl.errors import UserError
from fewshot_mcl.options import DATA, METHOD, RUN, SHOWN, given, option
from fewshot_mcl.screen import print_lines, print_table

if TYPE_CHECKING:
    from fewshot_mcl.few_shot import FewShot
    from fewshot_mcl.prediction.answers import Answers, Prediction

PATIENCE = 2.0  # seconds before progress is shown
SHOWN_ROWS = 20  # of the table on the terminal


def predict(
    support: Annotated[
        Path,
        typer.Option(help="Examples: a folder of images for each class.", rich_help_panel=DATA, show_default=False),
    ],
    query: Annotated[
        list[Path],
        typer.Option(
            help="Images to be answered about: a file, or a folder of any depth; may be repeated.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ],
    images: Annotated[
        list[Path] | None, typer.Argument(help="More of them: --query photos/*.jpg is understood.", show_default=False)
    ] = None,
    on_bad_image: Annotated[
        str, given(DATA, "Unreadable examples: refuse or skip. Unreadable queries are named and skipped.")
    ] = "refuse",
    model: Annotated[
        str | None,
        option(
            METHOD, "A run directory, glyphs or efficientnet-lite0.", default="the best for photos that is installed"
        ),
    ] = None,
    false_accept: Annotated[
        float, given(METHOD, "Share of images of other classes that may be given a class; the rest is 'none of these'.")
    ] = 0.2,
    out: Annotated[Path | None, option(RUN, "The folder to make.", default="a new one under predictions/")] = None,
    as_json: Annotated[bool, option(SHOWN, "Print one JSON object and nothing else.", "--json")] = False,
    device: Annotated[str, given(SHOWN, "auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Answer which class each image shows, from a few examples of each: a CSV file and a page with pictures.

    For example: fewshot-mcl predict --support my-classes --query photos
    """
    from fewshot_mcl.errors import unknown

    if on_bad_image not in ("refuse", "skip"):
        raise unknown("--on-bad-image", on_bad_image, ("refuse", "skip"))
    from fewshot_mcl.prediction import output, photos

    if out is not None:
        output.refuse_existing(out)
    photos.labelled_files(support)
    paths = photos.query_files(
        [*query, *(images or ())]
    )  # whatever is wrong with names is said before anything is computed
    from fewshot_mcl.few_shot import FewShot
    from fewshot_mcl.prediction.page import write_answers

    few = FewShot(model, device=device, false_accept=false_accept)
    if few.model.measures:
        print(
            f"measuring how far answers of {few.model.name} may be believed, on its validation images", file=sys.stderr
        )
    with progress("examples") as tell:
        few.fit(support, on_bad_image=on_bad_image, progress=tell)  # type: ignore[arg-type]
    with progress("images") as tell:
        answers = few.ask(paths, tell)
    if not answers.predictions:
        raise UserError(f"none of {len(paths)} images can be used: {answers.skipped[0]}.")
    folder, lines = output.new_folder(out, query), describe(few, answers)
    details = list(trust(few))
    prefixed = output.write_table(folder / "predictions.csv", answers.predictions)
    if prefixed:
        lines.append(
            f"{prefixed} rows of the table have a name that a spreadsheet would take for a formula: ' stands before it"
        )
    write_answers(folder / "predictions.html", few, answers, lines, details, ["fewshot-mcl", *sys.argv[1:]])
    if as_json:
        print(json.dumps(record(few, answers, folder, lines + details)))
        return
    print_lines(lines[0], *details, *lines[1:], *(f"skipped: {each}" for each in answers.skipped), "")
    print_answers(answers.predictions)
    print_lines("", f"the page: {folder / 'predictions.html'}", f"the table: {folder / 'predictions.csv'}")


def describe(few: "FewShot", answers: "Answers") -> list[str]:
    """What was asked, and what the user should know of the answers, in lines."""
    least, most, total = min(few.counts), max(few.counts), len(answers.predictions)
    examples = f"{least} example{'s' * (most != 1)}" if least == most else f"{least} to {most} examples"
    lines = [
        f"{total} image{'s' * (total != 1)}; {len(few.classes)} classes of {examples}; {few.model.describe()}",
    ]
    if few.leave_one_out is not None:
        lines.append(f"of the examples, each recognised by all the others: {few.leave_one_out} are right")
    else:
        lines.append("an estimate of the accuracy on your own examples needs two or more of every class")
    same = sum(bool(each.same_as) for each in answers.predictions)
    if same:
        lines.append(f"{same} of the images are among the examples, pixel by pixel: their answers show nothing")
    if answers.skipped:
        lines.append(
            f"{len(answers.skipped)} of {total + len(answers.skipped)} images could not be read, and were skipped"
        )
    return lines + few.notes


def trust(few: "FewShot") -> Iterator[str]:
    """Where probabilities and the threshold come from."""
    rule = few.rule
    if rule is None or rule.cell is None:
        return
    cell, calibration = rule.cell, few.model.calibration()
    assert calibration is not None
    source = f"{calibration.source or 'its data'}, {calibration.split} split"
    yield (
        f"probabilities: temperature {rule.temperature:.3g}, calibrated on {cell.episodes} {cell.way}-way {cell.shot}-shot "
        f"episodes of {source} ({calibration.classes} classes, seed {calibration.seed}), of what was measured the nearest to "
        f"your {len(few.classes)}-way {few.shot:.3g}-shot; negative log-likelihood there {cell.nll:.3f}, uncalibrated "
        f"{cell.nll_uncalibrated:.3f}"
    )
    if rule.threshold is None or rule.false_reject is None:
        yield "nothing is answered with 'none of these': no validation class could be left out to measure a threshold"
        return
    accepted, refused = 100 * rule.false_accept, 100 * rule.false_reject
    yield (
        f"none of these: where the score is below {rule.threshold:.3g}; on those episodes {accepted:.3g} % of the images of a "
        f"class left out are above (false accept), and {refused:.1f} % of the images of the classes asked about are below (false "
        f"reject; AUROC {cell.auroc[rule.score]:.3f}). On images of another kind than {source}, both may differ. A larger "
        "--false-accept refuses fewer"
    )


def print_answers(predictions: list["Prediction"]) -> None:
    """The first rows of the table."""
    from rich.markup import escape

    from fewshot_mcl.data.names import printable
    from fewshot_mcl.prediction.output import NONE

    def cell(text: str | None) -> str:
        shown = printable(NONE if text is None else text)
        return escape(shown if len(shown) <= 60 else f"...{shown[-57:]}")

    rows = [
        [
            cell(p.path),
            cell(p.label),
            f"{p.probability:.2f}",
            cell(p.best),
            cell(p.second),
            f"{p.second_probability:.2f}",
        ]
        for p in predictions[:SHOWN_ROWS]
    ]
    print_table(["", "class", "probability", "nearest class", "then", "probability"], rows)
    if len(predictions) > SHOWN_ROWS:
        print_lines(f"  ... and {len(predictions) - SHOWN_ROWS} more in the table")


def record(few: "FewShot", answers: "Answers", folder: Path, lines: list[str]) -> dict[str, Any]:
    """All of it, fit for JSON."""
    rule, share = few.rule, few.leave_one_out
    assert rule is not None
    return {
        "folder": str(folder), "model": few.model.name, "trained_on": few.model.card.get("trained_on"),
        "classes": dict(zip(few.classes, few.counts)), "temperature": rule.temperature, "score": rule.score,
        "calibrated_on": rule.cell and rule.cell.model_dump(include={"way", "shot", "query", "episodes"}),
        "threshold": rule.threshold, "false_accept": rule.false_accept, "false_reject": rule.false_reject,
        "leave_one_out": share and {"right": share.count, "of": share.total, "interval95": share.interval},
        "notes": lines, "skipped": answers.skipped, "predictions": [each.record() for each in answers.predictions],
    }  # fmt: skip


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what is told how many images are done. It shows on standard error once that takes longer than `PATIENCE`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, begun = Console(stderr=True), time.monotonic()
    bar = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True
    )
    task, said = bar.add_task(what), begun

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        bar.update(task, completed=done, total=total)
        if now - begun < PATIENCE:
            return
        if console.is_terminal:
            bar.start()
        elif done < total and (now - said >= 5 * PATIENCE or said == begun):
            said = now
            left = (now - begun) * (total - done) / max(done, 1)
            print(f"{what}: {done:,} of {total:,}, about {left:.0f} s left", file=sys.stderr)

    try:
        yield tell
    finally:
        if bar.live.is_started:  # or it ends a line that was never begun
            bar.stop()
