"""Training steps by form, and what 300 epochs would take; part of gpu.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import harness
import torch
from gpu_device import Bench, use_precision
from gpu_step import CASES, Case, Learner
from torch import Tensor

from fewshot_mcl import draws
from fewshot_mcl.data.augment import shift
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.objectives import create_objective

GRAPH = ", CUDA graph"
FORMS = ("straightforward", "loop", "stacked", "grouped", "loop" + GRAPH, "stacked" + GRAPH, "grouped" + GRAPH)
REFERENCE = ("straightforward", "float32")  # form and precision that all others are compared with
COLUMNS = ["network", "form", "precision", "ratio", "ms", "images/s", "MiB", "losses differ by"]
EPOCHS, IMAGES, MINUTES = 300, 50_000, 10  # the goal
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
    case, rows, found = CASES[name](bench), [], {}
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
    rows, found = [], {}
    for precision in ("bfloat16", "float32"):
        answer = bench.apart(compiled_rows, bench.slice(bench.compile_seconds), name, precision)
        if isinstance(answer, str):
            rows.append(_missing(name, ("loop, compiled", precision), answer))
        else:
            rows += answer[0]
            found |= answer[1]
    return rows, found


class Feed:
    """Batches as `classify` makes them, shifted and mirrored on the device, for the step after the one that is running.

    What the host draws (order, shifts, negatives) and what the device makes of it go through a stream of their own.
    """

    def __init__(self, bench: Bench, case: Case) -> None:
        contrast = case.objective.contrast
        assert contrast is not None
        labels, side = contrast.labels.cpu(), case.inputs["images"].shape[-1]
        self.batch, self.device, self.most = case.images, torch.device(bench.device), side // 8
        generator = draws.generator(0, "photographs")
        pixels = torch.randint(256, (len(labels), 3, side, side), dtype=torch.uint8, generator=generator)
        self.pixels, self.labels = pixels.to(self.device), labels
        self.mean, self.std = (torch.full((3,), value, device=self.device) for value in (0.5, 0.25))
        # A contrast of one number an embedding, on the host, draws what the one on the device would, which it would wait for.
        drawing = create_objective(
            "mcl", num_peers=2, num_classes=100, feature_dim=1, labels=labels, embedding_dim=1,
            num_negatives=contrast.num_negatives,
        )  # fmt: skip
        self._draw, self._drawn = drawing.contrast.draw, drawing.contrast.step
        self.stream = torch.cuda.Stream() if bench.cuda else None
        self._order: Iterator[Tensor] = iter(())
        self.next = self._make()

    def _make(self) -> dict[str, Tensor]:
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            number = int(self._drawn)
            chosen = next(self._order, None)
            if chosen is None or len(chosen) < self.batch:  # a graph has one size: the last, shorter batch is left out
                order = torch.randperm(len(self.labels), generator=draws.generator(0, "order", number))
                self._order = iter(order.split(self.batch))
                chosen = next(self._order)
            generator = draws.generator(0, "augment", number)
            images = shift(self.pixels[chosen.to(self.device)], generator, most=self.most, flip=True)
            made = {"images": normalise(images, self.mean, self.std), "negatives": self._draw(chosen)}
            self._drawn += 1
            made |= {"targets": self.labels[chosen], "indices": chosen}
            return {name: value.to(self.device) for name, value in made.items()}

    def hand_over(self, inputs: dict[str, Tensor]) -> None:
        """Write the batch that is ready into the inputs of a step."""
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)
        for name, value in self.next.items():
            inputs[name].copy_(value)
            if self.stream:
                value.record_stream(torch.cuda.current_stream())

    def prepare(self) -> None:
        """Make the next batch, while the device is at work."""
        self.next = self._make()


def training(bench: Bench, case: Case, key: Key) -> harness.Work:
    """A whole step of training: batch, step, and the next batch meanwhile."""
    feed, step = Feed(bench, case), prepare(bench, case, *key)
    work = step.work(key[1])

    def advance() -> None:
        feed.hand_over(step.learner.inputs)
        work()
        feed.prepare()

    return advance


def projection_part(bench: Bench, seconds: dict[Key, float]) -> Iterator[str]:
    """The time of 300 epochs, from steady steps of the fastest form, with their batches made on the device."""
    yield "## 4. 300 epochs of four-peer ResNet-32 on 50,000 images of 32x32, projected"
    here = {key: value for key, value in seconds.items() if "compiled" not in key[0]}
    keys = list(
        dict.fromkeys([REFERENCE, ("loop", "float32"), min(here, key=lambda key: here[key], default=REFERENCE)])
    )
    case = CASES["resnet32"](bench)
    works = {key: bench.attempt(lambda k=key: training(bench, case, k)) for key in keys}
    times = bench.turns({" ".join(key): work for key, work in works.items() if not isinstance(work, str)})
    steps, rows, fastest = EPOCHS * -(-IMAGES // 64), [], float("inf")
    for key, work in works.items():
        if isinstance(work, str):
            rows.append([*key, work, "", "", ""])
            continue
        name = " ".join(key)
        each = times.median(name)
        fastest = min(fastest, each * steps / 60)
        ratio = times.ratio(" ".join(REFERENCE), name) if " ".join(REFERENCE) in times.seconds else ""
        rows.append([*key, ratio, f"{each * 1e3:.3g}", f"{case.images / each:,.0f}", f"{each * steps / 60:,.1f}"])
    yield harness.table(["form", "precision", "ratio", "ms a step", "images/s", "minutes"], rows)
    verdict = "not judged at small sizes" if bench.small else "met" if fastest <= MINUTES else "missed"
    yield (
        f"{steps:,} steps. Goal: {MINUTES} minutes: **{verdict}** ({fastest:.1f} minutes). A step here has its order, "
        "shifts and negatives drawn by the host and its batch cut out, mirrored and normalised on the device on a stream of "
        "its own; no loss is read, nothing is logged, validated or saved. Outside the graph are those draws, their copies to "
        "the device and the batch; the learning rate lies on the device."
    )
    quicker = {
        key: value for key, value in seconds.items() if "compiled" in key[0] and here and value < min(here.values())
    }
    for key, value in quicker.items():
        yield f"The step alone is faster as {' '.join(key)}: {value * steps / 60:.1f} minutes without making the batches."
