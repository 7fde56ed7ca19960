"""Trouble at a chosen instant: a process dies, is asked to end, or its disk fails, between any two operations on its files."""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOBODY = 65534  # the user whom nothing belongs to


@dataclass(frozen=True)
class Trouble:
    """What happens, and when.

    Attributes:
        do: the name of a signal or of an error ("SIGKILL", "ENOSPC"); "denied" takes away the right to write; "hang"
            says so and waits until SIGUSR1.
        operation: that it comes before: "write" (half of it is done), "close", "fsync", "replace", "unlink", "mkdir", "call";
            none for any.
        file: pattern of the name of the file; of a call, "module:Class.function".
        nth: such operation.
        lasting: also at all operations after that.
    """

    do: str
    operation: str = ""
    file: str = ""
    nth: int = 1
    lasting: bool = False


class Watch:
    """Sees every operation of this process on files below a folder, for as long as the process lives."""

    def __init__(self, below: Path, trouble: Trouble | None, record: Path | None = None) -> None:
        self.below, self.trouble, self.record = below, trouble, record
        self.seen = 0

    def begin(self) -> None:
        """Put itself between the process and the system."""
        self._watch(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
        self._watch(os, "replace", lambda _, target: target)
        for name in ("unlink", "mkdir"):
            self._watch(os, name, lambda path, *_: path)
        real = io.open

        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            stream = real(file, mode, *rest, **named)
            inside = not isinstance(file, int) and self._name(file) is not None
            return _Written(stream, str(file), self) if inside and set(mode) & set("wa") else stream

        io.open = opened
        if self.trouble and self.trouble.operation == "call":
            self._watch_call(self.trouble.file)

    def _watch(self, owner: Any, name: str, path_of: Callable[..., Any], operation: str = "") -> None:
        real = getattr(owner, name)

        def watched(*given: Any, **named: Any) -> Any:
            self.point(operation or name, path_of(*given))
            return real(*given, **named)

        setattr(owner, name, watched)

    def _watch_call(self, dotted: str) -> None:
        module, _, names = dotted.partition(":")
        *path, name = names.split(".")
        owner = importlib.import_module(module)
        for each in path:
            owner = getattr(owner, each)
        self._watch(owner, name, lambda *_: self.below / dotted, "call")

    def _name(self, path: Any) -> str | None:
        path = Path(path).absolute()
        return path.name.removesuffix(".partial") if path.is_relative_to(self.below) else None

    def point(self, operation: str, path: Any, half: Callable[[], None] | None = None) -> None:
        """One operation is about to be done."""
        name = self._name(path)
        if name is None:
            return
        if self.record:
            with self.record.open("a") as file:
                file.write(f"{operation} {name}\n")
        asked = self.trouble
        if asked and asked.operation in ("", operation) and re.fullmatch(asked.file or ".*", name):
            self.seen += 1
            if self.seen == asked.nth or (asked.lasting and self.seen > asked.nth):
                if half:
                    half()
                act(asked.do, self.below)


def act(do: str, below: Path) -> None:
    """Let it happen to this process."""
    if do == "hang":
        go_on: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: go_on.append(number))
        print("hanging", flush=True)
        while not go_on:
            time.sleep(0.05)
    elif do == "denied":
        for folder in (below, *below.rglob("*/")):
            folder.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(NOBODY)  # permissions do not bind root
    elif do.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, do))
    else:
        raise OSError(getattr(errno, do), os.strerror(getattr(errno, do)))


class _Written:
    """A file that is written to, seen by a watch."""

    def __init__(self, stream: Any, path: str, watch: Watch) -> None:
        self._stream, self._path, self._watch = stream, path, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        try:
            self._watch.point("close", self._path)
        finally:
            self._stream.close()

    def write(self, content: Any) -> Any:
        def half() -> None:
            self._stream.write(content[: len(content) // 2])
            self._stream.flush()

        self._watch.point("write", self._path, half)
        return self._stream.write(content)
