"""The one loop: step, check, update, log, validate, save. It knows neither methods nor backbones nor data."""

from __future__ import annotations

import math
import re
import time
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewshot_mcl.config import Config
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.restore import load_state
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.runs import Run, Tensors

Results = dict[str, Result]


class Task(Protocol):
    """What the loop needs of a task."""

    images_per_step: int

    @property
    def peers(self) -> nn.Module:
        """The network whose states are candidates for the best."""
        ...

    def modules(self) -> nn.ModuleDict:
        """All that is saved and trained."""
        ...

    def step(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms with their "total", and further figures for the record."""
        ...

    def validate(self) -> Results:
        """Accuracy of every network on validation data."""
        ...


class Display(Protocol):
    """Where the loop says how it goes."""

    def step(self, number: int, images_per_second: float, seconds_left: float) -> None: ...
    def losses(self, number: int, values: dict[str, float]) -> None: ...
    def validation(self, number: int, results: Results, best: bool) -> None: ...


def learning_rate(config: Config, step: int) -> float:
    """Of step number `step` (from 0)."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * step / config.episodes))
    return config.lr * 0.5 ** (step // config.halve_every) if config.schedule == "halving" else config.lr


def deployed(results: Results) -> Result:
    """The result of the network that is kept: the last peer."""
    return list(results.values())[-1 if len(results) == 1 else -2]


class Trainer:
    """Trains a task for `config.episodes` steps, saving into a run.

    A step is a function of the state after the step before and of its number; so a run that is resumed from a
    checkpoint goes through the same states as one that never stopped.
    """

    def __init__(self, task: Task, config: Config, run: Run, display: Display) -> None:
        self.task, self.config, self.run, self.display = task, config, run, display
        self.modules = task.modules()
        self.optimizer = torch.optim.Adam(self.modules.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.done = 0
        self.seconds = 0.0  # of training so far, over all sessions of the run
        self.best: float | None = None
        self._sums: dict[str, float] = {}
        self._summed = 0

    def train(self) -> None:
        """Run the remaining steps.

        Raises:
            UserError: if a loss stops being a number; the last checkpoint is from before that.
        """
        self.modules.train()
        start, first, before = time.monotonic(), self.done, self.seconds
        for number in range(self.done, self.config.episodes):
            self._step(number)
            self.done = number + 1
            self.seconds = before + time.monotonic() - start
            pace = (self.seconds - before) / (self.done - first)
            self.display.step(self.done, self.task.images_per_step / pace, pace * (self.config.episodes - self.done))
            validate = self.done % self.config.val_every == 0 or self.done == self.config.episodes
            if validate or self.done % self.config.log_every == 0:
                self._log(validate)
            if validate:
                self.save()

    def _step(self, number: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, number)
        terms, figures = self.task.step(number)
        if not bool(torch.isfinite(terms["total"])):
            raise UserError(self._diagnosis(number, terms, figures))
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        self.optimizer.step()
        for name, value in {**terms, **figures}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._summed += 1

    def _diagnosis(self, number: int, terms: dict[str, Tensor], figures: dict[str, Tensor]) -> str:
        """Which terms, peers and parameters stopped being numbers, and what is still good."""
        bad = [name for name, value in terms.items() if name != "total" and not bool(torch.isfinite(value))]
        peers = {name.removeprefix("peer") for name, value in figures.items() if not bool(torch.isfinite(value))}
        broken = [name for name, value in self.modules.named_parameters() if not bool(torch.isfinite(value).all())]
        for name in broken:  # what each peer has for itself lies in lists of these names
            peers.update(re.findall(r"\b(?:heads|classifiers)\.(\d+)\.", name))
        who = f" of peer {', '.join(sorted(peers))}" if peers else ""
        where = f" (first parameter: {broken[0]})" if broken else ""
        kept = self.run.path / "checkpoints" / "last.json"
        last = f"The last good checkpoint is kept: {kept}." if kept.exists() else "There was no checkpoint yet."
        return (
            f"the loss of episode {number + 1} is not a number: term {', '.join(bad or ['total'])}{who}{where}. {last} "
            "Lower the learning rate (--lr) and start again."
        )

    def _log(self, validate: bool) -> None:
        values = {name: total / self._summed for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        self.display.losses(self.done, values)
        results = self._validate() if validate else None
        row: dict[str, Any] = {"episode": self.done, "lr": learning_rate(self.config, self.done - 1), **values}
        networks = list(results or self._networks())
        for name in networks:
            column = f"val {name}"
            row[column] = results[name].mean if results else ""
            row[f"{column} ci95"] = results[name].ci95 if results else ""
        self.run.append_metrics(row)

    def _networks(self) -> list[str]:
        peers = [f"peer {m}" for m in range(self.config.peers)]
        return [*peers, "ensemble"] if len(peers) > 1 else peers

    def _validate(self) -> Results:
        results = self.task.validate()
        mean = deployed(results).mean
        better = self.best is None or mean > self.best
        if better:
            self.best = mean
            self.run.save_checkpoint(
                "best", self._tensors(self.task.peers, "peers."), {"episode": self.done, "val": mean}
            )
        self.display.validation(self.done, results, better)
        return results

    def _tensors(self, module: nn.Module, prefix: str = "") -> Tensors:
        tensors = {prefix + name: value for name, value in module.state_dict().items()}
        broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise UserError(
                f"'{broken[0]}' holds a value that is not a number after episode {self.done}; nothing was saved over the last "
                "checkpoint. Lower the learning rate (--lr) and start again."
            )
        return tensors

    def save(self) -> None:
        """Save everything that the next step depends on."""
        tensors = self._tensors(self.modules)
        optimizer = self.optimizer.state_dict()
        for number, state in optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        self.run.save_checkpoint("last", tensors, {"episode": self.done, "best": self.best, "seconds": self.seconds})

    def resume(self) -> None:
        """Take up the last checkpoint of the run.

        Raises:
            UserError: if there is none, it is damaged, or it does not fit this configuration.
        """
        tensors, state = self.run.load_checkpoint("last")
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, number, key = name.split(".")
            optimizer.setdefault(int(number), {})[key] = tensors.pop(name)
        load_state(self.modules, tensors, str(self.run.path))
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        self.done, self.best, self.seconds = state["episode"], state["best"], state["seconds"]
        self.run.keep_metrics_until(self.done)
