"""How far a long piece of work has come: whoever does it says so here, whoever wants to show it listens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

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


class LateBar:
    """A listener: a bar with the time left, which appears when work has gone on for `AFTER` seconds and vanishes with its end.

    Of work within work the outer is shown.
    """

    AFTER = 2.0

    def __init__(self, console: Console) -> None:
        self._console, self._lock = console, threading.Lock()
        self._what, self._done, self._total = "", 0, 0
        self._bar: Progress | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> LateBar:
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
                self._timer = threading.Timer(self.AFTER, self._begin)
                self._timer.daemon = True
                self._timer.start()
            if self._bar:
                self._bar.update(self._bar.task_ids[0], completed=done)

    def _begin(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        with self._lock:
            if self._timer is None:  # it has ended just now
                return
            known = (TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"))
            columns = known if self._total else (TimeElapsedColumn(),)
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), *columns, console=self._console, transient=True
            )
            self._bar.add_task(self._what, completed=self._done, total=self._total or None)
            self._bar.start()

    def _end(self) -> None:
        with self._lock:
            if self._timer:
                self._timer.cancel()
            if self._bar:
                self._bar.stop()
            self._bar, self._timer, self._what = None, None, ""
