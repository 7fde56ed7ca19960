"""A command line, typed."""

from __future__ import annotations

import sys

import pytest

from fewshot_mcl import cli


def typed(arguments: list[str], patch: pytest.MonkeyPatch) -> int:
    """The exit code of a command line."""
    patch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)
