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

    Args:
        work: how much of it this process has, beside others: peers, where these are split.
    """

    def __init__(self, work: int = 1) -> None:
        self._work = work
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
        found = parallel.from_all((statistics.median(self._seconds), self._work, socket.gethostname()))
        self._seconds = []
        said = []
        for number, (own, work, host) in enumerate(found):
            rest = found[:number] + found[number + 1 :]
            others = statistics.median(each for each, _, _ in rest)
            more = max(1.0, work / statistics.median(each for _, each, _ in rest))
            if own > SLOW * more * others and number not in self._said:
                self._said.add(number)
                said.append(
                    f"process {number} (host {host}) is slow: {own / others:.1f} x the median of the others, which wait"
                )
        return said
