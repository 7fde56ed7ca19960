"""`predict`."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewshot_mcl.commands.looking import fitted
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.options import DATA, METHOD, OUTPUT, SHOWN, AsJson, Quiet, given, option
from fewshot_mcl.progress import tell
from fewshot_mcl.screen import Screen, print_lines, print_table

if TYPE_CHECKING:
    from fewshot_mcl.few_shot import FewShot
    from fewshot_mcl.prediction.answers import Answers, Prediction

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
    device: Annotated[str, given(SHOWN, "auto, cpu, cuda, ...")] = "auto",
    out: Annotated[Path | None, option(OUTPUT, "The folder to make.", default="a new one under predictions/")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Answer which class each image shows, from a few examples of each: a CSV file and a page with pictures.

    For example: fewshot-mcl predict --support my-classes --query photos
    """
    screen = Screen(as_json, quiet)
    if on_bad_image not in ("refuse", "skip"):
        raise unknown("--on-bad-image", on_bad_image, ("refuse", "skip"))
    from fewshot_mcl.prediction import output, photos

    if out is not None:
        output.refuse_existing(out)
    photos.labelled_files(support)
    paths = photos.query_files(
        [*query, *(images or ())]
    )  # whatever is wrong with names is said before anything is computed
    with screen.progress():
        few, answers = _answered(support, paths, on_bad_image, model, device, false_accept)
        folder, lines = output.new_folder(out, query), describe(few, answers)
        details = list(trust(few))
        prefixed = output.write_table(folder / "predictions.csv", answers.predictions)
        if prefixed:
            lines.append(
                f"{prefixed} rows of the table have a name that a spreadsheet would take for a formula: ' stands before it"
            )
        from fewshot_mcl.prediction.page import write_answers

        write_answers(folder / "predictions.html", few, answers, lines, details, ["fewshot-mcl", *sys.argv[1:]])
    screen.answer(
        lambda: record(few, answers, folder, lines + details),
        lambda: _print(answers, folder, lines if quiet else [lines[0], *details, *lines[1:]]),
    )


def _answered(
    support: Path, paths: list[Path], on_bad_image: str, model: str | None, device: str, false_accept: float
) -> "tuple[FewShot, Answers]":
    """What answers, and its answers; how far it has come is told."""
    from fewshot_mcl.few_shot import FewShot

    few = FewShot(model, device=device, false_accept=false_accept)
    few.fit(support, on_bad_image=on_bad_image, progress=partial(tell, "looking at examples"))  # type: ignore[arg-type]
    answers = few.ask(paths, partial(tell, "looking at images"))
    if not answers.predictions:
        raise UserError(f"none of {len(paths)} images can be used: {answers.skipped[0]}.")
    return few, answers


def _print(answers: "Answers", folder: Path, lines: list[str]) -> None:
    print_lines(*fitted([*lines, *(f"skipped: {each}" for each in answers.skipped)]), "")
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
