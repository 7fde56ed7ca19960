"""Where the text files that ship with the toolkit lie."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


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
