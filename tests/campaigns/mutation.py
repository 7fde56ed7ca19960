"""Seeded damage to bytes and to JSON-like values."""

from __future__ import annotations

import random
from typing import Any

MAGIC = [
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00" * 8, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f",
    b"\x80\x00\x00\x00", b"\x00\x01\x00\x00", b"4294967296", b"-1", b"1e999", b"NaN", b"\n", b"\x1b[2J", b"../" * 4,
    b"\xed\xa0\x80", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\x00", b"RIFF\xff\xff\xff\xffWEBP",
    b"\x1f\x8b\x08", b"PK\x03\x04", b"\x80\x04", b"\x93NUMPY", b"cos\nsystem\n(S'true'\ntR.", b"[" * 64, b'{"a":' * 64,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 1 << 31, 1 << 63, 1 << 70, -(1 << 70), 10**4000, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "\x1b[31m", "\ud800", "../../etc", "a" * 10_000, "99", [], [[]], [0], [-1, 1 << 40], ["x"], {}, {"": {}},
    [None] * 1000, {"schema": 9},
]  # fmt: skip


def damage(content: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """`content` after a few flips, cuts, copies, insertions and splices with `others`."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        kind, at = draw.randrange(8), draw.randrange(len(data) + 1)
        length = min(draw.choice((1, 2, 4, 8, 64, 512)), len(data) - at)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length] * draw.choice((1, 2, 20))
        elif kind == 5:
            data[at:at] = draw.choice(MAGIC)
        elif kind == 6:
            magic = draw.choice(MAGIC)
            data[at : at + len(magic)] = magic
        else:
            other = draw.choice(others)
            data[at:] = other[draw.randrange(len(other) + 1) :]
    return bytes(data)


def altered(value: Any, draw: random.Random) -> Any:
    """`value`, with one of its parts replaced, doubled or removed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: altered(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], *([altered(value[at], draw)] * draw.choice((0, 1, 1, 1, 2))), *value[at + 1 :]]
    return draw.choice(VALUES)
