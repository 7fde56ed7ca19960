"""`data check`, `data inspect` and `data convert`."""

import shlex
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fewshot_mcl.commands import completion
from fewshot_mcl.commands.looking import fitted
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import BAD_INPUT, unknown
from fewshot_mcl.options import (
    DATA_HELP,
    OUTPUT,
    AsJson,
    Color,
    ImageSize,
    OnBadImage,
    Quiet,
    Resize,
    Root,
    Task,
    option,
)  # fmt: skip
from fewshot_mcl.progress import tell
from fewshot_mcl.resources import program
from fewshot_mcl.screen import Screen, packing_progress, print_lines, print_table


def check(
    data: Annotated[str, typer.Argument(help=DATA_HELP, autocompletion=completion.data_sets)],
    root: Root = None,
    task: Task = "few-shot",
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Report format, counts and problems of image data. Exit code 0 if it is ready to use, else 2."""
    screen = Screen(as_json, quiet)
    from fewshot_mcl.data import check as checking

    with screen.progress():
        report = checking.check(data, root, _image_options(image_size, color, resize, on_bad_image), _task(task))
    screen.answer(lambda: {"ok": report.ok} | asdict(report), lambda: print_lines(*report.lines()))
    if not report.ok:
        raise typer.Exit(BAD_INPUT)


def inspect(
    data: Annotated[str, typer.Argument(help=DATA_HELP, autocompletion=completion.data_sets)],
    root: Root = None,
    task: Task = "few-shot",
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    out: Annotated[
        Path | None,
        option(OUTPUT, "An HTML page to write: images of every class, duplicates side by side.", default="none"),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Look closely before training: counts, sizes, bad and duplicate images, which episodes are possible, and what to type.

    Example: fewshot-mcl data inspect photos --out photos.html
    """
    screen = Screen(as_json, quiet)
    from fewshot_mcl.data import inspect as inspecting
    from fewshot_mcl.data import inspect_words
    from fewshot_mcl.pages import inspection, refuse_other
    from fewshot_mcl.suggestion import suggest

    options = _image_options(image_size, color, resize, on_bad_image)
    if out:
        refuse_other(out)
    with screen.progress():
        found = inspecting.inspect(data, root, options, _task(task), partial(tell, "looking at images"))
    given = {"image_size": image_size, "color": color, "resize": resize, "on_bad_image": on_bad_image}
    suggestion = suggest(found, data, root, given)

    def show() -> None:
        print_lines(*fitted(inspect_words.lines(found), 4))
        print_table(["", "classes", "images", "least", "median", "most", "under 20"], inspection.count_rows(found))
        print_lines("episodes: most classes, and most queries a class with any of them, by --shot")
        print_table(["", "--way", *(f"--shot {shot}" for shot in inspecting.SHOTS)], inspection.possible_rows(found))
        if not quiet:
            print_lines(*suggestion.lines())  # unbroken: it is to be copied

    screen.answer(lambda: inspect_words.content(found) | {"suggestion": asdict(suggestion)}, show)
    if out:
        inspection.write(found, suggestion, out, [printable(shlex.join(["fewshot-mcl", *sys.argv[1:]]))])
        screen.say(f"written {out}")


def convert(
    data: Annotated[str, typer.Argument(help=DATA_HELP, autocompletion=completion.data_sets)],
    out: Annotated[
        Path,
        typer.Option(
            help="The folder to write the packed store to; it must not exist.", autocompletion=completion.files
        ),
    ],
    root: Root = None,
    task: Task = "few-shot",
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    part: Annotated[
        str | None,
        option(
            OUTPUT,
            "Only part K of N, as K/N; several jobs can pack at once, and the last one finishes the store.",
            default="all",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decode once and write a packed store, which trains from `--data OUT` without decoding again.

    Stopped, or out of disk, it goes on where it was when the same command is given again.
    """
    screen = Screen(as_json, quiet)
    from fewshot_mcl.data import check as checking
    from fewshot_mcl.data import parts

    options, which = _image_options(image_size, color, resize, on_bad_image), parts.parse(part) if part else None
    with packing_progress(screen) as progress:
        folders, left = checking.convert(data, root, out, options, progress, _task(task), screen.say, which)
    lines = [f"written {path}" for path in folders] if not left else [f"part {part} is packed; left: {_numbers(left)}"]
    screen.answer(lambda: {"written": [str(path) for path in folders], "left": left}, lambda: print_lines(*lines))
    if left:
        return
    command = "classify" if checking.is_labelled(data, task) else "train"
    where = f"{data} --root {shlex.quote(str(out))}" if root and command == "classify" else shlex.quote(str(out))
    screen.say(f"Use it with: {program()} {command} --data {where}")


def _numbers(left: list[int]) -> str:
    return ", ".join(map(str, left[:20])) + (f" and {len(left) - 20} more" if len(left) > 20 else "")


def _image_options(image_size: int | None, color: str | None, resize: str | None, on_bad_image: str | None) -> Any:
    from fewshot_mcl.config import resolve

    options = {"image_size": image_size, "color": color, "resize": resize, "on_bad_image": on_bad_image}
    return resolve("default", options).image_options


def _task(name: str) -> str:
    if name not in ("few-shot", "classify"):
        raise unknown("task", name, ("few-shot", "classify"))
    return name
