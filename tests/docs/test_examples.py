"""Every public name has an example in its docstring, and the examples are true."""

from __future__ import annotations

import ast
import doctest
import inspect
import itertools
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import fewshot_mcl

NAMES = [name for name in fewshot_mcl.__all__ if not name.startswith("__")]


def home(name: str) -> Any:
    """The module that a public name is written in."""
    thing = getattr(fewshot_mcl, name)
    room = next(room for room, names in fewshot_mcl._ROOMS.items() if name in names)
    return sys.modules[thing.__module__] if hasattr(thing, "__module__") else import_module(f"fewshot_mcl.{room}")


def documented(name: str) -> str:
    """The docstring of a public name; of a table, the string below it."""
    thing = getattr(fewshot_mcl, name)
    if callable(thing):
        return inspect.getdoc(thing) or ""
    body = ast.parse(Path(home(name).__file__).read_text(encoding="utf-8")).body
    for node, below in itertools.pairwise(body):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and isinstance(below, ast.Expr):
            return str(ast.literal_eval(below.value))
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_is_true(name: str) -> None:
    module = home(name)
    test = doctest.DocTestParser().get_doctest(documented(name), dict(vars(module)), name, module.__file__, 0)
    test.globs[name] = getattr(fewshot_mcl, name)
    assert test.examples, f"{name} has no example: its docstring wants a line that begins with >>>"
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert result.failed == 0, "".join(said)
