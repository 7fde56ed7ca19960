"""What the parts of gpu.py share: the device and a clock that waits for it, slices of the time, forms that may fail."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import harness
import torch
from torch import Tensor

T = TypeVar("T")
PRECISIONS = ("float32", "tf32", "bfloat16")
GRACE = 8  # seconds to report in, after the time of a process is up


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured.

    Attributes:
        device: "cpu" or "cuda".
        small: sizes at which everything runs on a processor in a minute.
        rounds: turns of every contestant.
        compile_seconds: that one compilation may take; 0 leaves them out.
        ends: when the time is up, on the monotonic clock.
    """

    device: str
    small: bool
    rounds: int
    compile_seconds: int
    ends: float

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """TF32 is something that a GPU has."""
        return PRECISIONS if self.cuda else ("float32", "bfloat16")

    def clock(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def slice(self, seconds: float) -> Bench:
        """The same with so much time, or with what is left of it."""
        return replace(self, ends=min(self.ends, time.monotonic() + seconds))

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def turns(self, contestants: dict[str, harness.Work]) -> harness.Times:
        """Times of contestants that take turns; fewer rounds where the time is short."""
        if self.small:
            return harness.take_turns(contestants, self.rounds, 0.0, self.clock)
        least = 0.2
        start = self.clock()
        for work in contestants.values():
            work()
        lap = max(self.clock() - start, 1.5 * least * len(contestants))  # seconds of a round
        rounds = max(1, min(self.rounds, int(self.left() / lap) - 2))
        return harness.take_turns(contestants, rounds, least, self.clock)

    def peak(self, work: Callable[[], T]) -> tuple[T, float]:
        """What `work` gives, and the MiB by which the device's memory (the process's, on a CPU) grew at its highest."""
        gc.collect()
        if not self.cuda:
            kept: list[T] = []
            grown = harness.peak_memory(lambda: kept.append(work()))
            return kept[0], grown / 2**20
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = work()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20

    def attempt(self, make: Callable[[], T]) -> T | str:
        """What `make` gives, or in a line why it is not there."""
        if self.left() < 0:
            return "not run: the time of this part was used up"
        try:
            return make()
        except Exception as error:  # whatever a version of torch cannot do is a row of the table
            return failure(error)

    def apart(self, work: Callable[..., Any], *args: Any) -> Any:
        """What `work(*args)` gives in a process of its own, ended when a compilation's time is up; or why it is not there."""
        seconds = min(self.compile_seconds, self.left())
        if seconds <= 0:
            return "not run: no time for compiling" + ("" if self.compile_seconds else " was given (--compile-seconds)")
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()  # the other process needs memory too
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_answer, args=(there, work, args))
        process.start()
        there.close()
        try:
            return here.recv() if here.poll(seconds + GRACE) else f"failed: took more than {seconds:.0f} s"
        except EOFError:
            return "failed: its process died"
        finally:
            process.kill()
            process.join()


def _answer(connection: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        connection.send(work(*args))
    except Exception as error:
        connection.send(failure(error))


def failure(error: BaseException) -> str:
    """An exception in one line that fits a table."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"failed: {type(error).__name__}: {line}"[:160].replace("|", "/")


def use_precision(precision: str) -> None:
    """Whether float32 products and convolutions may be rounded to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def captured(step: Callable[[], Tensor], clear: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A step as a CUDA graph, and the loss that its replays write.

    Args:
        step: reads inputs that stay where they are, and waits for nothing.
        clear: makes the step allocate its gradients anew, which then belong to the graph.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up on first use, which cannot be captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    return graph, loss
