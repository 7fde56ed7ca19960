"""`data check`, `data inspect` and `data convert`."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fewshot_mcl.commands.looking import fitted
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import BAD_INPUT, unknown
from fewshot_mcl.options import DATA_HELP, SHOWN, Color, ImageSize, OnBadImage, Resize, Root, Task, option
from fewshot_mcl.resources import program
from fewshot_mcl.screen import packing_progress, print_lines, print_table


def check(
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    root: Root = None,
    task: Task = "few-shot",
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
) -> None:
    """Report format, counts and problems of image data. Exit code 0 if it is ready to use, else 2."""
    from fewshot_mcl.data import check as checking

    report = checking.check(data, root, _image_options(image_size, color, resize, on_bad_image), _task(task))
    print("\n".join(report.lines()))
    if not report.ok:
        raise typer.Exit(BAD_INPUT)


def inspect(
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    root: Root = None,
    task: Task = "few-shot",
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    out: Annotated[
        Path | None,
        option(SHOWN, "An HTML page to write: images of every class, duplicates side by side.", default="none"),
    ] = None,
) -> None:
    """Look closely before training: counts, sizes, bad and duplicate images, which episodes are possible, and what to type.

    Example: fewshot-mcl data inspect photos --out photos.html
    """
    from fewshot_mcl.data import inspect as inspecting
    from fewshot_mcl.pages import inspection
    from fewshot_mcl.suggestion import suggest

    options = _image_options(image_size, color, resize, on_bad_image)
    with looking_progress() as progress:
        found = inspecting.inspect(data, root, options, _task(task), progress)
    given = {"image_size": image_size, "color": color, "resize": resize, "on_bad_image": on_bad_image}
    suggestion = suggest(found, data, root, given)
    print_lines(*fitted(inspecting.lines(found), 4))
    print_table(["", "classes", "images", "least", "median", "most", "under 20"], inspection.count_rows(found))
    print_lines("episodes: most classes, and most queries a class with any of them, by --shot")
    print_table(["", "--way", *(f"--shot {shot}" for shot in inspecting.SHOTS)], inspection.possible_rows(found))
    print_lines(*suggestion.lines())  # unbroken: it is to be copied
    if out:
        inspection.write(found, suggestion, out, [printable(shlex.join(["fewshot-mcl", *sys.argv[1:]]))])
        print_lines(f"written {out}")


@contextmanager
def looking_progress() -> Iterator[Callable[[int, int], None]]:
    """Yields what is told how far it is: nothing for two seconds, then a bar on a terminal, a line every tenth part elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console, start = Console(stderr=True), time.monotonic()
    bar = Progress(BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn(), console=console, transient=True)
    task, told = bar.add_task(""), -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        bar.update(task, completed=done, total=total)
        if time.monotonic() - start < 2:
            return
        if console.is_terminal:
            bar.start()
        elif 10 * done // max(1, total) > told:
            told = 10 * done // max(1, total)
            print(f"looked at {done:,} of {total:,} images", file=sys.stderr)

    try:
        yield tell
    finally:
        if bar.live.is_started:  # one that was never shown would end its line all the same
            bar.stop()


def convert(
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    out: Annotated[Path, typer.Option(help="The folder to write the packed store to; it must not exist.")],
    root: Root = None,
    task: Task = "few-shot",
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
) -> None:
    """Decode once and write a packed store, which trains from `--data OUT` without decoding again.

    Stopped, or out of disk, it goes on where it was when the same command is given again.
    """
    from fewshot_mcl.data import check as checking

    options = _image_options(image_size, color, resize, on_bad_image)
    with packing_progress() as progress:
        folders = checking.convert(data, root, out, options, progress, _task(task), print_lines)
    for path in folders:
        print_lines(f"written {path}")
    command = "classify" if checking.is_labelled(data, task) else "train"
    where = f"{data} --root {shlex.quote(str(out))}" if root and command == "classify" else shlex.quote(str(out))
    print_lines(f"Use it with: {program()} {command} --data {where}")


def _image_options(image_size: int | None, color: str | None, resize: str | None, on_bad_image: str | None) -> Any:
    from fewshot_mcl.config import resolve

    options = {"image_size": image_size, "color": color, "resize": resize, "on_bad_image": on_bad_image}
    return resolve("default", options).image_options


def _task(name: str) -> str:
    if name not in ("few-shot", "classify"):
        raise unknown("task", name, ("few-shot", "classify"))
    return name
