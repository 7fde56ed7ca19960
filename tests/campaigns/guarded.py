"""Many inputs in a child process that may die of any of them: with a memory limit, a time limit, and a witness outside."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 10  # of one input
MEMORY = 2 << 30  # bytes of address space beyond what the process has at its start
Case = Callable[[random.Random, int], object]  # (draw, number) -> a value, or one of the expected exceptions


class TooLong(BaseException):
    """An input took more than `SECONDS`."""


@dataclass
class Tally:
    """What became of the inputs of one reader."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    violations: list[str] = field(default_factory=list)


def tried(name: str, case: Case, count: int, seed: int, expected: tuple[type[Exception], ...], log: Path) -> Tally:
    """Try inputs 0 to `count` - 1. Where a child dies, the input is a violation and another goes on behind it."""
    tally, start = Tally(), 0
    while start < count:
        at = mmap.mmap(-1, 16)  # shared with the child: the input it is at, and since when
        log.write_text("")
        child = os.fork()
        if child == 0:
            _work(name, case, range(start, count), seed, expected, at, log)
            os._exit(0)
        status = _watched(child, at)
        start, _ = struct.unpack("qd", at[:])
        _read(log, tally)
        if status:
            tally.counts["violation"] += 1
            tally.violations.append(f"{name} {start}: {status}")
        start += 1
    return tally


def _watched(child: int, at: mmap.mmap) -> str:
    """Wait for a child; how it died, or nothing."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"the process ended with {os.waitstatus_to_exitcode(status)}" if status else ""
        _, since = struct.unpack("qd", at[:])
        if since and time.monotonic() - since > 6 * SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"no end in {6 * SECONDS} s"
        time.sleep(0.02)


def _work(
    name: str, case: Case, numbers: range, seed: int, expected: tuple[type[Exception], ...], at: mmap.mmap, log: Path
) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGPROF, _ring)
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        os.dup2(os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        for number in numbers:
            begun = time.monotonic()
            at[:] = struct.pack("qd", number, begun)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                verdict = _verdict(case, random.Random(f"{seed}/{name}/{number}"), number, expected)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            text = verdict if verdict in ("value", "error") else f"{name} {number}: {verdict}"
            file.write(f"{time.monotonic() - begun:.3f} {text!r}\n")
            file.flush()


def _ring(*_: object) -> None:
    raise TooLong


def _verdict(case: Case, draw: random.Random, number: int, expected: tuple[type[Exception], ...]) -> str:
    try:
        case(draw, number)
    except expected as error:
        return _judged(error)
    except TooLong:
        return f"took more than {SECONDS} s of the processor"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "value"


def _judged(error: BaseException) -> str:
    """An expected exception must be fit to print as one line, and not hide that memory or time ran out."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError | TooLong) or "allocate memory" in str(cause):
            return f"{type(cause).__name__} behind: {str(error)[:200]}"
        cause = cause.__cause__ or cause.__context__
    return "error" if str(error) else "an error without a word"


def _read(log: Path, tally: Tally) -> None:
    for line in log.read_text(encoding="utf-8").splitlines():
        seconds, _, text = line.partition(" ")
        tally.slowest = max(tally.slowest, float(seconds))
        verdict = text.strip("'\"")
        tally.counts[verdict if verdict in ("value", "error") else "violation"] += 1
        if verdict not in ("value", "error"):
            tally.violations.append(verdict)
    with contextlib.suppress(OSError):
        said = log.with_suffix(".err").read_text(errors="replace").strip()
        if any(word in said for word in ("Warning", "Traceback")) or not said.replace("\n", "").isprintable():
            tally.violations.append(f"standard error: {said[:300]!r}")
            tally.counts["violation"] += 1
