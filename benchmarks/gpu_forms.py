"""Training steps by form; part of gpu.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import harness
import torch
from gpu_device import Bench, use_precision
from gpu_step import CASES, Case, Learner

GRAPH = ", CUDA graph"
FORMS = ("straightforward", "loop", "stacked", "grouped", "loop" + GRAPH, "stacked" + GRAPH, "grouped" + GRAPH)
REFERENCE = ("straightforward", "float32")  # form and precision that all others are compared with
COLUMNS = ["network", "form", "precision", "ratio", "ms", "images/s", "MiB", "losses differ by"]
Key = tuple[str, str]


@dataclass(frozen=True)
class Prepared:
    """A form that is ready, its first losses, and the MiB that it took."""

    learner: Learner
    losses: list[float]
    mib: float

    def work(self, precision: str) -> harness.Work:
        """A step under the settings of its precision."""

        def step() -> None:
            use_precision(precision)
            self.learner.step()

        return step


def prepare(bench: Bench, case: Case, form: str, precision: str, compiled: bool = False) -> Prepared:
    """A form after its first two steps."""

    def make() -> tuple[Learner, list[float]]:
        learner = Learner(case, form.removesuffix(GRAPH), precision, compiled)
        if form.endswith(GRAPH):
            learner.capture()
        return learner, learner.losses()

    use_precision(precision)
    (learner, losses), mib = bench.peak(make)
    return Prepared(learner, losses, mib)


def differences(losses: list[float], reference: list[float]) -> str:
    """The relative differences of two steps' losses."""
    return ", ".join(f"{abs(a / b - 1):.1e}" for a, b in zip(losses, reference))


def exact(bench: Bench, name: str) -> str:
    """The same in float64, where rounding cannot hide a difference."""
    case, words = CASES[name](bench).double(), []
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False
    ):  # trials in float64 would take longer than the steps
        reference = Learner(case, "straightforward").losses()
        for form in ("loop", "stacked", "grouped"):
            losses = bench.attempt(lambda f=form: Learner(case, f).losses())
            words.append(f"{form} {losses if isinstance(losses, str) else differences(losses, reference)}")
    return f"In float64 the losses of {name} differ from the straightforward form's by: {'; '.join(words)}."


def row(case: Case, key: Key, prepared: Prepared, reference: Prepared, times: harness.Times) -> list[Any]:
    """What the table says of a form."""
    name, slow = " ".join(key), " ".join(REFERENCE)
    seconds = times.median(name)
    found = differences(prepared.losses, reference.losses)
    ratio = times.ratio(slow, name)
    return [
        case.name,
        *key,
        ratio,
        f"{seconds * 1e3:.3g}",
        f"{case.images / seconds:,.0f}",
        f"{prepared.mib:,.0f}",
        found,
    ]


def steps_of(bench: Bench, name: str) -> tuple[list[list[Any]], dict[Key, float]]:
    """Rows of a network's forms, and seconds of a step for those that ran in this process."""
    case = CASES[name](bench)
    keys = [(form, precision) for precision in bench.precisions for form in FORMS]
    ready: dict[Key, Prepared | str] = {}
    for form, precision in keys:
        if form.endswith(GRAPH) and not bench.cuda:
            ready[form, precision] = "not run: a CPU has no CUDA graphs"
        else:
            ready[form, precision] = bench.attempt(lambda f=form, p=precision: prepare(bench, case, f, p))
    reference = ready[REFERENCE]
    if isinstance(reference, str):
        return [[name, *REFERENCE, reference]], {}
    running = {key: each for key, each in ready.items() if isinstance(each, Prepared)}
    times = bench.turns({" ".join(key): each.work(key[1]) for key, each in running.items()})
    rows = [
        _missing(name, key, each) if isinstance(each, str) else row(case, key, each, reference, times)
        for key, each in ready.items()
    ]
    return rows, {key: times.median(" ".join(key)) for key in running}


def _missing(name: str, key: Key, reason: str) -> list[Any]:
    return [name, *key, reason, "", "", "", ""]


def compiled_rows(bench: Bench, name: str, precision: str) -> tuple[list[list[Any]], dict[Key, float]]:
    """The same for the peers under torch.compile, and the step with them as a CUDA graph; for a process of its own."""
    torch.backends.cudnn.benchmark = True
    case, rows = CASES[name](bench), []
    found: dict[Key, float] = {}
    reference = prepare(bench, case, *REFERENCE)
    prepared = prepare(bench, case, "loop", precision, compiled=True)
    for form in ("loop, compiled", "loop, compiled" + GRAPH):
        if form.endswith(GRAPH):
            if not bench.cuda:
                continue
            failed = bench.attempt(prepared.learner.capture)
            if isinstance(failed, str):
                rows.append(_missing(name, (form, precision), failed))
                continue
            prepared = Prepared(prepared.learner, prepared.learner.losses(), prepared.mib)
        key = (form, precision)
        works = {" ".join(REFERENCE): reference.work(REFERENCE[1]), " ".join(key): prepared.work(precision)}
        times = bench.turns(works)
        rows.append(row(case, key, prepared, reference, times))
        found[key] = times.median(" ".join(key))
    return rows, found


def compiled_of(bench: Bench, name: str) -> tuple[list[list[Any]], dict[Key, float]]:
    """`compiled_rows` of float32 and bfloat16, each in a process that is ended when its time is up."""
    rows: list[list[Any]] = []
    found: dict[Key, float] = {}
    for precision in ("bfloat16", "float32"):
        answer = bench.apart(compiled_rows, bench.slice(bench.compile_seconds), name, precision)
        if isinstance(answer, str):
            rows.append(_missing(name, ("loop, compiled", precision), answer))
        else:
            rows += answer[0]
            found |= answer[1]
    return rows, found
