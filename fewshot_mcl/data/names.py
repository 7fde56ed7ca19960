"""Names that come from files, made safe to print."""

from __future__ import annotations


def printable(name: object) -> str:
    """`name` with every control, newline, direction and undecodable character written as an escape.

    A file may be called anything; a terminal must not obey it and a message must stay on its line.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(name))


def first_few(items: list[str], limit: int = 3) -> str:
    """The first `limit` items in words, and how many there are beyond them."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
