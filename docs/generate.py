"""A hook of mkdocs: the parts of the pages that are read from the package itself, so that they cannot differ from it.

A line `<!-- generate: NAME WORDS -->` in a page is replaced by what `PARTS[NAME]` makes of the words.
"""

from __future__ import annotations

import importlib
import itertools
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

MARK = re.compile(r"^<!-- generate: (\S+) ?(.*) -->$", re.MULTILINE)
SETTING = re.compile(r"^(?:# )?(\w+) = (.+?)(?:\s+# (.*))?$")  # of a recipe; one that is commented out has no default
UNSET = "not set"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for every page."""
    return MARK.sub(lambda found: PARTS[found[1]](*found[2].split()), markdown)


def table(columns: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(value: object) -> str:
    """A value as it is typed."""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def commands() -> str:
    """The help of every command."""
    import os

    import typer.main

    from fewshot_mcl.cli import app

    os.environ["COLUMNS"] = "100"
    parts = []

    def add(command: Any, context: Any) -> None:
        parts.append(f"## {context.command_path}\n\n```text\n{command.get_help(context).strip()}\n```")
        for name, inner in getattr(command, "commands", {}).items():
            with inner.make_context(name, [], parent=context, resilient_parsing=True) as below:
                add(inner, below)

    group = typer.main.get_command(app)
    with group.make_context("fewshot-mcl", [], resilient_parsing=True) as context:
        add(group, context)
    return "\n\n".join(parts)


def methods() -> str:
    """Every method, with the first sentence of its class."""
    from fewshot_mcl.objectives import METHODS

    found = {name: getattr(_module("objectives", where), where.split(":")[1]) for name, where in METHODS.items()}
    return table(["method", "what it is"], [[code(name), first_line(cls)] for name, cls in found.items()])


def backbones() -> str:
    """Every backbone, with the first sentence of its maker."""
    from fewshot_mcl.networks import BACKBONES

    rows = []
    for name, where in BACKBONES.items():
        module = _module("networks", where)
        rows.append([code(name), first_line(module)])
    return table(["backbone", "what it is"], rows)


def _module(room: str, where: Any) -> Any:
    return importlib.import_module(f"fewshot_mcl.{room}.{str(where).split(':')[0]}")


def options() -> str:
    """Every option of every method: its kind, its default, and who has it."""
    from fewshot_mcl.objectives import METHODS, options_of

    found: dict[tuple[str, str, str], list[str]] = {}
    for method in METHODS:
        for name, parameter in options_of(method).items():
            found.setdefault((name, _kind(parameter.annotation), code(parameter.default)), []).append(code(method))
    rows = [[code(name), kind, default, ", ".join(whose)] for (name, kind, default), whose in sorted(found.items())]
    return table(["option", "kind", "default", "of"], rows)


def _kind(annotation: Any) -> str:
    """A type in words."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if "Literal" in str(annotation):
        return " or ".join(code(value) for value in re.findall(r"'([^']*)'", str(annotation)))
    return re.sub(r"typing\.|Annotated\[|\bNoneType\b", "", str(text))


def recipes() -> str:
    """Every recipe with the first line of its file."""
    from fewshot_mcl.config import COMMANDS
    from fewshot_mcl.layers import recipes as paths

    rows = []
    for name, path in paths().items():
        text = path.read_text(encoding="utf-8")
        task = tomllib.loads(text).get("task", "few-shot")
        rows.append([code(name), code(COMMANDS[task]), _sentence(text)])
    return table(["recipe", "of", "what it is"], rows)


def _sentence(recipe: str) -> str:
    """The first sentence of the comment at the head of a recipe."""
    head = itertools.takewhile(lambda line: line.startswith("#"), recipe.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in head).partition(". ")[0].rstrip(".")


def configuration(task: str) -> str:
    """Every key of a task: kind and limits from its class, default and meaning from its default recipe."""
    from fewshot_mcl.config import RECIPE_OF, TASKS
    from fewshot_mcl.layers import recipes as paths

    text = paths()[RECIPE_OF[task][""]].read_text(encoding="utf-8")
    defaults, meaning = tomllib.loads(text), _meanings(text)
    rows = []
    for name, field in TASKS[task].model_fields.items():
        if name not in ("task", "objective"):
            default = code(defaults[name]) if name in defaults else UNSET
            rows.append([code(name), _limited(field), default, meaning.get(name, "")])
    return table(["key", "kind", "default", "what it means"], rows)


def _limited(field: Any) -> str:
    """The kind of a key, with its limits."""
    signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = [
        f"{words} {getattr(each, sign)}"
        for each in field.metadata
        for sign, words in signs.items()
        if hasattr(each, sign)
    ]
    return ", ".join([_kind(field.annotation), *limits])


def _meanings(recipe: str) -> dict[str, str]:
    """What the comments of a recipe say of each key, over all the lines that a comment has."""
    found: dict[str, str] = {}
    last = ""
    for line in recipe.splitlines():
        if setting := SETTING.match(line):
            last = setting[1]
            found[last] = setting[3] or ""
        elif line.startswith(" ") and last:
            found[last] += " " + line.strip().removeprefix("# ")
        else:
            last = ""
    return found


def python() -> str:
    """Every public name, for mkdocstrings."""
    import fewshot_mcl

    rooms = {name: room for room, names in fewshot_mcl._ROOMS.items() for name in names}
    parts = []
    for room in dict.fromkeys(rooms.values()):
        parts.append(f"## fewshot_mcl.{room}")
        for name in (name for name, where in rooms.items() if where == room):
            thing = getattr(fewshot_mcl, name)
            module = getattr(thing, "__module__", f"fewshot_mcl.{room}") if callable(thing) else f"fewshot_mcl.{room}"
            parts.append(f"::: {module}.{name}")
    return "\n\n".join(parts)


PARTS: dict[str, Callable[..., str]] = {
    "commands": commands,
    "methods": methods,
    "backbones": backbones,
    "options": options,
    "recipes": recipes,
    "configuration": configuration,
    "python": python,
}
