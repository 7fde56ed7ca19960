"""What a shell may complete: names of methods, backbones, recipes, runs, data sets and settings. Where nothing fits, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fewshot_mcl.keys import COMMANDS, config_keys, option_names

NAMED_DATA = ("glyphs", "mini-imagenet", "cifar100", "fashion-mnist", "imagenet")
RUN_FOLDERS = ("*", "runs/*", "reproduced/*/*")  # where runs usually lie, seen from here
MOST = 200  # folders that are looked at


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Completes to one of `values`."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def files(incomplete: str) -> list[str]:
    """Nothing of ours, so that the shell completes names of files."""
    return []


def runs(incomplete: str) -> list[str]:
    """Run directories nearby."""
    found = (path for pattern in RUN_FOLDERS for path in _folders(pattern))
    return [str(path) for path in found if (path / "config.toml").is_file() and str(path).startswith(incomplete)]


def data_sets(incomplete: str) -> list[str]:
    """Data sets that have a name, and the folders here."""
    here = [str(path) for path in _folders("*")]
    return [name for name in (*NAMED_DATA, *here) if name.startswith(incomplete)]


def settings(ctx: Any, incomplete: str) -> list[str]:
    """Keys of the configuration, with those of the method."""
    task = next((task for task, command in COMMANDS.items() if command == ctx.command.name), "few-shot")
    method = ctx.params.get("method") or "mcl-okd"
    keys = [*config_keys(task), *(f"objective.{name}" for name in option_names(method))]
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


def _folders(pattern: str) -> Iterable[Path]:
    paths = (path for path in sorted(Path().glob(pattern)) if path.is_dir() and not path.name.startswith("."))
    return (path for path, _ in zip(paths, range(MOST)))
