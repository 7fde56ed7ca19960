"""Names that come from files, made safe to print."""

from __future__ import annotations

import re


def printable(name: object) -> str:
    """`name` with every control, newline, direction and undecodable character written as an escape.

    A file may be called anything; a terminal must not obey it and a message must stay on its line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(name))


def markdown(name: object) -> str:
    """`name` as plain text inside Markdown: on one line, and neither markup nor HTML."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", printable(name))


def first_few(items: list[str], limit: int = 3) -> str:
    """The first `limit` items in words, and how many there are beyond them."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
