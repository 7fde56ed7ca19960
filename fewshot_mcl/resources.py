"""Where the text files that ship with the toolkit lie, and how it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal


def program() -> str:
    """What to type to run this program as it was run: `uv run` does not put it on the path."""
    return "uv run fewshot-mcl" if "UV_RUN_RECURSION_DEPTH" in os.environ else "fewshot-mcl"


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
