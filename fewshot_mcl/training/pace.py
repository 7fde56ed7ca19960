"""Which of several processes is slower than the others, which all wait for it."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fewshot_mcl import parallel

LEAST = 10  # steps that are looked at together
SLOW = 1.5  # times as long as the others


class Pace:
    """Times what each process does for itself: its images and their forward pass, without waiting for other processes.

    The backward pass is left out, because it waits wherever a gradient is ready. On a GPU it is the time of the host.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._said: set[int] = set()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Count what is done in here."""
        if parallel.world() == 1:
            yield
            return
        start, waited = time.monotonic(), parallel.waited()
        yield
        self._seconds.append(time.monotonic() - start - (parallel.waited() - waited))

    def slow(self) -> list[str]:
        """What is to be said of processes that were slow in the steps since the last time; of each once. All must ask."""
        if len(self._seconds) < LEAST:
            return []
        found = parallel.from_all((statistics.median(self._seconds), socket.gethostname()))
        self._seconds = []
        seconds = [each for each, _ in found]
        said = []
        for number, (own, host) in enumerate(found):
            others = statistics.median(seconds[:number] + seconds[number + 1 :])
            if own > SLOW * others and number not in self._said:
                self._said.add(number)
                said.append(
                    f"process {number} (host {host}) is slow: {own / others:.1f} x the median of the others, which wait"
                )
        return said
