"""The command line: parse, call, print. Commands import what they need, so that --help needs no torch."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewshot_mcl import __version__
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import Interrupted, UserError, unknown
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS
from fewshot_mcl.resources import program, resource_dir
from fewshot_mcl.screen import (
    packing_progress,
    print_classification,
    print_estimates,
    print_evaluation,
    print_lines,
    training_lines,
)

if TYPE_CHECKING:
    from fewshot_mcl.training.session import Outcome

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Few-shot metric learning with peers that teach each other. Start with: fewshot-mcl train --episodes 600",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at image data before training, or pack it for fast loading.")
app.add_typer(data_app, name="data")

BAD_INPUT, INTERRUPTED = 2, 130
UsageError: Any = typer.BadParameter.__bases__[0]  # what every bad command line is, whichever click typer stands on


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad input, 130 interrupted."""
    sys.exit(_run())


def _run() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it: no terminal is too old for a ±
    try:
        code = app(standalone_mode=False, prog_name="fewshot-mcl") or 0
        sys.stdout.flush()
    except UsageError as error:
        text = error.format_message().rstrip(".")  # empty where help was printed, because nothing was asked
        command = error.ctx.command_path if error.ctx else "fewshot-mcl"
        return _say(f"error: {text}. See {command} --help.", BAD_INPUT) if text else BAD_INPUT
    except UserError as error:
        return _say(f"error: {error}", BAD_INPUT)
    except Interrupted as error:
        return _say(str(error), INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(f"error: {error.filename or 'the system'}: {error.strerror}.", BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _say(
            "error: not enough memory. Use a smaller --image-size, or fewer --peers, --way or --query.", BAD_INPUT
        )
    return _say("interrupted.", code) if code == INTERRUPTED else code


def _say(text: str, code: int) -> int:
    """Print one line, whatever names are in it, on standard error."""
    print(printable(text), file=sys.stderr)
    return code


def _version(asked: bool) -> None:
    if asked:
        print(f"fewshot-mcl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    return


def _recipes(task: str) -> dict[str, dict[str, Any]]:
    read = {
        p.stem: tomllib.loads(p.read_text(encoding="utf-8")) for p in sorted(resource_dir("configs").glob("*.toml"))
    }
    return {name: recipe for name, recipe in read.items() if recipe.get("task", "few-shot") == task}


RECIPES, CLASS_RECIPES = _recipes("few-shot"), _recipes("classify")
RECIPE, CLASS_RECIPE = RECIPES["default"], CLASS_RECIPES["classify"]
DATA, METHOD, TRAINING, RUN, EPISODES, SHOWN = "Data", "Method", "Training", "Run", "Episodes", "Networks and output"


def _option(panel: str, help: str, *names: str, default: object = None, **more: Any) -> Any:
    """An option without a value of its own; `default` says what holds then."""
    shown = str(default) if default is not None else False
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=shown, **more)


def _given(panel: str, help: str, *names: str) -> Any:
    """An option whose value stands in the signature."""
    return typer.Option(*names, help=help, rich_help_panel=panel)


Data = Annotated[
    str | None,
    _option(DATA, "glyphs, mini-imagenet (with --root), or the path of a folder.", default=RECIPE["data"]),
]
Root = Annotated[Path | None, _option(DATA, "Where the files of a named data set lie.")]
ImageSize = Annotated[int | None, _option(DATA, "Side of the images in pixels.", default="the data's own")]
Color = Annotated[str | None, _option(DATA, "rgb, grey, or auto: as the data has it.", default=RECIPE["color"])]
Resize = Annotated[str | None, _option(DATA, "crop keeps the aspect ratio, squash does not.", default=RECIPE["resize"])]
OnBadImage = Annotated[
    str | None,
    _option(DATA, "What to do about unreadable images: refuse or skip.", default=RECIPE["on_bad_image"]),
]
Method = Annotated[str | None, _option(METHOD, ", ".join(METHODS), default=RECIPE["method"])]
Teacher = Annotated[Path | None, _option(METHOD, "A finished run to learn from (rkd-d, rkd-da).")]
BackboneName = Annotated[str | None, _option(METHOD, ", ".join(BACKBONES), default=RECIPE["backbone"])]
Peers = Annotated[
    int | None, _option(METHOD, "How many networks learn together.", default=f"{RECIPE['peers']}; baseline: 1")
]
Seed = Annotated[int | None, _option(TRAINING, "Of every draw.", default=RECIPE["seed"])]
Settings = Annotated[
    list[str] | None,
    _option(RUN, "Any key of the configuration; may be repeated.", "--set", metavar="KEY=VALUE"),
]
Out = Annotated[Path | None, _option(RUN, "The run directory to make.", default="a new one under runs/")]
Resume = Annotated[bool, _option(RUN, "Continue the run in --out.", "--resume")]


ProtocolName = Annotated[
    str | None,
    _option(
        EPISODES,
        "paper-text: 600 episodes of 15 queries, as the paper says; baseline-repo: 2,000 of 30, as its intervals fit.",
    ),
]


@app.command()
def train(
    data: Data = None,
    root: Root = None,
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    method: Method = None,
    teacher: Teacher = None,
    backbone: BackboneName = None,
    peers: Peers = None,
    episodes: Annotated[
        int | None, _option(TRAINING, "Episodes, one optimizer step each.", default=RECIPE["episodes"])
    ] = None,
    way: Annotated[int | None, _option(TRAINING, "Classes in an episode.", default=RECIPE["way"])] = None,
    shot: Annotated[int | None, _option(TRAINING, "Support images of each class.", default=RECIPE["shot"])] = None,
    query: Annotated[int | None, _option(TRAINING, "Query images of each class.", default=RECIPE["query"])] = None,
    lr: Annotated[float | None, _option(TRAINING, "Learning rate of Adam.", default=RECIPE["lr"])] = None,
    seed: Seed = None,
    config: Annotated[
        str | None,
        _option(RUN, f"A TOML file, or a recipe: {', '.join(RECIPES)}.", default="default; paper for mini-imagenet"),
    ] = None,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Train peers on episodes; the best by validation is kept. Defaults are those of the default recipe."""
    options = {
        "data": data, "root": root, "image_size": image_size, "color": color, "resize": resize,
        "on_bad_image": on_bad_image, "method": method, "teacher": teacher, "backbone": backbone, "peers": peers,
        "episodes": episodes, "way": way, "shot": shot, "query": query, "lr": lr, "seed": seed, "out": out,
    }  # fmt: skip
    print_lines(*training_lines(_train("few-shot", config, options, settings, resume)))


@app.command()
def classify(
    data: Annotated[
        str | None,
        _option(
            DATA,
            "glyphs; cifar100, fashion-mnist, imagenet or mini-imagenet (with --root); or the path of a folder.",
            default=CLASS_RECIPE["data"],
        ),
    ] = None,
    root: Root = None,
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    method: Method = None,
    teacher: Teacher = None,
    backbone: Annotated[
        str | None, _option(METHOD, ", ".join(BACKBONES), default=f"{CLASS_RECIPE['backbone']}; by recipe")
    ] = None,
    peers: Peers = None,
    epochs: Annotated[
        int | None,
        _option(TRAINING, "Times through the training images.", default=f"{CLASS_RECIPE['epochs']}; by recipe"),
    ] = None,
    batch: Annotated[int | None, _option(TRAINING, "Images a step.", default="by recipe")] = None,
    lr: Annotated[float | None, _option(TRAINING, "Highest learning rate of SGD.", default="by recipe")] = None,
    seed: Seed = None,
    config: Annotated[
        str | None,
        _option(
            RUN,
            f"A TOML file, or a recipe: {', '.join(CLASS_RECIPES)}.",
            default="classify; paper-code for cifar100, fashion-mnist, imagenet",
        ),
    ] = None,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    device: Annotated[str | None, _option(SHOWN, "auto, cpu, cuda, ...", default="auto")] = None,
) -> None:
    """Train peers to classify images, then test the networks on images of the same classes they have not seen."""
    options = {
        "data": data, "root": root, "image_size": image_size, "color": color, "resize": resize,
        "on_bad_image": on_bad_image, "method": method, "teacher": teacher, "backbone": backbone, "peers": peers,
        "epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "out": out, "device": device,
    }  # fmt: skip
    outcome = _train("classify", config, options, settings, resume)
    from fewshot_mcl.evaluation.class_session import evaluate_classifier

    print_lines(*training_lines(outcome))
    print_classification(evaluate_classifier(outcome.run, device=outcome.run.config.device))


def _train(task: str, config: str | None, options: dict[str, Any], settings: list[str] | None, resume: bool) -> Outcome:
    """The run that these options describe, trained or resumed."""
    from rich.console import Console

    from fewshot_mcl.config import resolve
    from fewshot_mcl.runs import Run

    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    out = Path(options["out"]) if options["out"] else None
    if not resume or out is None:
        resolved = resolve(config, options, settings, task=task)
        out = Path(resolved.out) if resolved.out else None
    if resume:
        if out is None:
            raise UserError("which run is to be resumed? Name its directory: --out RUN --resume.")
        resolved = Run.open(out).agreed(config, options, settings, task)
    elif out is not None:
        Run.refuse_existing(out)  # before anything is loaded
    from fewshot_mcl.training import session

    return session.train(resolved, out, resume, Console())


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    episodes: Annotated[int | None, _option(EPISODES, "How many.", default=600)] = None,
    way: Annotated[int | None, _option(EPISODES, "Classes in an episode.", default=5)] = None,
    shot: Annotated[
        list[int] | None, _option(EPISODES, "Support images of each class; may be repeated.", default="1 and 5")
    ] = None,
    query: Annotated[int | None, _option(EPISODES, "Query images of each class.", default=15)] = None,
    seed: Annotated[int | None, _option(EPISODES, "Of the episodes.", default=0)] = None,
    protocol: ProtocolName = None,
    split: Annotated[str, _given(DATA, "test or val.")] = "test",
    data: Annotated[
        str | None, _option(DATA, "Other data, for a cross-domain test: as for train.", default="the run's own")
    ] = None,
    root: Root = None,
    checkpoint: Annotated[str, _given(SHOWN, "best (by validation) or last.")] = "best",
    peers: Annotated[bool, _option(SHOWN, "Show every peer and the ensemble too.", "--peers")] = False,
    as_json: Annotated[bool, _option(SHOWN, "Print one JSON object and nothing else.", "--json")] = False,
    device: Annotated[str, _given(SHOWN, "auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Accuracy on episodes of classes that training has not seen; or, of a run of `classify`, errors on test images."""
    for kind, value, valid in (("split", split, ("test", "val")), ("checkpoint", checkpoint, ("best", "last"))):
        if value not in valid:
            raise unknown(kind, value, valid)
    from fewshot_mcl.runs import Run

    opened = Run.open(run)
    if opened.config.task == "classify":
        from fewshot_mcl.evaluation.class_session import evaluate_classifier

        options = {"episodes": episodes, "way": way, "shot": shot, "query": query, "seed": seed}
        if given := [name for name, value in options.items() if value is not None]:
            raise UserError(
                f"{run} learned to classify, so there are no episodes and --{given[0]} means nothing: leave it out."
            )
        content = evaluate_classifier(opened, data=data, root=root, device=device)
        print(json.dumps(content)) if as_json else print_classification(content)
        return
    from fewshot_mcl.evaluation.session import Protocol, evaluate_run, preset

    usual_episodes, usual_query = preset(protocol or "paper-text")
    asked = {
        "way": (way, 5), "query": (query, usual_query), "episodes": (episodes, usual_episodes), "seed": (seed, 0),
    }  # fmt: skip
    counts = {name: usual if value is None else value for name, (value, usual) in asked.items()}
    measured = Protocol(shots=tuple(dict.fromkeys(shot or (1, 5))), split=split, **counts)
    content = evaluate_run(opened, measured, checkpoint=checkpoint, data=data, root=root, device=device)
    shown = [r for r in content["results"] if peers or r["network"] == content["deployed"]]
    if as_json:
        lean = [{key: value for key, value in r.items() if key != "accuracies"} for r in shown]
        print(json.dumps(content | {"results": lean}))
    else:
        print_evaluation(content, shown)


TABLE, CELLS = "Table", "Cells"


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="table1, table2, table3, table4 or ablation.", show_default=False)],
    rows: Annotated[list[str] | None, _option(TABLE, "Rows; may be repeated.", default="all")] = None,
    columns: Annotated[list[str] | None, _option(TABLE, "Columns; may be repeated.", default="all")] = None,
    seeds: Annotated[int, _given(TABLE, "Runs of each cell.")] = 3,
    data: Annotated[str | None, _option(DATA, "As for train or classify.", default="the table's own")] = None,
    root: Root = None,
    epochs: Annotated[
        int | None, _option(TRAINING, "Of table1, table2, table3, ablation.", default="by recipe")
    ] = None,
    episodes: Annotated[int | None, _option(TRAINING, "Training episodes of table4.", default="by recipe")] = None,
    config: Annotated[
        str | None,
        _option(
            TRAINING,
            f"A TOML file, or a recipe: {', '.join([*CLASS_RECIPES, *RECIPES])}.",
            default="that of the table's data",
        ),
    ] = None,
    settings: Settings = None,
    protocol: ProtocolName = None,
    jobs: Annotated[int, _given(RUN, "Runs at a time.")] = 1,
    out: Annotated[
        Path | None, _option(RUN, "Folder of the runs and the table; tables may share it.", default="reproduced/DATA")
    ] = None,
    dry_run: Annotated[bool, _option(RUN, "Only list the runs, with what each would take.", "--dry-run")] = False,
) -> None:
    """Train the cells of a table of the paper that are not done yet, and write the table: the paper's figures and ours."""
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
    if dry_run:
        print_estimates(estimates(request, print_lines), len(request.cells()), jobs)
        return
    text, path = run(request, print_lines)
    print_lines("", *text.splitlines(), f"written {path}")


def _image_options(image_size: int | None, color: str | None, resize: str | None, on_bad_image: str | None) -> Any:
    from fewshot_mcl.config import resolve

    options = {"image_size": image_size, "color": color, "resize": resize, "on_bad_image": on_bad_image}
    return resolve("default", options).image_options


DATA_HELP = "The path of a folder, glyphs, or mini-imagenet, cifar100, fashion-mnist, imagenet (with --root)."
Task = Annotated[
    str,
    _given(
        DATA,
        "few-shot: splits of different classes; classify: of the same, which cifar100, fashion-mnist and imagenet are.",
    ),
]


@data_app.command("check")
def data_check(
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    root: Root = None,
    task: Task = "few-shot",
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
) -> None:
    """Report format, counts and problems of image data. Exit code 0 if it is ready to use, else 2."""
    from fewshot_mcl.data.check import check

    report = check(data, root, _image_options(image_size, color, resize, on_bad_image), _task(task))
    print("\n".join(report.lines()))
    if not report.ok:
        raise typer.Exit(BAD_INPUT)


@data_app.command("convert")
def data_convert(
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
    from fewshot_mcl.data.check import convert, is_labelled

    options = _image_options(image_size, color, resize, on_bad_image)
    with packing_progress() as progress:
        folders = convert(data, root, out, options, progress, _task(task), print_lines)
    for path in folders:
        print_lines(f"written {path}")
    command = "classify" if is_labelled(data, task) else "train"
    where = f"{data} --root {shlex.quote(str(out))}" if root and command == "classify" else shlex.quote(str(out))
    print_lines(f"Use it with: {program()} {command} --data {where}")


def _task(name: str) -> str:
    if name not in ("few-shot", "classify"):
        raise unknown("task", name, ("few-shot", "classify"))
    return name
