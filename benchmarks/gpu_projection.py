"""What 300 epochs would take, batches included; part of gpu.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import harness
import torch
from gpu_device import Bench
from gpu_forms import REFERENCE, Key, prepare
from gpu_step import CASES, Case
from torch import Tensor

from fewshot_mcl import draws
from fewshot_mcl.data.augment import shift
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.objectives import create_objective
from fewshot_mcl.objectives.contrast import MultiViewContrast

EPOCHS, IMAGES, MINUTES = 300, 50_000, 10  # the goal


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
        self._drawing = cast(MultiViewContrast, drawing.contrast)
        self.stream = torch.cuda.Stream() if bench.cuda else None
        self._order: Iterator[Tensor] = iter(())
        self.next = self._make()

    def _make(self) -> dict[str, Tensor]:
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            number = int(self._drawing.step)
            chosen = next(self._order, None)
            if chosen is None or len(chosen) < self.batch:  # a graph has one size: the last, shorter batch is left out
                order = torch.randperm(len(self.labels), generator=draws.generator(0, "order", number))
                self._order = iter(order.split(self.batch))
                chosen = next(self._order)
            generator = draws.generator(0, "augment", number)
            images = shift(self.pixels[chosen.to(self.device)], generator, most=self.most, flip=True)
            made = {"images": normalise(images, self.mean, self.std), "negatives": self._drawing.draw(chosen)}
            self._drawing.step += 1
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
    step, feed = prepare(bench, case, *key), Feed(bench, case)
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
    if fastest == float("inf"):
        yield "Goal: not judged, for want of a step's time."
        return
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
