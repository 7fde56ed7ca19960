"""The exceptions that reach a user: their text says what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
LISTED = 12  # more valid names than this are not listed: the nearest one is named whatever it is


class UserError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits with code 2."""


class PartedError(UserError):
    """One whose text falls into two parts.

    Attributes:
        what: is wrong, without what to do about it.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}. {advice}")
        self.what = what


class DamagedError(PartedError):
    """A file is missing, or not as it was written."""


class WriteError(PartedError):
    """A file cannot be written: no room, no right to, a broken disk."""


class NotANumberError(PartedError):
    """A value of training is infinite or not a number."""


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """A signal stopped a run; the text says what is kept.

    Attributes:
        code: that the command line exits with: 130 after Ctrl-C, 143 after a request to end.
    """

    def __init__(self, text: str, code: int = INTERRUPTED) -> None:
        super().__init__(text)
        self.code = code


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """A `UserError` for a name that does not exist, with the nearest valid one."""
    names = sorted(valid)
    lowered = {each.lower(): each for each in names}
    near = [each for each in lowered if each.endswith(f".{name.lower()}")]  # the table was forgotten
    near = near or difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.4 if len(names) <= LISTED else 0)
    hint = f" Did you mean '{lowered[near[0]]}'?" if near else ""
    listed = f" Valid: {', '.join(names)}." if len(names) <= LISTED else ""
    return UserError(f"unknown {kind} '{name}'.{hint}{listed}")
