"""Which methods, backbones and settings there are, known without importing them: that takes seconds, and a mistyped name none."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.networks import BACKBONES
from fewshot_mcl.objectives import METHODS

COMMANDS = {"few-shot": "train", "classify": "classify"}  # of the command line, by task
CONFIGS = {"few-shot": "FewShotConfig", "classify": "ClassifyConfig"}


def check_names(values: Mapping[str, Any]) -> None:
    """Raise `UserError` where `values` name a method or a backbone that does not exist."""
    for name, valid in (("method", METHODS), ("backbone", BACKBONES)):
        value = values.get(name)
        if value is not None and str(value) not in valid and "/" not in str(value):  # a library's model
            raise unknown(name, str(value), valid)


def unknown_key(name: str, task: str, method: str) -> UserError:
    """The error of a key that no configuration of the task has; what is near may be an option of the method."""
    return unknown("config key", name, [*config_keys(task), *(f"objective.{each}" for each in option_names(method))])


def check_words(command: str | None, words: Mapping[str, Any], method: str) -> None:
    """Raise `UserError` where the words of a command line, by parameter, name what does not exist; `method` is the usual one."""
    check_names(words)
    task = next((task for task, its in COMMANDS.items() if its == command), None)
    if task is None or words.get("config"):  # a file says which method its keys belong to
        return
    settings = (setting.partition("=") for setting in words.get("settings") or ())
    for name in (name.strip() for name, sign, _ in settings if sign):
        if name and "." not in name and name not in [*config_keys(task), "objective"]:
            raise unknown_key(name, task, words.get("method") or method)


def config_keys(task: str) -> list[str]:
    """The keys of a task's configuration, without its table of options."""
    fields = [node for cls in _classes("config", CONFIGS[task]) for node in cls.body if isinstance(node, ast.AnnAssign)]
    names = [f.target.id for f in fields if isinstance(f.target, ast.Name) and "ClassVar" not in ast.dump(f.annotation)]
    return [name for name in names if name != "objective"]


def option_names(method: str) -> list[str]:
    """The names of a method's options: those of `objectives.options_of`."""
    if method not in METHODS:
        return []
    module, name = METHODS[method].split(":")
    classes = list(_classes(f"objectives.{module}", name))
    if any(cls.name == "Mcl" for cls in classes):
        classes += _classes("objectives.contrast", "MultiViewContrast")
    functions = [node for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef)]
    return [each.arg for function in functions if function.name == "__init__" for each in function.args.kwonlyargs]


def _classes(module: str, name: str) -> Iterator[ast.ClassDef]:
    """A class of this package and its bases, as they are written."""
    body = _source(module)
    imports = [node for node in body if isinstance(node, ast.ImportFrom) and node.module]
    homes = {alias.name: str(node.module).removeprefix("fewshot_mcl.") for node in imports for alias in node.names}
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield node
            for base in node.bases:
                if isinstance(base, ast.Name) and base.id != "BaseModel":
                    yield from _classes(homes.get(base.id, module), base.id)


@cache
def _source(module: str) -> list[ast.stmt]:
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")).body
