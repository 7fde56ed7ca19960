"""Training steps, the contrastive loss, evaluation and 300 epochs on a GPU, each beside the straightforward form. One command:

    PYTHONPATH=. python benchmarks/gpu.py --out benchmarks/results/gpu.md

takes under 8 minutes on one H100 and needs torch and numpy alone. `--device cpu --small` runs the same on a processor in a
minute. Times are read when the device has finished; every form's losses or values are compared before it is timed. A form
that fails or has no time left is a row that says so.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
import torch
from gpu_contrast import contrast_part
from gpu_device import Bench, failure
from gpu_evaluation import evaluation_part
from gpu_forms import COLUMNS, Key, compiled_of, exact, steps_of
from gpu_projection import projection_part
from gpu_step import CASES

SECONDS = {"contrast": 60, "evaluation": 60, "steps": 150, "projection": 40}
TOTAL = 450
SHARES = {"resnet32": 0.65, "conv4": 1.0}  # of the time that is left to a part
DEFAULTS = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32  # before anything changes them


def heading(bench: Bench) -> str:
    """Device, versions and settings that the times depend on."""
    device, driver = "no GPU", ""
    if bench.cuda:
        found = torch.cuda.get_device_properties(0)
        device = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {found.multi_processor_count} multiprocessors"
        driver = f", cuDNN {torch.backends.cudnn.version()}, driver for CUDA {bench.attempt(_driver)}"
    return (
        f"Device: {bench.device} ({device}); torch {torch.__version__}, built for CUDA {torch.version.cuda}{driver}. By default "
        f"torch has TF32 {_on(DEFAULTS[0])} for products and {_on(DEFAULTS[1])} for convolutions; here both are off in "
        "float32 and on in tf32. cuDNN chooses by trial (benchmark). bfloat16 is of the networks alone."
        + (" Small sizes." if bench.small else "")
    )


def _on(value: bool) -> str:
    return "on" if value else "off"


def _driver() -> str:
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))  # torch has no word for it
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


class Steps:
    """Part 1, measured in two goes.

    Attributes:
        seconds: of a step of ResNet-32, by form and precision.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.exact: list[str] = []
        self.seconds: dict[Key, float] = {}
        self._rows: dict[str, list[list[Any]]] = {name: [] for name in CASES}

    def add(self, measure: Callable[[Bench, str], tuple[list[list[Any]], dict[Key, float]]], seconds: float) -> None:
        """The rows that `measure` gives of each network in at most so many seconds."""
        whole = self.bench.slice(seconds)
        for name, rows in self._rows.items():
            share = whole.slice(whole.left() * SHARES[name])
            found = whole.attempt(lambda n=name, s=share: measure(s, n))
            if isinstance(found, str):
                rows.append([name, measure.__name__, "", found, *[""] * (len(COLUMNS) - 4)])
                continue
            rows += found[0]
            if name == "resnet32":
                self.seconds |= found[1]

    def part(self) -> Iterator[str]:
        """The table."""
        count = 16 if self.bench.small else 256
        yield f"## 1. Training steps on a batch that is there: MCL-OKD, four peers, K = {count}, two stages of their own"
        yield harness.table(COLUMNS, [row for rows in self._rows.values() for row in rows])
        yield (
            "Ratios are to the straightforward form in float32 (one peer after another, channels first, a gather for every "
            "ordered pair under autograd), MiB what a form takes with its banks and optimizer; losses are those of the first "
            "two steps (of the second, rounding in the gradients of the first is a part). Of a CUDA graph the whole step is one: "
            "networks, losses, gradients, update of weights and banks."
        )
        yield " ".join(self.exact)


def guarded(part: Callable[[], Iterator[str]], title: str) -> list[str]:
    """The paragraphs of a part, or why it has none."""
    try:
        return list(part())
    except Exception as error:  # the other parts are still worth having
        return [f"## {title}", failure(error)]


def main() -> None:
    chosen = harness.arguments(
        str(__doc__).splitlines()[0], device="auto", small=False, compile_seconds=90, seconds=TOTAL
    )
    device = chosen.device if chosen.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu.py: torch sees no GPU here. Use --device cpu --small.")
    start = time.monotonic()
    bench = Bench(device, chosen.small, chosen.rounds, chosen.compile_seconds, start + chosen.seconds)
    torch.backends.cudnn.benchmark = True
    head = heading(bench)
    # What may leave a GPU in a bad state, or take all the time, comes last.
    contrast = guarded(lambda: contrast_part(bench.slice(SECONDS["contrast"])), "2. The contrastive loss")
    evaluation = guarded(lambda: evaluation_part(bench.slice(SECONDS["evaluation"])), "3. Evaluation")
    steps = Steps(bench)
    steps.exact = [bench.attempt(lambda n=name: exact(bench, n)) for name in CASES]
    steps.add(steps_of, SECONDS["steps"])
    steps.add(compiled_of, bench.left() - SECONDS["projection"])
    projection = guarded(lambda: projection_part(bench, steps.seconds), "4. 300 epochs, projected")
    took = f"Taken in all: {time.monotonic() - start:.0f} s."
    harness.report("On a GPU", [head, *steps.part(), *contrast, *evaluation, *projection, took], chosen.out)


if __name__ == "__main__":
    main()
