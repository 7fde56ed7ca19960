"""What `--dry-run` and `--tune` say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fewshot_mcl.screen import print_lines, print_table

if TYPE_CHECKING:
    from fewshot_mcl.config import Config
    from fewshot_mcl.reproduce.cells import Cell
    from fewshot_mcl.training.costs import Several
    from fewshot_mcl.training.estimate import Estimate
    from fewshot_mcl.training.tune import Timing, Tuning

Say = Callable[[str], None]


def estimate_content(config: Config, estimate: Estimate) -> dict[str, Any]:
    """What one run takes, for a program: seconds, bytes, and counts of all peers."""
    contrast = None if estimate.contrast is None else str(estimate.contrast)
    named = {name: getattr(config, name) for name in ("task", "method", "backbone", "peers", "seed")}
    several = None if estimate.several is None else _several_content(estimate.several)
    return named | asdict(estimate) | {"seconds": estimate.seconds, "contrast": contrast, "several": several}


def _several_content(several: Several) -> dict[str, Any]:
    """What several processes take: bytes of each, bytes sent by each and seconds of a step, seconds of `unit`."""
    totals = [{"step": each.step, "all_steps": each.step * several.steps} for each in several.costs]
    ways = [asdict(each) | total for each, total in zip(several.costs, totals)]
    return asdict(several) | {"costs": ways, "assumptions": _assumptions(several)}


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
    if e.several is not None:
        _print_several(e.several)


def _print_several(several: Several) -> None:
    """A column for each way to share a step."""
    ways = several.costs
    rows = _rows("memory of each, MB", [each.memory for each in ways], 1e-6)
    rows += _rows("sent by each in a step, MB", [each.sent for each in ways], 1e-6)
    rows += _rows("time of a step, ms", [each.seconds for each in ways], 1e3)
    rows += [
        [f"time of {several.unit}", *(_span(each.step * several.steps) for each in ways)],
        ["times as fast", *(f"{ways[0].step / each.step:.2f}" for each in ways)],
    ]
    print_lines("", f"with {several.processes} processes, an estimate:")
    print_table(["", *(each.way for each in ways)], rows)
    print_lines(*_assumptions(several))


def _rows(title: str, columns: list[dict[str, float]], scale: float) -> list[list[str]]:
    """What all parts come to, and then each part that any column has."""

    def words(value: float) -> str:
        return f"{scale * value:,.{1 if scale * value >= 100 else 3}f}"

    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[f"  {name}", *(words(c[name]) if name in c else "-" for c in columns)] for name in names]
    return [[title, *(words(sum(column.values())) if column else "-" for column in columns)], *rows]


def _assumptions(several: Several) -> list[str]:
    """What the figures of several processes rest on."""
    from fewshot_mcl.training.costs import START

    calls = ", ".join(f"{each.calls} {each.way}" for each in several.costs[1:])
    return [
        f"Assumed: a link of {several.bandwidth:g} GB/s for each process (--bandwidth), on which sums and gathers go in rings; "
        f"{1e6 * START:.0f} microseconds before each exchange (of which there are in a step: {calls});",
        "nothing is computed while it is exchanged; every process has a machine like this one to itself, as busy as it is.",
        "Timed: the networks on a process's part of the images, with batch norm as over processes; the objective on all images,",
        "which each process computes whole (with sharded banks it is less). Some of the peers take their share of what all take.",
        "Memory is what is kept: what single operations work in, images and torch itself come on top.",
    ]


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
