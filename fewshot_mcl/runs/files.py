"""Files that are there whole or not at all, and JSON that knows when it was changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from fewshot_mcl.errors import DamagedError, UserError, WriteError

SCHEMA = 2  # of every JSON file of a run; files of schema 1 have no check
MOST_BYTES = 1 << 26  # of a JSON or TOML file: a run with a million class names stays below
MOST_VALUES = 1 << 22  # in a JSON file: the smallest of them take thirty times as much memory as disk
BLANK = "0" * 64


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the system in here are about writing `path`.

    Raises:
        WriteError: instead of them.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror}", "What was saved before is intact.") from error


def write(path: Path, content: bytes) -> str:
    """`write_all` of one part."""
    return write_all(path, [content])


def write_all(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write through a temporary file, so that no reader ever sees half of it; the SHA-256 of what was written.

    Raises:
        WriteError: if it cannot be written; what was there before is intact.
    """
    temporary, digest = path.with_name(path.name + ".partial"), hashlib.sha256()
    with writing(path):
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
                    digest.update(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def append(path: Path) -> Iterator[TextIO]:
    """A text file, open for appending.

    Raises:
        WriteError: if it cannot be written.
    """
    with writing(path), path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
        yield file


def read(path: Path) -> bytes:
    """A whole file of a run.

    Raises:
        UserError: if it cannot be read, or is larger than such a file can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}", "Put the file back, or start a new run.") from error
    if len(content) > MOST_BYTES:
        raise DamagedError(f"{path} is damaged: no such file has more than {MOST_BYTES:,} bytes", "Put the file back.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file with the SHA-256 of itself (counted with 64 zeros in that place)."""
    own = {"schema": SCHEMA, "check": BLANK}
    text = json.dumps(own | content | own, indent=1) + "\n"
    write(path, text.replace(BLANK, hashlib.sha256(text.encode()).hexdigest(), 1).encode())


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """What `write_json` wrote, which must have `keys`.

    Raises:
        UserError: if it is missing, damaged, or of a newer version.
    """
    data = read(path)
    try:
        if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
            raise ValueError(f"no such file has more than {MOST_VALUES:,} values")
        content = json.loads(data)
        if content["schema"] > SCHEMA:
            raise UserError(f"{path} was written by a newer fewshot-mcl: update this one to read it.")
        if content["schema"] >= 2 or "check" in content:
            check = content.pop("check")
            if hashlib.sha256(data.replace(check.encode(), BLANK.encode(), 1)).hexdigest() != check:
                raise ValueError("it is not as it was written")
        for key in keys:
            content[key]
        return dict(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"{path} is damaged ({error})", "Put the file back from a copy, or start a new run."
        ) from error


def sha256(path: Path) -> str:
    """Of a file.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
