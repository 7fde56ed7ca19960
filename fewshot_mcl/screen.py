"""What commands print: lines and tables of what was found, names from files made safe."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError
from fewshot_mcl.progress import LateBar, LateLines, listening
from fewshot_mcl.resources import program

if TYPE_CHECKING:
    from rich.console import Console

    from fewshot_mcl.training.session import Outcome


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


@dataclass(frozen=True)
class Screen:
    """What a command says, and where.

    Args:
        as_json: the answer is one JSON object on standard output; all else goes to standard error.
        quiet: nothing but the answer.

    Raises:
        UserError: where both are asked for.
    """

    as_json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.as_json and self.quiet:
            raise UserError("--json prints its one object and --quiet the results as text: leave one of them out.")

    def say(self, *lines: str) -> None:
        """Words on the way, whatever names are in them."""
        if not self.quiet:
            print("\n".join(map(printable, lines)), file=sys.stderr if self.as_json else sys.stdout)

    def answer(self, content: Callable[[], dict[str, Any]], show: Callable[[], None]) -> None:
        """The answer: `content` as JSON, or else what `show` prints."""
        if self.as_json:
            print(json.dumps(_finite(content())))
        else:
            show()

    def console(self) -> Console:
        """Where training shows how it goes: live on a terminal that can do that, plain lines elsewhere."""
        from rich.console import Console

        plain = self.quiet or os.environ.get("TERM") == "dumb"
        return Console(stderr=self.as_json, quiet=self.quiet, force_terminal=False if plain else None)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show on standard error how far work has come that takes more than two seconds.

        A bar on a terminal, lines elsewhere; but none to a program that asks for JSON.
        """
        from rich.console import Console

        console = Console(stderr=True)
        live = console.is_terminal and not console.is_dumb_terminal
        if self.quiet or (self.as_json and not live) or os.environ.get("RANK", "0") != "0":
            yield
            return
        late = LateBar(console) if live else LateLines(lambda text: print(printable(text), file=sys.stderr))
        with late, listening(late.hear):
            yield


def _finite(content: Any) -> Any:
    """JSON knows no infinity and no NaN: they become null."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def packing_progress(screen: Screen) -> Iterator[Callable[[int, int], None]]:
    """Yields what is told how far packing has come: a bar on a terminal, a line every tenth part elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = screen.console()
    if not console.is_terminal:
        told = set()

        def tell(done: int, total: int) -> None:
            tenth = 10 * done // max(1, total)
            if tenth not in told:
                told.add(tenth)
                screen.say(f"packed {done:,} of {total:,} images")

        yield tell
        return
    with Progress(BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def training_lines(outcome: Outcome, screen: Screen) -> Iterator[str]:
    """How training ended, and what to do next."""
    from fewshot_mcl.config import FewShotConfig
    from fewshot_mcl.evaluation.session import preset
    from fewshot_mcl.training.display import network_label, percent

    config, run = outcome.run.config, outcome.run.path
    minutes, seconds = divmod(round(outcome.seconds), 60)
    if not screen.quiet:
        yield ""
    if isinstance(config, FewShotConfig):
        first = next(iter(outcome.results.values()))
        yield f"Trained in {minutes} min {seconds} s. Best checkpoint by validation: episode {outcome.kept}."
        yield (
            f"Accuracy on the validation split, {config.val_way}-way {config.val_shot}-shot, {config.val_query} queries a class, "
            f"{first.episodes} episodes not used for choosing it, mean ± 95% interval:"
        )
        yield from (f"  {network_label(name, config.peers):<18} {percent(r)} %" for name, r in outcome.results.items())
        if screen.quiet:
            yield f"Run: {run}"
            return
        yield "Next, on the test split (classes that training has not seen and did not choose by):"
        # Where validation classes are too small for the usual number of queries, test classes may be, too.
        fewer = f" --query {config.val_query}" if config.val_query < preset("paper-text")[1] else ""
        yield f"  {program()} evaluate {shlex.quote(str(run))}{fewer}"
    else:
        yield f"Trained in {minutes} min {seconds} s. Run: {run}"


def training_content(outcome: Outcome) -> dict[str, Any]:
    """How training ended, for a program: every figure with its protocol. Of a classification, validation only."""
    from fewshot_mcl.config import FewShotConfig

    config, run = outcome.run.config, outcome.run
    named = {name: getattr(config, name) for name in ("task", "method", "backbone", "peers", "seed")}
    protocol: dict[str, Any] = {"split": "val", "seed": config.seed}
    if isinstance(config, FewShotConfig):
        counted = "episodes"
        protocol |= {"way": config.val_way, "shot": config.val_shot, "query": config.val_query}
    else:
        counted = "images"
        protocol |= {"measure": "top-1 accuracy"}
    results = [
        {"network": name, **protocol, counted: r.episodes, "mean": r.mean, "ci95": r.ci95, "std": r.std}
        for name, r in outcome.results.items()
    ]
    return named | {
        "run": str(run.path), "data": run.data("train")["source"], "seconds": outcome.seconds,
        f"kept_{config.unit}": outcome.kept, "deployed": f"peer {config.peers - 1}",
        "interval": f"95%: 1.96 s / sqrt(N) over {counted}", "unit": "fraction",
        "notes": list(run.notes), "results": results,
    }  # fmt: skip


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


def _label(content: dict[str, Any], result: dict[str, Any]) -> str:
    name: str = result["network"]
    return f"{name} (deployed)" if name == content["deployed"] else name


def _error(result: dict[str, Any], which: str) -> str:
    return f"{100 * result[f'{which}_error']:.2f} ± {100 * result[f'{which}_ci95']:.2f}"
