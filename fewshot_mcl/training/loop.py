"""The one loop: step, check, update, log, validate, save. It knows neither methods nor backbones nor data."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewshot_mcl import parallel
from fewshot_mcl.config import Config
from fewshot_mcl.errors import Interrupted, NotANumberError
from fewshot_mcl.evaluation.restore import load_state
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.runs import Run
from fewshot_mcl.spread import Remote, completed, not_numbers, whole_state
from fewshot_mcl.training import data_parallel, peer_parallel
from fewshot_mcl.training.pace import Pace
from fewshot_mcl.training.stopping import Stopping

LEAST_RATE = 1 / 64  # of the learning rate, which is halved each time a run is rolled back
Results = dict[str, Result]


@dataclass(frozen=True)
class Plan:
    """How much and how often, in steps.

    Attributes:
        steps: in all.
        log_every, val_every, save_every: a row of metrics, a validation, a checkpoint; every validation is saved too.
        keep_all: keep the candidate network of every validation, not only the best one's.
    """

    steps: int
    log_every: int
    val_every: int
    save_every: int
    keep_all: bool = False


class Task(Protocol):
    """What the loop needs of a task."""

    plan: Plan
    images_per_step: int

    def modules(self) -> nn.ModuleDict:
        """All that is saved and trained."""
        ...

    def candidate(self) -> nn.ModuleDict:
        """The part of it that predicts, whose states are candidates for the best."""
        ...

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer that the task is trained with."""
        ...

    def learning_rate(self, step: int) -> float:
        """Of step number `step` (from 0)."""
        ...

    def step(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms with their "total", and further figures for the record."""
        ...

    def validate(self) -> Results:
        """Accuracy of every network on validation data; empty where there are none."""
        ...


class Display(Protocol):
    """Where the loop says how it goes."""

    def step(self, number: int, images_per_second: float, seconds_left: float) -> None: ...
    def losses(self, number: int, values: dict[str, float]) -> None: ...
    def validation(self, number: int, results: Results, best: bool) -> None: ...
    def note(self, text: str) -> None: ...


def deployed(results: Results) -> Result:
    """The result of the network that is kept: the last peer."""
    return list(results.values())[-1 if len(results) == 1 else -2]


class Trainer:
    """Trains a task for its `plan.steps` steps, saving into a run.

    A step is a function of the state after the step before and of its number; so a run that is resumed from a
    checkpoint goes through the same states as one that never stopped.
    """

    def __init__(
        self, task: Task, config: Config, run: Run, display: Display, stopping: Stopping | None = None
    ) -> None:
        self.task, self.plan, self.config, self.run, self.display = task, task.plan, config, run, display
        self.modules = task.modules()
        self._task_step = data_parallel.step_of(self.modules, task.step)
        self.optimizer = task.optimizer(self.modules.parameters())
        self.stopping = stopping or Stopping()
        self.done = self.saved = 0  # steps
        self.rate = 1.0  # of the task's learning rate; less after the run was rolled back
        self.seconds = 0.0  # of training so far, over all sessions of the run
        self.best: float | None = None
        self._sums: dict[str, float] = {}
        self._summed = 0
        self._pace = Pace(len(parallel.peers_of(parallel.rank(), config.peers)) if parallel.split_peers() else 1)

    def train(self) -> None:
        """Run the remaining steps.

        Raises:
            NotANumberError: if a loss stops being a number and the run is not to be rolled back, or cannot be; the last
                checkpoint is from before that.
            Interrupted: if a signal asked for it; the step was finished and saved.
        """
        self.modules.train()
        while self.done < self.plan.steps:
            try:
                self._train()
            except NotANumberError as error:
                self._roll_back(error)

    def _train(self) -> None:
        start, first, before, plan = time.monotonic(), self.done, self.seconds, self.plan
        for number in range(self.done, plan.steps):
            self._step(number)
            self.done = number + 1
            self.seconds = before + time.monotonic() - start
            pace = (self.seconds - before) / (self.done - first)
            self.display.step(self.done, self.task.images_per_step / pace, pace * (plan.steps - self.done))
            validate = self.done % plan.val_every == 0 or self.done == plan.steps
            save = validate or self.done % plan.save_every == 0
            if save or self.done % plan.log_every == 0:
                self._log(validate)
                for text in self._pace.slow():
                    self.display.note(text)
                self.seconds = before + time.monotonic() - start
            asked = self.stopping.heard()
            if save or asked:
                self.save()
                self.seconds = before + time.monotonic() - start
            if asked:
                raise Interrupted("", self.stopping.code)

    def _roll_back(self, error: NotANumberError) -> None:
        """Go on from the last checkpoint at half the learning rate, which alone can make another outcome."""
        rate = self.rate / 2
        if self.config.on_nan == "stop" or not self.run.has_checkpoint("last") or rate < LEAST_RATE:
            raise error
        at = self.done
        self.resume()
        self.rate = rate
        self.display.note(
            f"{error.what} Rolled back from {self.config.unit} {at + 1} to {self.done}; the learning rate is {rate:g} times what "
            "it was planned to be from here on."
        )

    def time_steps(self, warm_up: int, least: int, seconds: float) -> float:
        """Seconds of one step: the median of those after `warm_up`, at least `least` of them and for so many seconds.

        The run cannot be trained after that.
        """
        self.modules.train()
        times: list[float] = []
        while len(times) < warm_up + least or sum(times[warm_up:]) < seconds:
            start = time.monotonic()
            self._step(len(times))  # which reads the loss, so a GPU has finished
            times.append(time.monotonic() - start)
        return statistics.median(times[warm_up:])

    def _step(self, number: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self.task.learning_rate(number)
        with self._pace.own():
            terms, figures = self._task_step(number)
        if not bool(torch.isfinite(terms["total"])):
            raise self._diagnosis(number, terms, figures)
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        peer_parallel.add_up(self.modules)
        self.optimizer.step()
        for name, value in {**terms, **figures}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._summed += 1

    def _diagnosis(self, number: int, terms: dict[str, Tensor], figures: dict[str, Tensor]) -> NotANumberError:
        """Which terms, peers and parameters stopped being numbers, and what is still good."""
        bad = [name for name, value in terms.items() if name != "total" and not bool(torch.isfinite(value))]
        peers = {name.removeprefix("peer") for name, value in figures.items() if not bool(torch.isfinite(value))}
        broken = not_numbers(dict(self.modules.named_parameters()))
        for name in broken:  # what each peer has for itself lies in lists of these names
            peers.update(re.findall(r"\b(?:heads|classifiers)\.(\d+)\.", name))
        who = f" of peer {', '.join(sorted(peers))}" if peers else ""
        where = f" (first parameter: {broken[0]})" if broken else ""
        what = f"the loss of {self.config.unit} {number + 1} is not a number: term {', '.join(bad or ['total'])}{who}{where}."
        return self._not_a_number(what)

    def _not_a_number(self, what: str) -> NotANumberError:
        last = "There was no checkpoint yet."
        if self.run.has_checkpoint("last"):
            last = f"The last good checkpoint is kept: {self.run.path / 'checkpoints' / 'last.json'}."
        return NotANumberError(
            what,
            f"{last} Lower the learning rate (--lr) and start again, or let runs roll back: --set on_nan=rollback.",
        )

    def _log(self, validate: bool) -> None:
        values = {name: total / self._summed for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        self.display.losses(self.done, values)
        results = self._validate() if validate else None
        rate = self.rate * self.task.learning_rate(self.done - 1)
        row: dict[str, Any] = {self.config.unit: self.done, "lr": rate, **values}
        for name in results or self._networks():
            column = f"val {name}"
            row[column] = results[name].mean if results else ""
            row[f"{column} ci95"] = results[name].ci95 if results else ""
        self.run.append_metrics(row)

    def _networks(self) -> list[str]:
        peers = [f"peer {m}" for m in range(self.config.peers)]
        return [*peers, "ensemble"] if len(peers) > 1 else peers

    def _validate(self) -> Results:
        results = self.task.validate()
        mean = deployed(results).mean if results else None
        better = mean is not None and (self.best is None or mean > self.best)
        state = {self.config.unit: self.done, "val": mean}
        if better or self.plan.keep_all:
            self._tensors(self.modules)  # a state that is not to be saved may be rolled back: nothing of it is kept
        if better:
            self.best = mean
            self._keep("best", self._tensors(self.task.candidate()), state)
        if self.plan.keep_all:
            self._keep(f"after-{self.done}", self._tensors(self.task.candidate()), state)
        self.display.validation(self.done, results, better)
        return results

    def _tensors(self, modules: nn.ModuleDict) -> dict[str, Tensor | Remote]:
        if broken := not_numbers(modules.state_dict()):
            raise self._not_a_number(
                f"'{broken[0]}' holds a value that is not a number after {self.config.unit} {self.done}; nothing was saved over "
                "the last checkpoint."
            )
        return whole_state(modules)

    def _keep(self, name: str, tensors: dict[str, Tensor | Remote], state: dict[str, Any]) -> None:
        self.run.save_checkpoint(name, completed(tensors), state)

    def save(self) -> None:
        """Save everything that the next step depends on, once."""
        if self.saved == self.done > 0:
            return
        tensors = self._tensors(self.modules)
        optimizer = self.optimizer.state_dict()
        for number, state in optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        state = {
            self.config.unit: self.done, "best": self.best, "seconds": self.seconds, "rate": self.rate,
            "sums": self._sums, "summed": self._summed,
        }  # fmt: skip
        self._keep("last", tensors, state)
        parallel.wait()
        self.saved = self.done

    def resume(self) -> None:
        """Take up the last checkpoint of the run; one that never had any begins again.

        Raises:
            UserError: if it is missing or damaged, or does not fit this configuration.
        """
        if not self.run.has_begun():
            self.run.keep_metrics_until({"metrics": {"bytes": 0}})
            self.run.notes.append("it was stopped before its first checkpoint, and begins again")
            return
        tensors, state = self.run.load_checkpoint("last", with_metrics=True)
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, number, key = name.split(".")
            optimizer.setdefault(int(number), {})[key] = tensors.pop(name)
        load_state(self.modules, tensors, str(self.run.path))
        elsewhere = {n for n, p in enumerate(self.modules.parameters()) if p.is_meta}  # in another process
        here = {n: values for n, values in optimizer.items() if n not in elsewhere}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": here, "param_groups": groups})
        self.done, self.best, self.seconds = state[self.config.unit], state["best"], state["seconds"]
        self.rate, self._sums, self._summed = (
            state.get("rate", 1.0),
            dict(state.get("sums", {})),
            state.get("summed", 0),
        )
        self.saved = self.done
        self.run.keep_metrics_until(state)
