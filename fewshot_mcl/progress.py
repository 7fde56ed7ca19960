"""How far a long piece of work has come: whoever does it says so here, whoever wants to show it listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]  # what, how many are done, of how many; 0 of 0 where that is not known

_listener: ContextVar[Listener | None] = ContextVar("progress", default=None)


def tracked(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """`items`, of which there are `total`; after each one, the listener hears how many are done."""
    listener = _listener.get()
    if listener is None:
        yield from items
        return
    done = 0
    listener(what, 0, total)
    try:
        for item in items:
            yield item
            done += 1
            listener(what, done, total)
    finally:
        if done != total:  # left early: there is no more to hear of it
            listener(what, total, total)


def tell(what: str, done: int, total: int) -> None:
    """Let the listener know how many are done."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A piece of work of unknown length."""
    listener = _listener.get() or (lambda what, done, total: None)
    listener(what, 0, 0)
    try:
        yield
    finally:
        listener(what, 1, 1)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Let `listener` hear of all that is done meanwhile in this thread; None silences."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class _Late:
    """A listener: shows work that has gone on for `AFTER` seconds. Of work within work the outer is shown."""

    AFTER = 2.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what, self._done, self._total, self._begun = "", 0, 0, 0.0
        self._shown = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def hear(self, what: str, done: int, total: int) -> None:
        """What is done of how much."""
        if self._what not in ("", what):
            return
        if done and done >= total:
            self._end()
            return
        with self._lock:
            self._what, self._done, self._total = what, done, total
            if self._timer is None:
                self._begun = time.monotonic()
                self._timer = threading.Timer(self.AFTER, self._begin)
                self._timer.daemon = True
                self._timer.start()
            if self._shown:
                self._move()

    def _begin(self) -> None:
        with self._lock:
            if self._timer is None:  # it has ended just now
                return
            self._shown = True
            self._show()

    def _end(self) -> None:
        with self._lock:
            if self._timer:
                self._timer.cancel()
            if self._shown:
                self._hide()
            self._shown, self._timer, self._what = False, None, ""

    def _show(self) -> None:
        """Begin to show it."""
        raise NotImplementedError

    def _move(self) -> None:
        """More is done."""
        raise NotImplementedError

    def _hide(self) -> None:
        """All is done."""


class LateBar(_Late):
    """On a terminal: a bar with the time left, which vanishes with the end of the work."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._bar: Progress | None = None

    def _show(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        known = (TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"))
        columns = known if self._total else (TimeElapsedColumn(),)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *columns,
            console=self._console,
            transient=True,
        )
        self._bar.add_task(self._what, completed=self._done, total=self._total or None)
        self._bar.start()

    def _move(self) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done)

    def _hide(self) -> None:
        if self._bar:
            self._bar.stop()
        self._bar = None


class LateLines(_Late):
    """Elsewhere: a line with the time left, and another every `EVERY` seconds in which something was done."""

    EVERY = 10.0

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self._said = 0.0

    def _show(self) -> None:
        self._said = time.monotonic()
        if not self._total:
            self._say(f"{self._what} ...")
            return
        spent = self._said - self._begun
        left = f", about {spent * (self._total - self._done) / self._done:.0f} s left" if self._done else ""
        self._say(f"{self._what}: {100 * self._done // self._total} %{left}")  # what is counted may be batches

    def _move(self) -> None:
        if time.monotonic() - self._said >= self.EVERY:
            self._show()
