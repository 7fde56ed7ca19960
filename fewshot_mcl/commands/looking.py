"""`doctor` and `list`: what there is."""

import ast
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fewshot_mcl.errors import BAD_INPUT, unknown
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS
from fewshot_mcl.options import SHOWN, option
from fewshot_mcl.resources import program, resource_dir
from fewshot_mcl.screen import print_lines

PACKAGE = Path(__file__).parents[1]
MARKS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM", "absent": "-"}
KINDS = ("methods", "backbones", "data", "recipes", "models")


def doctor(
    as_json: Annotated[bool, option(SHOWN, "Print one JSON object and nothing else.", "--json")] = False,
) -> None:
    """Say whether this installation works here: versions, devices, room, and a self-test of seconds. Exit code 2 if not."""
    from fewshot_mcl.doctor import examine

    found = []

    def begin(section: str) -> None:
        if not as_json:
            print_lines(f"{section}{' (less than ten seconds on an idle machine)' if section == 'self-test' else ''}:")

    for line in examine(begin):
        found.append(line)
        if not as_json:
            text = [f"  {MARKS[line.state]:<7}  {line.name}: {line.value}"]
            print_lines(*fitted(text + ([f"{'':<11}{line.advice}"] if line.advice else []), 11))
    states = [line.state for line in found]
    usable = "problem" not in states
    counts: dict[str, int] = {state: sum(each == state for each in states) for state in MARKS}
    if as_json:
        print(
            json.dumps(
                {
                    "usable": usable,
                    "counts": {state: counts[state] for state in MARKS},
                    "lines": [vars(line) for line in found],
                }
            )
        )
    else:
        how = f"usable, {counts['warning']} warning(s)" if usable else f"NOT usable: {counts['problem']} problem(s)"
        print_lines(how)
    if not usable:
        raise typer.Exit(BAD_INPUT)


def fitted(lines: Iterable[str], indent: int = 2) -> Iterator[str]:
    """Lines that a terminal would break in the middle of a word, broken between words; elsewhere as they are."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines:
        if width <= indent + 20 or len(line) <= width:
            yield line
            continue
        yield from textwrap.wrap(
            line, width, subsequent_indent=" " * indent, drop_whitespace=True, break_long_words=False
        )


def list_names(
    kind: Annotated[str | None, typer.Argument(help=f"{', '.join(KINDS)}; all if none is named.")] = None,
    as_json: Annotated[bool, option(SHOWN, "Print one JSON object and nothing else.", "--json")] = False,
) -> None:
    """Methods, backbones, data sources, recipes and packaged models, each with a line."""
    if kind not in (None, *KINDS):
        raise unknown("list", str(kind), KINDS)
    tables = {"methods": _methods, "backbones": _backbones, "data": _data, "recipes": _recipes, "models": _models}
    found = {name: look() for name, look in tables.items() if kind in (None, name)}
    if as_json:
        print(json.dumps(found))
        return
    for name, table in found.items():
        if len(found) > 1:
            print_lines(f"{name}{_USES[name].replace('fewshot-mcl', program())}:")
        width = max(map(len, table), default=0)
        rows = [f"  {each:<{width}}  {line}" for each, line in table.items()] or ["  none in this version"]
        print_lines(*fitted(rows, width + 4))


_USES = {
    "methods": " (fewshot-mcl train --method NAME)", "backbones": " (fewshot-mcl train --backbone NAME)",
    "data": " (fewshot-mcl train --data NAME, or classify)", "recipes": " (fewshot-mcl train --config NAME, or classify)",
    "models": "",
}  # fmt: skip


def _methods() -> dict[str, str]:
    return _described(METHODS, "objectives")


def _backbones() -> dict[str, str]:
    libraries = {
        "torchvision/NAME": "A model of torchvision (extra torchvision).", "timm/NAME": "A model of timm (extra timm).",
    }  # fmt: skip
    return _described(BACKBONES, "networks") | libraries


def _described(table: dict[str, str], room: str) -> dict[str, str]:
    """By name: the first sentence of its module or, where several share that, of its class."""
    modules = [place.partition(":")[0] for place in table.values()]
    found = {}
    for name, place in table.items():
        module, _, cls = place.partition(":")
        found[name] = _sentence(PACKAGE / room / f"{module}.py", cls if modules.count(module) > 1 else None)
    return found


def _data() -> dict[str, str]:
    from fewshot_mcl.config import NAMED_DATA

    folders = {"PATH": _sentence(PACKAGE / "data" / "folder.py")}
    found: dict[Path, str] = {}  # module -> the first name of what it reads
    lines = {}
    for name in NAMED_DATA:
        first = found.setdefault(_source_file(name), name)
        of = f"As {first}, in the split {name.removeprefix(f'{first}-')}."
        lines[name] = _sentence(_source_file(name)) if first == name else of
    return lines | folders


def _source_file(name: str) -> Path:
    """The module of a data source: of its name, of the set whose named split it is, or whose first sentence names it."""
    for each in (name.replace("-", "_"), name.partition("-")[0]):
        if (own := PACKAGE / "data" / f"{each}.py").exists():
            return own
    key = re.sub(r"\W", "", name)
    files = sorted((PACKAGE / "data").glob("*.py"))
    return next((path for path in files if key in re.sub(r"\W", "", _sentence(path)).lower()), own)


def _recipes() -> dict[str, str]:
    return {
        path.stem: _first(" ".join(_comment(path.read_text(encoding="utf-8"))))
        for path in sorted(resource_dir("configs").glob("*.toml"))
    }


def _comment(text: str) -> Iterator[str]:
    """The lines of the comment that a file begins with."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.lstrip("# ")


def _models() -> dict[str, str]:
    if find_spec("fewshot_mcl.models") is None:
        return {}
    from importlib import import_module

    return dict(import_module("fewshot_mcl.models").MODELS)


def _sentence(path: Path, cls: str | None = None) -> str:
    """The first sentence of a module's docstring, or of a class's in it, read without importing anything."""
    if not path.exists():
        return ""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls] if cls else [tree]
    return _first((ast.get_docstring(nodes[0]) or "") if nodes else "")


def _first(text: str) -> str:
    """The first sentence, on one line; what stands behind a full stop inside brackets or quotes still belongs to it."""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[\w)\"'%][.])\s+(?=[A-Z])", line, maxsplit=1)[0]
