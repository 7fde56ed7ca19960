"""Other libraries' data, models and conventions, and ours for them: an adapter each, none imported before it is asked for."""

from __future__ import annotations

from fewshot_mcl.errors import UserError


def missing(library: str, extra: str, error: ImportError) -> UserError:
    """The error of a library that is not there; `extra` of this package brings it."""
    return UserError(
        f"this needs {library}, which cannot be imported ({error}). Install the extra: pip install 'fewshot-mcl[{extra}]'."
    )
