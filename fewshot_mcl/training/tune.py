"""What makes a run fastest on this machine: its variants measured on a few steps of their own, before it starts."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from fewshot_mcl.config import Config
from fewshot_mcl.data.sources import training_only
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.restore import pick_device
from fewshot_mcl.training.estimate import Unwritten, stand_in_teacher
from fewshot_mcl.training.loop import Trainer
from fewshot_mcl.training.session import load_stores, open_data, task_on

EQUAL = {"form": ("loop", "stacked", "grouped"), "layout": ("channels-last", "contiguous"), "compile": (False, True)}
PRECISION = {"precision": ("float32", "bfloat16")}  # changes what is learned, so it is measured and never chosen
WARM_UP, TIMED, SECONDS = 2, 3, 1.0  # steps; steps at least, and for so long
GAIN = 1.03  # a variant must make the run faster by this to be taken
WORTH = 600  # seconds: a run that is shorter than this is over before compiling has paid
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # read when torch makes its first tensor, so each setting needs a process
Changes = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """Of one variant.

    Attributes:
        changes: to the configuration.
        steps: of the run.
        seconds: of a step; None where it was not measured.
        start: seconds of the first steps, which compile where that is asked for.
        huge_pages: whether large tensors lay in them.
        why: it was not measured.
    """

    changes: Changes
    steps: int = 0
    seconds: float | None = None
    start: float = 0.0
    huge_pages: bool = True
    why: str = ""

    @property
    def name(self) -> str:
        """ "form=stacked, layout=contiguous"; "as configured"."""
        words = [f"{key}={str(value).lower()}" for key, value in self.changes.items()]
        return ", ".join([*words, *["no huge pages"] * (not self.huge_pages)]) or "as configured"

    @property
    def run(self) -> float:
        """Seconds of all steps; infinite where it was not measured."""
        return float("inf") if self.seconds is None else self.start + self.steps * self.seconds


@dataclass(frozen=True)
class Tuning:
    """What was measured, and what is best.

    Attributes:
        timings: the first is of the configuration as it was.
        chosen: one of them, whose values are equal to that but for rounding.
    """

    timings: list[Timing]
    chosen: Timing

    def record(self) -> dict[str, Any]:
        """For the file that is kept with the run."""
        return {"seconds": "of a step", "chosen": self.chosen.name, "timings": [asdict(t) for t in self.timings]}


def tune(config: Config, say: Callable[[Timing], None]) -> tuple[Config, Tuning]:
    """The fastest variant of a configuration whose values are equal to it but for rounding, and what was measured.

    Args:
        config: of a run that is not yet begun. Nothing is written.
        say: told of every variant once it is measured.

    Raises:
        UserError: where the run could not start.
    """
    timings: list[Timing] = []

    def add(timing: Timing) -> Timing:
        timings.append(timing)
        say(timing)
        return timing

    with _worker(huge_pages=True) as measure:
        base = measure(config, {})
        if base.why:
            raise UserError(base.why)
        add(base)
        singles = [add(measure(config, {key: value})) for key, value in _others(config, base, EQUAL, add)]
        together: Changes = {}
        for timing in sorted(singles, key=lambda t: t.run, reverse=True):
            together |= timing.changes if _better(timing, base) else {}
        if len(together) > 1:
            add(measure(config, together))
        for key, value in _others(config, base, PRECISION, add):
            add(measure(config, {key: value}))
        best = min((t for t in timings if not t.changes.keys() & PRECISION), key=lambda t: t.run)
        if _better(best, base):
            timings.remove(base)
            timings.remove(best)
            base, best = _in_turns(lambda timing: measure(config, timing.changes), base, best)
            timings[:0] = [base, best]
        chosen = best if _better(best, base) else base
    with _worker(huge_pages=False) as measure:
        add(replace(measure(config, chosen.changes), huge_pages=False))
    return config.model_copy(update=chosen.changes), Tuning(timings, chosen)


def _in_turns(measure: Callable[[Timing], Timing], *timings: Timing) -> list[Timing]:
    """Timings with the median of three, of which the last two take turns: a machine may be busy for a while."""
    rounds = [timings, *([measure(timing) for timing in timings] for _ in range(2))]
    return [sorted(each, key=lambda t: t.run)[1] for each in zip(*rounds)]


def _better(timing: Timing, than: Timing) -> bool:
    return timing.run * GAIN < than.run


def _others(
    config: Config, base: Timing, keys: dict[str, tuple[Any, ...]], add: Callable[[Timing], Any]
) -> Iterator[tuple[str, Any]]:
    """The values that the configuration does not have; of those that cannot pay it is said why they are not measured."""
    for key, values in keys.items():
        for value in values:
            if value == getattr(config, key) or (key == "form" and config.peers == 1):
                continue
            if key == "compile" and value and base.run < WORTH:
                add(
                    Timing({key: value}, why=f"not tried: the run takes {base.run:.0f} s, and compiling about a minute")
                )
            else:
                yield key, value


@contextmanager
def _worker(huge_pages: bool) -> Iterator[Callable[[Config, Changes], Timing]]:
    """What measures variants, in a process of its own."""
    before = os.environ.get(HUGE_PAGES)
    os.environ[HUGE_PAGES] = str(int(huge_pages))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def measure(config: Config, changes: Changes) -> Timing:
            try:
                return pool.submit(_measure, config, changes).result()
            except BrokenProcessPool as error:
                raise UserError(
                    "the timed steps were ended by the system, perhaps for want of memory: use fewer peers, or leave --tune out."
                ) from error

        try:
            yield measure
        finally:
            os.environ.pop(HUGE_PAGES)
            os.environ |= {HUGE_PAGES: before} if before is not None else {}


_loaded: dict[str, ImageStore] = {}  # of the worker: images are loaded once


def _measure(config: Config, changes: Changes) -> Timing:
    """Time a variant in this process. What it cannot do, or what is wrong, is said in its place."""
    try:
        with training_only():
            if not _loaded:
                _loaded.update(load_stores(config, open_data(config)))
            return _time(type(config)(**config.model_dump() | changes), changes)
    except Exception as error:  # whatever a compiler or a device does not like
        gc.collect()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Timing(changes, why=lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}")


def _time(config: Config, changes: Changes) -> Timing:
    task = task_on(_loaded, config, pick_device(config.device))
    if task.objective.needs_teacher:
        stand_in_teacher(task)
    trainer = Trainer(task, config, cast(Any, Unwritten()), cast(Any, None))  # no display is touched by what follows
    start = time.monotonic()
    trainer.time_steps(0, WARM_UP, 0)
    start = time.monotonic() - start
    return Timing(changes, task.plan.steps, trainer.time_steps(0, TIMED, SECONDS), start)
