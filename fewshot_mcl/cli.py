"""The command line: parse, call, print. Commands import what they need, so that --help needs no torch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewshot_mcl import __version__
from fewshot_mcl.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

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


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad input, 130 interrupted."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted. What the last checkpoint holds is safe; continue with --out RUN --resume.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


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


Data = Annotated[str | None, typer.Option(help="glyphs, mini-imagenet (with --root), or the path of a folder.")]
Root = Annotated[Path | None, typer.Option(help="Where the files of a named data set lie.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the images in pixels; default: the data's own.")]
Color = Annotated[str | None, typer.Option(help="rgb, grey, or auto: as the data has it.")]
Resize = Annotated[str | None, typer.Option(help="crop keeps the aspect ratio, squash does not.")]
OnBadImage = Annotated[str | None, typer.Option(help="What to do about unreadable images: refuse or skip.")]


@app.command()
def train(
    data: Data = None,
    root: Root = None,
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
    method: Annotated[str | None, typer.Option(help="baseline, mcl or mcl-okd.")] = None,
    backbone: Annotated[str | None, typer.Option(help="conv4.")] = None,
    peers: Annotated[int | None, typer.Option(help="How many networks learn together.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Training episodes, one optimizer step each.")] = None,
    way: Annotated[int | None, typer.Option(help="Classes in a training episode.")] = None,
    shot: Annotated[int | None, typer.Option(help="Support images of each class.")] = None,
    query: Annotated[int | None, typer.Option(help="Query images of each class.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every draw.")] = None,
    config: Annotated[str | None, typer.Option(help="A TOML file, or a recipe: default, paper, paper-5shot.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory to make; default: a new one under runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Train peers on episodes; the best by validation is kept."""
    from rich.console import Console

    from fewshot_mcl.config import resolve
    from fewshot_mcl.runs import Run

    options = {
        "data": data, "root": str(root) if root else None, "image_size": image_size, "color": color, "resize": resize,
        "on_bad_image": on_bad_image, "method": method, "backbone": backbone, "peers": peers, "episodes": episodes,
        "way": way, "shot": shot, "query": query, "lr": lr, "seed": seed,
    }  # fmt: skip
    if resume:
        if out is None:
            raise UserError("which run is to be resumed? Name its directory: --out RUN --resume.")
        resolved = _resumed(Run.open(out).path, options, config, settings)
    else:
        resolved = resolve(config, options, settings)
        out = out or (Path(resolved.out) if resolved.out else None)
        if out is not None and out.exists():
            raise UserError(f"{out} exists. Choose another --out, or continue that run: --out {out} --resume.")
    from fewshot_mcl.training import session

    console = Console()
    _print_outcome(console, session.train(resolved, out, resume, console))


def _resumed(path: Path, options: dict[str, Any], config: str | None, settings: list[str] | None) -> Any:
    """The configuration of the run at `path`; whatever else is given must agree with it."""
    from fewshot_mcl.config import resolve

    saved = resolve(str(path / "config.toml"))
    asked = resolve(config or str(path / "config.toml"), options, settings)
    for name, value in asked.model_dump(exclude={"out"}).items():
        if value != (old := getattr(saved, name)):
            raise UserError(
                f"{name} = {value}, but the run {path} has {name} = {old}: a resumed run keeps its settings. Leave the option "
                f"out, or start a new run: --config {path / 'config.toml'} with another --out."
            )
    return saved


def _print_outcome(console: Console, outcome: Outcome) -> None:
    from fewshot_mcl.training.display import network_label, percent

    config, run = outcome.run.config, outcome.run.path
    first = next(iter(outcome.results.values()))
    minutes, seconds = divmod(round(outcome.seconds), 60)
    lines = [
        "",
        f"Trained in {minutes} min {seconds} s. Best checkpoint by validation: episode {outcome.best_episode}.",
        f"Accuracy on the validation split, {config.val_way}-way {config.val_shot}-shot, {config.val_query} queries a class, "
        f"{first.episodes} episodes not used for choosing it, mean ± 95% interval:",
        *(f"  {network_label(name, config.peers):<18} {percent(r)} %" for name, r in outcome.results.items()),
        "Next, on the test split (classes that training has not seen and did not choose by):",
        f"  fewshot-mcl evaluate {run}",
    ]
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    episodes: Annotated[int, typer.Option(help="Test episodes.")] = 600,
    way: Annotated[int, typer.Option(help="Classes in an episode.")] = 5,
    shot: Annotated[
        list[int] | None, typer.Option(help="Support images of each class; may be repeated. Default: 1 and 5.")
    ] = None,
    query: Annotated[int, typer.Option(help="Query images of each class.")] = 15,
    seed: Annotated[int, typer.Option(help="Of the episodes.")] = 0,
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    peers: Annotated[bool, typer.Option("--peers", help="Show every peer and the ensemble too.")] = False,
    checkpoint: Annotated[str, typer.Option(help="best (by validation) or last.")] = "best",
    data: Annotated[str | None, typer.Option(help="Other data than the run's own, for a cross-domain test.")] = None,
    root: Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Accuracy on episodes of classes that training has not seen, with its 95% interval."""
    from fewshot_mcl.errors import unknown
    from fewshot_mcl.evaluation.session import Protocol, evaluate_run
    from fewshot_mcl.runs import Run

    for kind, value, valid in (("split", split, ("test", "val")), ("checkpoint", checkpoint, ("best", "last"))):
        if value not in valid:
            raise unknown(kind, value, valid)
    protocol = Protocol(way, tuple(dict.fromkeys(shot or (1, 5))), query, episodes, seed, split)
    content = evaluate_run(Run.open(run), protocol, checkpoint=checkpoint, data=data, root=root, device=device)
    shown = [r for r in content["results"] if peers or r["network"] == content["deployed"]]
    if as_json:
        lean = [{key: value for key, value in r.items() if key != "accuracies"} for r in shown]
        print(json.dumps(content | {"results": lean}))
    else:
        _print_evaluation(content, shown)


def _print_evaluation(content: dict[str, Any], shown: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = shown[0]
    console = Console()
    head = [
        f"{content['run']}: {content['method']}, {content['backbone']}, {content['checkpoint']} checkpoint (episode "
        f"{content['checkpoint_episode']})",
        f"{content['data']}, {first['split']} split: {content['classes']} classes, {content['images']} images, "
        f"{content['image_size']} pixels, {content['resize']}",
        f"{first['way']}-way, {first['query']} queries a class, {first['episodes']} episodes, seed {first['seed']}; accuracy in "
        f"% ± 95% interval (1.96 s / sqrt E over episodes)",
        *content["notes"],
    ]
    console.print("\n".join(head), soft_wrap=True, highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2))
    for name in ("", "shot", "accuracy", "deviation"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for r in shown:
        label = f"{r['network']} (deployed)" if r["network"] == content["deployed"] else r["network"]
        table.add_row(label, str(r["shot"]), f"{100 * r['mean']:.2f} ± {100 * r['ci95']:.2f}", f"{100 * r['std']:.2f}")
    console.print(table)
    console.print(f"every episode's accuracy: {content['file']}", soft_wrap=True, highlight=False, markup=False)


def _image_options(image_size: int | None, color: str | None, resize: str | None, on_bad_image: str | None) -> Any:
    from fewshot_mcl.config import resolve

    options = {"image_size": image_size, "color": color, "resize": resize, "on_bad_image": on_bad_image}
    return resolve("default", options).image_options


@data_app.command("check")
def data_check(
    data: Annotated[str, typer.Argument(help="The path of a folder, glyphs, or mini-imagenet (with --root).")],
    root: Root = None,
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
) -> None:
    """Report format, counts and problems of image data. Exit code 0 if it is ready to use, else 2."""
    from fewshot_mcl.data.check import check

    report = check(data, root, _image_options(image_size, color, resize, on_bad_image))
    print("\n".join(report.lines()))
    if not report.ok:
        raise typer.Exit(BAD_INPUT)


@data_app.command("convert")
def data_convert(
    data: Annotated[str, typer.Argument(help="The path of a folder, glyphs, or mini-imagenet (with --root).")],
    out: Annotated[Path, typer.Option(help="The folder to write the packed store to; it must not exist.")],
    root: Root = None,
    image_size: ImageSize = None,
    color: Color = None,
    resize: Resize = None,
    on_bad_image: OnBadImage = None,
) -> None:
    """Decode once and write a packed store, which trains from `--data OUT` without decoding again."""
    from fewshot_mcl.data.check import convert

    for path in convert(data, root, out, _image_options(image_size, color, resize, on_bad_image)):
        print(f"written {path}")
    print(f"Use it with: fewshot-mcl train --data {out}")
