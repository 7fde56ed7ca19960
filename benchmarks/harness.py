"""What every benchmark here shares: contestants that take turns in one process on one thread, and the table they end in.

A figure is a ratio of times within a round; of the rounds the median is quoted, with the smallest and the largest. A machine
that is busy slows a whole round, so the ratio stands where milliseconds would not.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)  # before numpy and torch

import argparse
import contextlib
import gc
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import fewshot_mcl

torch.set_num_threads(1)
Work = Callable[[], Any]
OURS = {"THP_MEM_ALLOC_ENABLE": "1"}  # what the command line sets before torch is imported: large tensors in huge pages


@dataclass(frozen=True)
class Times:
    """Seconds that every contestant took for one piece of work, round by round.

    Attributes:
        seconds: by contestant; all lists have one entry a round.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratios(self, slow: str, fast: str) -> list[float]:
        """How many times as long `slow` took, in each round."""
        return [a / b for a, b in zip(self.seconds[slow], self.seconds[fast])]

    def ratio(self, slow: str, fast: str) -> str:
        """ "3.1 (2.9 to 3.3)": median, smallest and largest of the rounds' ratios."""
        return spread(self.ratios(slow, fast))


def spread(values: list[float]) -> str:
    """ "3.1 (2.9 to 3.3)": median, smallest and largest."""
    return f"{_short(statistics.median(values))} ({_short(min(values))} to {_short(max(values))})"


def take_turns(
    contestants: dict[str, Work],
    rounds: int = 7,
    least: float = 0.1,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = False,
) -> Times:
    """Times of contestants that take turns: A B C, A B C, ...

    Args:
        contestants: what each does; its first call, which may build or compile something, is not counted.
        rounds: how often each has its turn.
        least: seconds of a turn; work that is shorter is repeated within its turn.
        clock: of seconds.
        warm: do the work once more at the beginning of each turn, uncounted: a system takes memory from processes that
            wait for long, and gives it back slowly.
    """
    repeats = {}
    for name, work in contestants.items():
        work()
        start = clock()
        work()
        repeats[name] = max(1, round(least / max(clock() - start, 1e-7)))
    times = Times({name: [] for name in contestants})
    for _ in range(rounds):
        for name, work in contestants.items():
            gc.collect()
            if warm:
                work()
            start = clock()
            for _ in range(repeats[name]):
                work()
            times.seconds[name].append((clock() - start) / repeats[name])
    return times


class Apart:
    """Work done in a process of its own, as a contestant: what one allocates cannot make another faster or slower.

    (glibc keeps or returns freed memory by the history of a process; a convolution may cost twice as much for it.)

    Args:
        build: a function at the top of a module; called there with `args`, it gives the work.
        environment: variables that the process starts with, as our command sets them.
    """

    def __init__(self, build: Callable[..., Work], *args: Any, environment: dict[str, str] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        before = dict(os.environ)
        os.environ |= environment or {}
        context.Process(target=_serve, args=(there, build, args), daemon=True).start()
        os.environ.clear()
        os.environ |= before
        there.close()

    def __call__(self) -> Any:
        """Do the work once; its answer, which must be small."""
        self._connection.send(None)
        return self._connection.recv()


def _serve(connection: Connection, build: Callable[..., Work], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    work = build(*args)
    with contextlib.suppress(EOFError):  # nobody waits any more
        while True:
            connection.recv()
            connection.send(work())


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """The options of a benchmark: those in `defaults`, --rounds, --out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, value in defaults.items():
        many = {"nargs": "+", "type": type(value[0])} if isinstance(value, (list, tuple)) else {"type": type(value)}
        kind = {"action": "store_true"} if value is False else many
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **kind)
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contestant")
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    return parser.parse_args()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats are shortened to three digits."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_short(c) if isinstance(c, float) else str(c) for c in line)} |" for line in lines)


def report(title: str, parts: Iterable[str], out: Path | None, packages: Iterable[str] = ()) -> None:
    """Print the parts of a report under its title and the machine they were measured on, and write them to `out`."""
    text = "\n\n".join([f"# {title}", machine(packages), *parts]) + "\n"
    print(text)
    if out:
        out.write_text(text, encoding="utf-8")


def machine(packages: Iterable[str] = ()) -> str:
    """Command, versions and processor, in a paragraph."""
    installed = ", ".join(f"{name} {version(name)}" for name in ["torch", "numpy", *packages])
    versions = f"fewshot-mcl {fewshot_mcl.__version__}, {installed}"  # a checkout need not be installed
    command = " ".join(["python", *sys.argv])
    return (
        f"`{command}` on {time.strftime('%d %b %Y')}: {_processor()}, {torch.get_num_threads()} thread, "
        f"Python {platform.python_version()}, {versions}. "
        "A ratio is the median over rounds in which the contestants take turns (smallest to largest in brackets)."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peak_memory(work: Work) -> int:
    """Bytes by which the process grew at its highest while `work` ran (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def product_rate(size: int = 2048, dtype: torch.dtype = torch.float32) -> Work:
    """A matrix product of 2 * size^3 operations: the arithmetic limit of the machine."""
    a, b, c = (torch.randn(size, size, dtype=dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)
