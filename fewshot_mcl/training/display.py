"""How a run looks: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.progress import listening


def percent(result: Result) -> str:
    """ "76.57 ± 0.80": mean and 95% interval in percent."""
    return f"{100 * result.mean:.2f} ± {100 * result.ci95:.2f}"


def network_label(name: str, peers: int) -> str:
    """A network's name, with the one that is deployed marked."""
    return f"{name} (deployed)" if name == f"peer {peers - 1}" else name


Where = Callable[[int], str]  # steps done -> "episode 100/600", "epoch 3/20"


class LineDisplay:
    """One line for every validation."""

    def __init__(self, console: Console, steps: int, where: Where, peers: int, protocol: str) -> None:
        self.console, self.where, self.peers, self.protocol = console, where, peers, protocol
        self._speed = ""
        self._losses = ""
        self._silence = ExitStack()

    def __enter__(self) -> LineDisplay:
        self._silence.enter_context(listening(None))  # what a validation says of itself would be lines between these
        return self

    def __exit__(self, *_: object) -> None:
        self._silence.close()

    def step(self, number: int, images_per_second: float, seconds_left: float) -> None:
        self._speed = f"{images_per_second:.0f} images/s, {timedelta(seconds=round(seconds_left))} left"

    def losses(self, number: int, values: dict[str, float]) -> None:
        self._losses = "  ".join(f"{name} {value:.3f}" for name, value in values.items())

    def validation(self, number: int, results: dict[str, Result], best: bool) -> None:
        accuracies = "  ".join(f"{network_label(name, self.peers)} {percent(r)}" for name, r in results.items())
        found = [f"{self.protocol}: {accuracies} %{'  best so far' if best else ''}"] if results else []
        line = "  |  ".join([f"{self.where(number)}  {self._losses}", *found, self._speed])
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


class LiveDisplay:
    """A progress bar, the loss terms, and a row for every network with its accuracy at the last validations."""

    SHOWN = 4  # validations side by side

    def __init__(self, console: Console, steps: int, where: Where, peers: int, protocol: str) -> None:
        self.where, self.peers, self.protocol = where, peers, protocol
        self._bar = Progress(
            TextColumn("{task.fields[where]}"), BarColumn(), TextColumn("{task.description}"), console=console
        )
        self._task = self._bar.add_task("", total=steps, where=where(0))
        self._losses: dict[str, float] = {}
        self._history: list[tuple[int, dict[str, Result], bool]] = []
        self._live = Live(console=console, refresh_per_second=4)
        self._silence = ExitStack()

    def __enter__(self) -> LiveDisplay:
        self._silence.enter_context(listening(None))  # what a validation says of itself would be a second bar
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._silence.close()
        self._live.update(self._view())
        self._live.__exit__(None, None, None)

    def step(self, number: int, images_per_second: float, seconds_left: float) -> None:
        left = timedelta(seconds=round(seconds_left))
        speed = f"{images_per_second:.0f} images/s, {left} left"
        self._bar.update(self._task, completed=number, description=speed, where=self.where(number))
        self._live.update(self._view())

    def losses(self, number: int, values: dict[str, float]) -> None:
        self._losses = values

    def validation(self, number: int, results: dict[str, Result], best: bool) -> None:
        if results:
            self._history = [*self._history, (number, results, best)][-self.SHOWN :]

    def note(self, text: str) -> None:
        self._live.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _view(self) -> Group:
        losses = Table(title="loss (mean of the last steps)", title_justify="left", box=None, padding=(0, 2))
        for name in self._losses:
            losses.add_column(name, justify="right", no_wrap=True)
        losses.add_row(*(f"{value:.3f}" for value in self._losses.values()))
        parts: list[RenderableType] = [self._bar, *([losses] if self._losses else [])]
        if self._history:
            accuracies = Table(
                title=f"{self.protocol}, % ± 95% interval", title_justify="left", box=None, padding=(0, 2)
            )
            accuracies.add_column("")
            for number, _, best in self._history:
                accuracies.add_column(
                    f"{self.where(number).partition('/')[0]}{' best' if best else ''}", justify="right", no_wrap=True
                )
            for name in self._history[-1][1]:
                cells = (percent(results[name]) for _, results, _ in self._history)
                accuracies.add_row(network_label(name, self.peers), *cells)
            parts.append(accuracies)
        return Group(*parts)
