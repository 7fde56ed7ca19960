"""Where the text files that ship with the toolkit lie, and how it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from fewshot_mcl.errors import UserError


def several() -> bool:
    """Whether this process was started as one of several, by torchrun or in its way."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def program() -> str:
    """What to type to run this program as it was run: `uv run` does not put it on the path."""
    return "uv run fewshot-mcl" if "UV_RUN_RECURSION_DEPTH" in os.environ else "fewshot-mcl"


def program_together() -> str:
    """The same, in as many processes as now."""
    if not several():
        return program()
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '1')} -m fewshot_mcl"


def existing_run(path: Path) -> Path:
    """`path`, where it is a run directory; otherwise a `UserError`."""
    if (path / "config.toml").is_file():
        return path
    what = "is not a run directory (it has no config.toml)" if path.exists() else "does not exist"
    raise UserError(f"{path} {what}. A run directory is what 'fewshot-mcl train' prints when it starts.")


def resource_dir(kind: Literal["splits", "configs"]) -> Path:
    """The folder of the bundled `kind`: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: where the installation lacks it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the folder '{kind}' is missing from this installation of fewshot-mcl")
