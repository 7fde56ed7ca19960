"""What commands print: lines and tables of what was found, names from files made safe."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fewshot_mcl.data.names import printable
from fewshot_mcl.resources import program

if TYPE_CHECKING:
    from fewshot_mcl.config import Config
    from fewshot_mcl.reproduce.cells import Cell
    from fewshot_mcl.training.estimate import Estimate
    from fewshot_mcl.training.session import Outcome
    from fewshot_mcl.training.tune import Timing, Tuning


def print_lines(*lines: str) -> None:
    """Each on a line of its own, whatever names are in it."""
    print("\n".join(map(printable, lines)))


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """A table without lines, its first column to the left."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2))
    for name in columns:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=500).print(table)  # a terminal wraps what is too long for it; here digits would be cut


@contextmanager
def packing_progress() -> Iterator[Callable[[int, int], None]]:
    """Yields what is told how far packing has come: a bar on a terminal, a line every tenth part elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console()
    if not console.is_terminal:
        told = set()

        def tell(done: int, total: int) -> None:
            tenth = 10 * done // max(1, total)
            if tenth not in told:
                told.add(tenth)
                print_lines(f"packed {done:,} of {total:,} images")

        yield tell
        return
    with Progress(BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def training_lines(outcome: Outcome) -> Iterator[str]:
    """How training ended, and what to do next."""
    from fewshot_mcl.config import FewShotConfig
    from fewshot_mcl.training.display import network_label, percent

    config, run = outcome.run.config, outcome.run.path
    minutes, seconds = divmod(round(outcome.seconds), 60)
    yield ""
    if isinstance(config, FewShotConfig):
        first = next(iter(outcome.results.values()))
        yield f"Trained in {minutes} min {seconds} s. Best checkpoint by validation: episode {outcome.kept}."
        yield (
            f"Accuracy on the validation split, {config.val_way}-way {config.val_shot}-shot, {config.val_query} queries a class, "
            f"{first.episodes} episodes not used for choosing it, mean ± 95% interval:"
        )
        yield from (f"  {network_label(name, config.peers):<18} {percent(r)} %" for name, r in outcome.results.items())
        yield "Next, on the test split (classes that training has not seen and did not choose by):"
        yield f"  {program()} evaluate {shlex.quote(str(run))}"
    else:
        yield f"Trained in {minutes} min {seconds} s. Run: {run}"


def print_evaluation(content: dict[str, Any], shown: list[dict[str, Any]]) -> None:
    """Accuracies on episodes, with their protocol."""
    first = shown[0]
    print_lines(
        f"{content['run']}: {content['method']}, {content['backbone']}, {content['checkpoint']} checkpoint (episode "
        f"{content['checkpoint_episode']})",
        f"{content['data']}, {first['split']} split: {content['classes']} classes, {content['images']} images, "
        f"{content['image_size']} pixels, {content['resize']}",
        f"{first['way']}-way, {first['query']} queries a class, {first['episodes']} episodes, seed {first['seed']}; accuracy in "
        f"% ± 95% interval (1.96 s / sqrt E over episodes)",
        *content["notes"],
    )
    rows = [
        [_label(content, r), str(r["shot"]), f"{100 * r['mean']:.2f} ± {100 * r['ci95']:.2f}", f"{100 * r['std']:.2f}"]
        for r in shown
    ]
    print_table(["", "shot", "accuracy", "deviation"], rows)
    for r in shown:
        if change := r.get("change"):
            print_lines(
                f"{content['precision']} changes {r['network']}, {r['shot']}-shot, by {100 * change['mean']:+.2f} ± "
                f"{100 * change['ci95']:.2f} from float32 (paired, the first {change['episodes']} episodes, of which "
                f"{change['differing']} differ)"
            )
    print_lines(f"every episode's accuracy: {content['file']}")


CHECKPOINTS = {
    "last": "last epoch",
    "best": "best by validation",
    "best-on-test": "best on test: chosen by these very images",
}


def print_classification(content: dict[str, Any]) -> None:
    """Errors on test images, with their protocol; the headline first."""
    results, headline = content["results"], content["headline"]
    deployed = next(r for r in results if (r["checkpoint"], r["network"]) == (headline, content["deployed"]))
    print_lines(
        f"{content['data']}, test split: {content['classes']} classes, {content['images']} images, "
        f"{content['image_size']} pixels, {content['resize']}",
        *content["notes"],
        f"{content['method']}, {content['backbone']}, {content['epochs']} epochs, seed {content['seed']}. Deployed network, "
        f"{CHECKPOINTS[headline]}: top-1 error {_error(deployed, 'top1')} %",
        "error in % ± 95% interval (1.96 s / sqrt N over test images)",
    )
    for checkpoint in dict.fromkeys([headline, *(r["checkpoint"] for r in results)]):
        rows = [r for r in results if r["checkpoint"] == checkpoint]
        print_lines(f"{CHECKPOINTS[checkpoint]}:")
        print_table(["", "top-1", "top-5"], [[_label(content, r), _error(r, "top1"), _error(r, "top5")] for r in rows])
    print_lines(f"accuracy by class, confusion matrix and every answer: {content['file']} and the files beside it")


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


def tuning_table() -> Callable[[Timing], None]:
    """Prints a heading; what it returns is told of each variant of a run once it is measured, and prints a line of it."""
    print_lines("a few steps of every variant; their values are equal but for rounding, except with another precision:")
    measured: list[float] = []

    def add(timing: Timing) -> None:
        result = timing.why
        if timing.seconds is not None:
            measured.append(timing.seconds)
            faster = f"  {measured[0] / timing.seconds:.2f} times as fast" if len(measured) > 1 else ""
            result = f"{1000 * timing.seconds:>9,.1f} ms a step{faster}"
        print_lines(f"  {timing.name:<32} {result}")

    return add


def print_choice(tuning: Tuning) -> None:
    """What a run is tuned to."""
    base, chosen, bare = tuning.timings[0], tuning.chosen, tuning.timings[-1]
    if chosen is base:
        print_lines("no variant is surely faster: the run is as configured")
    else:
        print_lines(f"chosen: {chosen.name}, {base.run / chosen.run:.2f} times as fast by three timings in turns")
    if bare.run * 1.03 < chosen.run:
        print_lines("without huge pages it is faster still: set THP_MEM_ALLOC_ENABLE=0 in the environment")


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
    seeds = runs / max(1, len(estimates))
    hours = sum(e.seconds for cell, e in estimates) * seeds / jobs / 3600
    print_lines(
        "Each run of the first seed: parameters and million multiply-adds (one image, forward) of its peers; minutes of "
        "training from some timed steps and a part of a validation, without the tests; memory at the peak of these.",
        f"{runs} runs, {jobs} at a time: about {hours:,.1f} hours, if runs side by side do not slow each other down.",
    )


def _label(content: dict[str, Any], result: dict[str, Any]) -> str:
    name: str = result["network"]
    return f"{name} (deployed)" if name == content["deployed"] else name


def _error(result: dict[str, Any], which: str) -> str:
    return f"{100 * result[f'{which}_error']:.2f} ± {100 * result[f'{which}_ci95']:.2f}"
