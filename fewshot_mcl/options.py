"""Options that commands share: what each is called, its line of help, and what holds where it is not given."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from fewshot_mcl.commands import completion
from fewshot_mcl.commands.guide import GROUPS, example_lines
from fewshot_mcl.errors import UserError
from fewshot_mcl.keys import check_words
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS
from fewshot_mcl.resources import existing_run, resource_dir


def _unless_given(option: Any) -> Any:
    """A flag that is False, not None, where it is not given: None is converted to bool, by importing pydantic."""
    if option is not None:
        option.default = False
    return option


def _write_examples(ctx: Any, formatter: Any) -> None:
    """The examples of a command, each on a line of its own however narrow the terminal is: it is to be copied."""
    lines = example_lines(ctx.command_path.partition(" ")[2])
    if lines:
        with formatter.section("Examples"):
            formatter.write("".join(f"{'':{formatter.current_indent}}{line}\n" for line in lines))


class Group(TyperGroup):
    """Commands that are found, or not, without converting anything; the help has them in groups."""

    def get_help_option(self, ctx: Any) -> Any:
        return _unless_given(super().get_help_option(ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options; those that install completion are False where they are not given, for the reason above."""
        found = super().get_params(ctx)
        return [
            _unless_given(each) if each.name in ("install_completion", "show_completion") else each for each in found
        ]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        left = dict(self.commands)
        groups = {title: [name for name in names if name in left] for title, names in GROUPS.items()}
        groups["Commands"] = [name for name in left if not any(name in names for names in groups.values())]
        for title, names in groups.items():
            if names:
                with formatter.section(title):
                    formatter.write_dl([(name, left[name].get_short_help_str(200)) for name in names])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(ctx, formatter)


class Grouped(TyperCommand):
    """A command whose help has its options in their panels. (rich, which would draw them, takes longer than all the rest.)

    What its words name is looked for before any of them is converted: that takes pydantic, and more time than all the rest.
    """

    def get_help_option(self, ctx: Any) -> Any:
        return _unless_given(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if not words.get("help") and not ctx.resilient_parsing:  # which is what a shell asks for that completes a word
            self._require_numbers(words)
            check_words(self.name, words, RECIPE["method"])
            if words.get("run"):
                existing_run(Path(words["run"]))
        return super().parse_args(ctx, args)

    def _require_numbers(self, words: dict[str, Any]) -> None:
        for parameter in self.params:
            kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)  # which old versions lack
            kind = next(iter(get_args(kind)), kind)
            given = words.get(parameter.name or "")
            for text in given if isinstance(given, list) else [given]:
                if kind in (int, float) and text is not None:
                    try:
                        kind(text)
                    except ValueError as error:
                        what = "a whole number" if kind is int else "a number"
                        raise UserError(f"{parameter.opts[-1]} {text}: {what} is needed here.") from error

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            name = getattr(parameter, "rich_help_panel", None)
            panel = name or ("Arguments" if parameter.param_type_name == "argument" else "Help")
            record = parameter.get_help_record(ctx)
            if record:
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(ctx, formatter)


def recipes_of(task: str) -> dict[str, dict[str, Any]]:
    """The recipes of a task, by name."""
    read = {
        p.stem: tomllib.loads(p.read_text(encoding="utf-8")) for p in sorted(resource_dir("configs").glob("*.toml"))
    }
    return {name: recipe for name, recipe in read.items() if recipe.get("task", "few-shot") == task}


RECIPES, CLASS_RECIPES = recipes_of("few-shot"), recipes_of("classify")
RECIPE, CLASS_RECIPE = RECIPES["default"], CLASS_RECIPES["classify"]
DATA, METHOD, TRAINING, RUN, TABLE = "Data", "Method", "Training", "Run", "Table"  # panels of the help
EPISODES, SHOWN, OUTPUT = "Episodes", "Networks", "Output"


Complete = Callable[..., list[str]]


def option(
    panel: str, help: str, *names: str, default: object = None, complete: Complete | None = None, **more: Any
) -> Any:
    """An option without a value of its own; `default` says what holds then, `complete` what a shell may offer."""
    shown = str(default) if default is not None else False
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=shown, autocompletion=complete, **more)


def given(panel: str, help: str, *names: str, complete: Complete | None = None) -> Any:
    """An option whose value stands in the signature."""
    return typer.Option(*names, help=help, rich_help_panel=panel, autocompletion=complete)


FEW_SHOT_DATA = (
    "mini-imagenet, tiered-imagenet, cifar-fs, fc100, cub (in the split closer-look; or cub-meta-dataset, cub-feat), omniglot "
    "(in Vinyals' split; or omniglot-background)"
)
Data = Annotated[
    str | None,
    option(
        DATA,
        f"glyphs; {FEW_SHOT_DATA} (with --root); or the path of a folder.",
        default=RECIPE["data"],
        complete=completion.data_sets,
    ),
]
Root = Annotated[Path | None, option(DATA, "Where the files of a named data set lie.", complete=completion.files)]
ImageSize = Annotated[int | None, option(DATA, "Side of the images in pixels.", default="the data's own")]
Color = Annotated[
    str | None,
    option(
        DATA,
        "rgb, grey, or auto: as the data has it.",
        default=RECIPE["color"],
        complete=completion.one_of("auto", "rgb", "grey"),
    ),
]
Resize = Annotated[
    str | None,
    option(
        DATA,
        "crop keeps the aspect ratio, squash does not.",
        default=RECIPE["resize"],
        complete=completion.one_of("crop", "squash"),
    ),
]
OnBadImage = Annotated[
    str | None,
    option(
        DATA,
        "What to do about unreadable images: refuse or skip.",
        default=RECIPE["on_bad_image"],
        complete=completion.one_of("refuse", "skip"),
    ),
]
Method = Annotated[
    str | None, option(METHOD, ", ".join(METHODS), default=RECIPE["method"], complete=completion.one_of(*METHODS))
]
Teacher = Annotated[
    Path | None, option(METHOD, "A finished run to learn from (rkd-d, rkd-da).", complete=completion.runs)
]
BackboneName = Annotated[
    str | None, option(METHOD, ", ".join(BACKBONES), default=RECIPE["backbone"], complete=completion.one_of(*BACKBONES))
]
Peers = Annotated[
    int | None, option(METHOD, "How many networks learn together.", default=f"{RECIPE['peers']}; baseline: 1")
]
Seed = Annotated[int | None, option(TRAINING, "Of every draw.", default=RECIPE["seed"])]
Settings = Annotated[
    list[str] | None,
    option(
        RUN,
        "Any key of the configuration; may be repeated.",
        "--set",
        metavar="KEY=VALUE",
        complete=completion.settings,
    ),
]
DryRun = Annotated[
    bool, option(RUN, "Only say what the run would take: time, memory, disk. Nothing is written.", "--dry-run")
]
WorldSize = Annotated[
    int | None,
    option(RUN, "With --dry-run: say what it would take with so many processes (torchrun), too.", "--world-size"),
]
Bandwidth = Annotated[
    float | None,
    option(RUN, "With --world-size: of each process's link, in GB/s.", "--bandwidth", default=10),
]
Deterministic = Annotated[
    bool,
    option(
        RUN,
        "The same bytes whatever the number of threads, and slower: one thread, ordered GPU sums.",
        "--deterministic",
    ),
]
Tune = Annotated[
    bool,
    option(
        RUN,
        "First measure which variant of the run is fastest here, and take it; values are equal but for rounding.",
        "--tune",
    ),
]
Out = Annotated[
    Path | None, option(RUN, "The run directory to make.", default="a new one under runs/", complete=completion.files)
]
AsJson = Annotated[
    bool,
    option(OUTPUT, "One JSON object on standard output and nothing else; progress on standard error.", "--json"),
]
Quiet = Annotated[bool, option(OUTPUT, "Only results and errors.", "--quiet")]
Resume = Annotated[bool, option(RUN, "Continue the run in --out.", "--resume")]


ProtocolName = Annotated[
    str | None,
    option(
        EPISODES,
        "paper-text: 600 episodes of 15 queries, as the paper says; baseline-repo: 2,000 of 30, as its intervals fit.",
        complete=completion.one_of("paper-text", "baseline-repo"),
    ),
]
DATA_HELP = f"The path of a folder; glyphs; or (with --root) cifar100, fashion-mnist, imagenet, {FEW_SHOT_DATA}."
Task = Annotated[
    str,
    given(
        DATA,
        "few-shot: splits of different classes; classify: of the same, which cifar100, fashion-mnist and imagenet are.",
        complete=completion.one_of("few-shot", "classify"),
    ),
]
