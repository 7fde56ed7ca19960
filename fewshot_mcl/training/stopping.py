"""Signals that ask a run to end: it finishes its step and saves; a second one ends it at once.

"At once" is when the operation on tensors that is under way ends, where Python has to answer for the signal.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from fewshot_mcl import parallel
from fewshot_mcl.errors import Interrupted

ASKING = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """While it is entered, the first signal is only noted, and what the signals did before is put back for the second.

    Attributes:
        signal: the number of the one that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._saved = False
        self._before: dict[int, Any] = {}

    @property
    def code(self) -> int:
        """The exit code that a shell gives a process which that signal has ended."""
        return 128 + (self.signal or 0)

    def heard(self) -> bool:
        """Whether a signal came to this process or to another one that trains the run."""
        self.signal = parallel.largest(self.signal or 0) or None
        return self.signal is not None

    def all_saved(self) -> None:
        """Say that there is nothing left to finish: from here on the first signal, or one that came just now, ends the run.

        Raises:
            Interrupted: then.
        """
        self._saved = True
        if self.signal:
            raise Interrupted("", self.code)

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for number in ASKING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
        if self._saved:
            raise Interrupted("", self.code)
        if not parallel.rank():
            print("stopping: this step is finished and saved first; again to stop at once", file=sys.stderr, flush=True)
