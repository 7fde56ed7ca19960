"""The one exception that reaches a user: its text says what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits with code 2."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """A `UserError` for a name that does not exist, with the nearest valid one."""
    names = sorted(valid)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {kind} '{name}'.{hint} Valid: {', '.join(names)}.")
