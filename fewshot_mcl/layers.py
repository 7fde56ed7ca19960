"""The layers that a configuration is made of: recipes, files and `--set`, as nested tables that are not checked yet."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fewshot_mcl.errors import UserError
from fewshot_mcl.resources import resource_dir

SCHEMA = 1  # of a configuration file, which may leave it out
MOST_BYTES, MOST_DOTS = 1 << 20, 200  # in a configuration file, and in a line of it: nested names cost the square
Values = dict[str, Any]


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(resource_dir("configs").glob("*.toml"))}


def read(path: Path) -> Values:
    """A configuration file. Raises `UserError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES or any(line.count(b".") > MOST_DOTS for line in content.splitlines()):
            raise ValueError("it is longer, or nested deeper, than any configuration")
        values = tomllib.loads(content.decode())
        if values.pop("schema", SCHEMA) != SCHEMA:
            raise UserError(f"{path} was written by a newer fewshot-mcl: update this one to read it.")
        return values
    except OSError as error:
        near = f" Recipes that come with the package: {', '.join(recipes())}." if path.suffix != ".toml" else ""
        raise UserError(f"cannot read the config file {path}: {error.strerror}.{near}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from error


def parsed(settings: list[str]) -> Values:
    """What `--set KEY=VALUE` says. Raises `UserError` where it says nothing."""
    result: Values = {}
    for setting in settings:
        name, sign, text = (part.strip() for part in setting.partition("="))
        if not sign or not name:
            raise UserError(f"--set {setting}: write key=value, for example --set weight_decay=0.0005.")
        try:
            [(_, value)] = tomllib.loads(f"x = {text}").items()
        except ValueError:
            value = text  # a bare word needs no quotes
        table, _, leaf = name.rpartition(".")
        result = merge(result, {table: {leaf: value}} if table else {name: value})
    return result


def merge(*layers: Values) -> Values:
    """Later layers replace single keys, also inside tables."""
    result: Values = {}
    for layer in layers:
        for name, value in layer.items():
            both_tables = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = {**result[name], **value} if both_tables else value
    return result


def with_conditions(lower: list[Values], file: Values, given: Values) -> tuple[list[Values], Values]:
    """The layers with their `[[when]]` tables resolved.

    Such a table names keys with the values they may have, and under `then` what holds in that case: a recipe differs
    by method, network and data.
    """
    chosen = merge(*lower, file, given)

    def resolved(layer: Values) -> Values:
        cases = layer.pop("when", [])
        if not isinstance(cases, list) or not all(map(_is_case, cases)):
            raise UserError(
                "[[when]] is a table of keys with lists of values, and a table 'then': see configs/paper-code.toml."
            )
        parted = [({k: v for k, v in case.items() if k != "then"}, case["then"]) for case in cases]
        return merge(layer, *(then for case, then in parted if all(chosen.get(k) in v for k, v in case.items())))

    return [resolved(layer) for layer in lower], resolved(file)


def _is_case(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, dict if k == "then" else list) for k, v in ({"then": 0} | value).items()
    )
