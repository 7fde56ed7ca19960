"""What `--dry-run` and `--tune` say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fewshot_mcl.screen import print_lines, print_table

if TYPE_CHECKING:
    from fewshot_mcl.config import Config
    from fewshot_mcl.reproduce.cells import Cell
    from fewshot_mcl.training.estimate import Estimate
    from fewshot_mcl.training.tune import Timing, Tuning

Say = Callable[[str], None]


def estimate_content(config: Config, estimate: Estimate) -> dict[str, Any]:
    """What one run takes, for a program: seconds, bytes, and counts of all peers."""
    contrast = None if estimate.contrast is None else str(estimate.contrast)
    named = {name: getattr(config, name) for name in ("task", "method", "backbone", "peers", "seed")}
    return named | asdict(estimate) | {"seconds": estimate.seconds, "contrast": contrast}


def estimates_content(estimates: list[tuple[Cell, Estimate]], runs: int, jobs: int) -> dict[str, Any]:
    """What each run of a table takes; `runs` in all, `jobs` at a time."""
    cells = [
        {"run": str(cell.path), "done": cell.done} | estimate_content(cell.config, estimate)
        for cell, estimate in estimates
    ]
    return {"runs": runs, "jobs": jobs, "seconds": _seconds(estimates, runs, jobs), "first_seed": cells}


def print_estimate(config: Config, estimate: Estimate) -> None:
    """What one run takes."""
    from fewshot_mcl.data.store import in_bytes

    e = estimate
    parts = f"steps {_span(e.steps)}, validations {_span(e.validation)}, checkpoints {_span(e.saving)}"
    gpu = "" if e.gpu_memory is None else f", and {in_bytes(e.gpu_memory)} on the GPU"
    print_lines(
        f"{config.method}: {config.peers} {config.backbone} peer{'s' * (config.peers > 1)}, {e.parameters:,} parameters, "
        f"{e.multiply_adds / 1e6:,.1f} million multiply-adds an image",
        f"time    {_span(e.seconds)} of training ({parts}), then {_span(e.closing)} of validation",
        f"memory  {in_bytes(e.memory)} at the peak{gpu}",
        f"disk    up to {in_bytes(e.disk)} in the run directory",
        *([] if e.contrast is None else [f"plan    of the contrast: {e.contrast}"]),
        "From some timed steps and a part of a validation on this machine as busy as it is, without tests; nothing was written.",
    )


def tuning_table(say: Say) -> Callable[[Timing], None]:
    """Prints a heading; what it returns is told of each variant of a run once it is measured, and prints a line of it."""
    say("a few steps of every variant; their values are equal but for rounding, except with another precision:")
    measured: list[float] = []

    def add(timing: Timing) -> None:
        result = timing.why
        if timing.seconds is not None:
            measured.append(timing.seconds)
            faster = f"  {measured[0] / timing.seconds:.2f} times as fast" if len(measured) > 1 else ""
            result = f"{1000 * timing.seconds:>9,.1f} ms a step{faster}"
        say(f"  {timing.name:<32} {result}")

    return add


def print_choice(tuning: Tuning, say: Say) -> None:
    """What a run is tuned to."""
    base, chosen, bare = tuning.timings[0], tuning.chosen, tuning.timings[-1]
    if chosen is base:
        say("no variant is surely faster: the run is as configured")
    else:
        say(f"chosen: {chosen.name}, {base.run / chosen.run:.2f} times as fast by three timings in turns")
    if bare.run * 1.03 < chosen.run:
        say("without huge pages it is faster still: set THP_MEM_ALLOC_ENABLE=0 in the environment")


def _span(seconds: float) -> str:
    """A time in words, to two or three digits."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 1000:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:,.1f} h"


def print_estimates(estimates: list[tuple[Cell, Estimate]], runs: int, jobs: int) -> None:
    """What each run of a table takes; `runs` in all, `jobs` at a time."""
    rows = [
        [
            cell.path.name, "done" if cell.done else "to do", f"{e.parameters:,}", f"{e.multiply_adds / 1e6:,.1f}",
            f"{e.seconds / 60:,.1f}", f"{e.memory / 2**20:,.0f}",
        ]
        for cell, e in estimates
    ]  # fmt: skip
    columns = ["", "state", "parameters", "M mult-adds", "min", "MiB"]
    print_table(columns, rows)
    hours = _seconds(estimates, runs, jobs) / 3600
    print_lines(
        "Each run of the first seed: parameters and million multiply-adds (one image, forward) of its peers; minutes of "
        "training from some timed steps and a part of a validation, without the tests; memory at the peak of these.",
        f"{runs} runs, {jobs} at a time: about {hours:,.1f} hours, if runs side by side do not slow each other down.",
    )


def _seconds(estimates: list[tuple[Cell, Estimate]], runs: int, jobs: int) -> float:
    """Of all runs of a table, of whose first seed there are estimates, if runs side by side do not slow each other down."""
    return sum(e.seconds for _, e in estimates) * runs / max(1, len(estimates)) / jobs
