"""The command line: parse, call, print. Commands import what they need, so that --help needs no torch."""

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewshot_mcl import __version__
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import Interrupted, UserError, unknown
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.options import (
    CLASS_RECIPE,
    CLASS_RECIPES,
    DATA,
    DATA_HELP,
    EPISODES,
    METHOD,
    RECIPE,
    RECIPES,
    RUN,
    SHOWN,
    TABLE,
    TRAINING,
    BackboneName,
    Color,
    Data,
    Deterministic,
    DryRun,
    Group,
    Grouped,
    ImageSize,
    Method,
    OnBadImage,
    Out,
    Peers,
    ProtocolName,
    Resize,
    Resume,
    Root,
    Seed,
    Settings,
    Task,
    Teacher,
    Tune,
    given,
    option,
)  # fmt: skip
from fewshot_mcl.resources import program
from fewshot_mcl.screen import (
    packing_progress,
    print_choice,
    print_classification,
    print_estimate,
    print_estimates,
    print_evaluation,
    print_lines,
    training_lines,
    tuning_table,
)

if TYPE_CHECKING:
    from fewshot_mcl.config import Config
    from fewshot_mcl.training.session import Outcome
    from fewshot_mcl.training.tune import Tuning

app = typer.Typer(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 120},
    help="Few-shot metric learning with peers that teach each other. Start with: fewshot-mcl train --episodes 600",
)
data_app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at image data before training, or pack it for fast loading.",
)
app.add_typer(data_app, name="data")

BAD_INPUT, INTERRUPTED = 2, 130
UsageError: Any = typer.BadParameter.__bases__[0]  # what every bad command line is, whichever click typer stands on


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad input, 130 interrupted, 143 asked to end."""
    # Read when torch is imported: large tensors lie in huge pages, whose first use costs a fifth (Linux, CPU).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    sys.exit(_run())


def _run() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it: no terminal is too old for a ±
    try:
        code = _call()
        sys.stdout.flush()
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "fewshot-mcl"
        return _say(f"error: {error.format_message().rstrip('.')}. See {command} --help.", BAD_INPUT)
    except UserError as error:
        return _say(f"error: {error}", BAD_INPUT)
    except Interrupted as error:
        return _say(str(error), error.code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(f"error: {str(error.filename or 'the system')[:200]}: {error.strerror}.", BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _say(
            "error: not enough memory. Use a smaller --image-size, or fewer --peers, --way or --query.", BAD_INPUT
        )
    return _say("interrupted.", code) if code == INTERRUPTED else code


def _call() -> int:
    """Parse and run; of a command line that asks nothing, the help."""
    try:
        return app(standalone_mode=False, prog_name="fewshot-mcl") or 0
    except UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            raise
        print(error.format_message())
        return BAD_INPUT


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


@app.command(cls=Grouped)
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
        int | None, option(TRAINING, "Episodes, one optimizer step each.", default=RECIPE["episodes"])
    ] = None,
    way: Annotated[int | None, option(TRAINING, "Classes in an episode.", default=RECIPE["way"])] = None,
    shot: Annotated[int | None, option(TRAINING, "Support images of each class.", default=RECIPE["shot"])] = None,
    query: Annotated[int | None, option(TRAINING, "Query images of each class.", default=RECIPE["query"])] = None,
    lr: Annotated[float | None, option(TRAINING, "Learning rate of Adam.", default=RECIPE["lr"])] = None,
    seed: Seed = None,
    config: Annotated[
        str | None,
        option(RUN, f"A TOML file, or a recipe: {', '.join(RECIPES)}.", default="default; paper for mini-imagenet"),
    ] = None,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    tune: Tune = False,
    deterministic: Deterministic = False,
    dry_run: DryRun = False,
) -> None:
    """Train peers on episodes; the best by validation is kept. Defaults are those of the default recipe."""
    options = {
        "data": data, "root": root, "image_size": image_size, "color": color, "resize": resize,
        "on_bad_image": on_bad_image, "method": method, "teacher": teacher, "backbone": backbone, "peers": peers,
        "episodes": episodes, "way": way, "shot": shot, "query": query, "lr": lr, "seed": seed, "out": out,
        "deterministic": deterministic or None,
    }  # fmt: skip
    if dry_run:
        _dry_run("few-shot", config, options, settings, resume, tune)
        return
    print_lines(*training_lines(_train("few-shot", config, options, settings, resume, tune)))


@app.command(cls=Grouped)
def classify(
    data: Annotated[
        str | None,
        option(
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
        str | None, option(METHOD, ", ".join(BACKBONES), default=f"{CLASS_RECIPE['backbone']}; by recipe")
    ] = None,
    peers: Peers = None,
    epochs: Annotated[
        int | None,
        option(TRAINING, "Times through the training images.", default=f"{CLASS_RECIPE['epochs']}; by recipe"),
    ] = None,
    batch: Annotated[int | None, option(TRAINING, "Images a step.", default="by recipe")] = None,
    lr: Annotated[float | None, option(TRAINING, "Highest learning rate of SGD.", default="by recipe")] = None,
    seed: Seed = None,
    config: Annotated[
        str | None,
        option(
            RUN,
            f"A TOML file, or a recipe: {', '.join(CLASS_RECIPES)}.",
            default="classify; paper-code for cifar100, fashion-mnist, imagenet",
        ),
    ] = None,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = False,
    tune: Tune = False,
    deterministic: Deterministic = False,
    dry_run: DryRun = False,
    device: Annotated[str | None, option(SHOWN, "auto, cpu, cuda, ...", default="auto")] = None,
) -> None:
    """Train peers to classify images, then test the networks on images of the same classes they have not seen."""
    options = {
        "data": data, "root": root, "image_size": image_size, "color": color, "resize": resize,
        "on_bad_image": on_bad_image, "method": method, "teacher": teacher, "backbone": backbone, "peers": peers,
        "epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "out": out, "device": device,
        "deterministic": deterministic or None,
    }  # fmt: skip
    if dry_run:
        _dry_run("classify", config, options, settings, resume, tune)
        return
    outcome = _train("classify", config, options, settings, resume, tune)
    from fewshot_mcl.evaluation.class_session import evaluate_classifier

    print_lines(*training_lines(outcome))
    try:
        print_classification(evaluate_classifier(outcome.run, device=outcome.run.config.device))
    except KeyboardInterrupt:
        again = f"{program()} evaluate {shlex.quote(str(outcome.run.path))}"
        raise Interrupted(f"the run is trained and saved, and not tested. Test it with: {again}") from None


def _dry_run(
    task: str, config: str | None, options: dict[str, Any], settings: list[str] | None, resume: bool, tune: bool
) -> None:
    """Say what the run that these options describe would take."""
    if resume:
        raise UserError("--dry-run is of a new run: leave --resume out.")
    from fewshot_mcl.config import resolve
    from fewshot_mcl.training.estimate import estimate

    resolved = resolve(config, _as_text(options), settings, task=task)
    if tune:
        resolved, _ = _tuned(resolved)
    print_estimate(resolved, estimate(resolved))


def _tuned(config: "Config") -> "tuple[Config, Tuning]":
    """The fastest variant of a configuration, with what was measured on the way."""
    from fewshot_mcl.training.tune import tune

    config, tuning = tune(config, tuning_table())
    print_choice(tuning)
    return config, tuning


def _as_text(options: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def _train(
    task: str, config: str | None, options: dict[str, Any], settings: list[str] | None, resume: bool, tune: bool
) -> "Outcome":
    """The run that these options describe, trained or resumed."""
    from rich.console import Console

    from fewshot_mcl.config import resolve
    from fewshot_mcl.runs import Run

    if resume and tune:
        raise UserError("a run goes on as it was begun, so --tune is of a new run: leave --resume or --tune out.")
    options = _as_text(options)
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
    resolved, tuning = _tuned(resolved) if tune else (resolved, None)
    from fewshot_mcl.training import session

    return session.train(resolved, out, resume, Console(), tuning)


@app.command(cls=Grouped)
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    episodes: Annotated[int | None, option(EPISODES, "How many.", default=600)] = None,
    way: Annotated[int | None, option(EPISODES, "Classes in an episode.", default=5)] = None,
    shot: Annotated[
        list[int] | None, option(EPISODES, "Support images of each class; may be repeated.", default="1 and 5")
    ] = None,
    query: Annotated[int | None, option(EPISODES, "Query images of each class.", default=15)] = None,
    seed: Annotated[int | None, option(EPISODES, "Of the episodes.", default=0)] = None,
    protocol: ProtocolName = None,
    split: Annotated[str, given(DATA, "test or val.")] = "test",
    data: Annotated[
        str | None, option(DATA, "Other data, for a cross-domain test: as for train.", default="the run's own")
    ] = None,
    root: Root = None,
    checkpoint: Annotated[str, given(SHOWN, "best (by validation) or last.")] = "best",
    peers: Annotated[bool, option(SHOWN, "Show every peer and the ensemble too.", "--peers")] = False,
    as_json: Annotated[bool, option(SHOWN, "Print one JSON object and nothing else.", "--json")] = False,
    precision: Annotated[
        str, given(SHOWN, "float32; or bfloat16: faster, and what it changes is measured on some episodes.")
    ] = "float32",
    device: Annotated[str, given(SHOWN, "auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Accuracy on episodes of classes that training has not seen; or, of a run of `classify`, errors on test images."""
    for kind, value, valid in (("split", split, ("test", "val")), ("checkpoint", checkpoint, ("best", "last"))):
        if value not in valid:
            raise unknown(kind, value, valid)
    from fewshot_mcl.runs import Run

    opened = Run.open(run)
    if opened.config.task == "classify":
        from fewshot_mcl.evaluation.class_session import evaluate_classifier

        options = {"episodes": episodes, "way": way, "shot": shot, "query": query, "seed": seed, "protocol": protocol}
        options["split"] = split if split != "test" else None
        options["precision"] = precision if precision != "float32" else None
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
    content = evaluate_run(
        opened, measured, checkpoint=checkpoint, data=data, root=root, device=device, precision=precision
    )
    shown = [r for r in content["results"] if peers or r["network"] == content["deployed"]]
    if as_json:
        lean = [{key: value for key, value in r.items() if key != "accuracies"} for r in shown]
        print(json.dumps(content | {"results": lean}))
    else:
        print_evaluation(content, shown)


@app.command(cls=Grouped)
def reproduce(
    table: Annotated[str, typer.Argument(help="table1, table2, table3, table4 or ablation.", show_default=False)],
    rows: Annotated[list[str] | None, option(TABLE, "Rows; may be repeated.", default="all")] = None,
    columns: Annotated[list[str] | None, option(TABLE, "Columns; may be repeated.", default="all")] = None,
    seeds: Annotated[int, given(TABLE, "Runs of each cell.")] = 3,
    data: Annotated[str | None, option(DATA, "As for train or classify.", default="the table's own")] = None,
    root: Root = None,
    epochs: Annotated[int | None, option(TRAINING, "Of table1, table2, table3, ablation.", default="by recipe")] = None,
    episodes: Annotated[int | None, option(TRAINING, "Training episodes of table4.", default="by recipe")] = None,
    config: Annotated[
        str | None,
        option(
            TRAINING,
            f"A TOML file, or a recipe: {', '.join([*CLASS_RECIPES, *RECIPES])}.",
            default="that of the table's data",
        ),
    ] = None,
    settings: Settings = None,
    protocol: ProtocolName = None,
    jobs: Annotated[int, given(RUN, "Runs at a time.")] = 1,
    out: Annotated[
        Path | None, option(RUN, "Folder of the runs and the table; tables may share it.", default="reproduced/DATA")
    ] = None,
    dry_run: Annotated[bool, option(RUN, "Only list the runs, with what each would take.", "--dry-run")] = False,
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


@data_app.command("check", cls=Grouped)
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


@data_app.command("convert", cls=Grouped)
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
