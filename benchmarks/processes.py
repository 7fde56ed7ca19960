"""One, two and four processes on the CPU that share the steps of one run: seconds of a step, by part. And 64 GPUs, on paper.

    uv run --group bench python benchmarks/processes.py --out benchmarks/results/processes.md

Every number of processes is a group that waits for its turn; groups take turns, so a busy machine slows a whole round. A
process has one thread. On a machine of two cores, four processes share them: no more than two can be faster than one.
`--only WORD` takes the cases whose name has that word.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import harness  # first: it pins the threads
import processes_on_paper
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing import get_context
from torch.nn.parallel import DistributedDataParallel

from fewshot_mcl import parallel
from fewshot_mcl.config import Config, resolve
from fewshot_mcl.training import parts
from fewshot_mcl.training.costs import DATA, ONE, PEERS, SHARDED, costs
from fewshot_mcl.training.estimate import Unwritten
from fewshot_mcl.training.loop import Trainer
from fewshot_mcl.training.session import build_task

CASES = {  # of the embedded glyphs
    "few-shot, 4 conv4 peers": ("few-shot", []),
    "classify, 4 resnet32 peers": ("classify", ["backbone=resnet32"]),
}
WAYS = {DATA: [], SHARDED: ["objective.banks=sharded"], PEERS: ["parallel=peers"]}
PARTS = ("networks", "objective", "exchange", "batch", "update")
EXCHANGES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast")
PROBE = 1 << 24  # numbers that are summed to find out how fast that goes


class Dissected:
    """A trainer whose steps can be timed by part. While that is done, gradients are summed at once, not during the backward."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.on = trainer, False
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "batch", 0.0
        peers = trainer.modules["peers"]
        peers.register_forward_pre_hook(lambda *_: self._enter("networks"))
        peers.register_forward_hook(self._behind)
        trainer.optimizer.register_step_pre_hook(lambda *_: self._enter("update"))
        step = trainer._task_step
        if isinstance(step, DistributedDataParallel):
            step.register_comm_hook(None, self._bucket)

    def _enter(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def _behind(self, peers: nn.Module, args: Any, out: Any) -> None:
        self._enter("objective")
        for value in (out.features, out.logits, out.stem):
            if self.on and value is not None:  # when its gradient is there, the networks' backward begins
                value.register_hook(lambda _: self._enter("networks"))

    def _bucket(self, state, bucket):  # type: ignore[no-untyped-def]  # torch does not take annotations as text
        if not self.on:
            return allreduce_hook(None, bucket)
        gradients = bucket.buffer().div_(dist.get_world_size())
        dist.all_reduce(gradients)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(gradients)
        return future

    @contextmanager
    def _exchanges(self) -> Iterator[None]:
        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def exchange(*args: Any, **kwargs: Any) -> Any:
                before = self._part
                self._enter("exchange")
                try:
                    return call(*args, **kwargs)
                finally:
                    self._enter(before)

            return exchange

        with mock.patch.multiple(dist, **{name: timed(getattr(dist, name)) for name in EXCHANGES}):
            yield

    def step(self, number: int) -> dict[str, float]:
        """Seconds of one step by part; waiting for other processes counts as exchange."""
        self.seconds, self.on = dict.fromkeys(PARTS, 0.0), True
        self._part, self._since = "batch", time.perf_counter()
        with self._exchanges():
            self.trainer._step(number)
        self._enter("batch")
        self.on = False
        return self.seconds


def serve(connection: Any, rank: int, processes: int, store: str, config: Config, steps: int) -> None:
    """One process of a group: each message asks for a turn, whose answer is seconds of a step, whole and by part."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    with parallel.over(config.parallel):
        take_turns(connection, processes, config, steps)
    if processes > 1:
        dist.destroy_process_group()


def take_turns(connection: Any, processes: int, config: Config, steps: int) -> None:
    """Answer until there is nothing more to do."""
    task, _, _ = build_task(config, torch.device("cpu"))
    trainer = Trainer(task, config, cast(Any, Unwritten()), cast(Any, None))
    trainer.modules.train()
    dissected, number = Dissected(trainer), 0
    while connection.recv() is not None:
        parallel.wait()
        start = time.perf_counter()
        for _ in range(steps):
            trainer._step(number)
            number += 1
        whole = (time.perf_counter() - start) / steps
        each = [dissected.step(number + i) for i in range(steps)]
        number += steps
        connection.send((whole, {part: statistics.median(e[part] for e in each) for part in PARTS}, probe(processes)))


def probe(processes: int) -> float:
    """GB/s that each process sends in a large sum; 0 in one process."""
    if processes == 1:
        return 0.0
    numbers = torch.ones(PROBE)
    start = time.perf_counter()
    dist.all_reduce(numbers)
    return 2 * (processes - 1) / processes * numbers.nbytes / (time.perf_counter() - start) / 1e9


class Group:
    """Processes that train together, and wait between their turns."""

    def __init__(self, processes: int, config: Config, steps: int, folder: Path) -> None:
        context, self.ends = get_context("spawn"), []
        before = dict(os.environ)
        os.environ |= harness.OURS
        for rank in range(processes):
            here, there = context.Pipe()
            arguments = (there, rank, processes, str(folder / f"store-{id(self)}"), config, steps)
            context.Process(target=serve, args=arguments, daemon=True).start()
            there.close()
            self.ends.append(here)
        os.environ.clear()
        os.environ |= before

    def turn(self) -> tuple[float, dict[str, float], float]:
        """Seconds of a step, the longest that any process takes; by part, the mean of all; GB/s of a large sum."""
        for end in self.ends:
            end.send(True)
        answers = [end.recv() for end in self.ends]
        mean = {part: statistics.fmean(each[part] for _, each, _ in answers) for part in PARTS}
        return max(whole for whole, _, _ in answers), mean, min(rate for _, _, rate in answers)

    def end(self) -> None:
        """Let them go."""
        for end in self.ends:
            end.send(None)


def measured(name: str, numbers: list[int], rounds: int, steps: int) -> Iterator[str]:
    """The parts of a report on one case."""
    task, settings = CASES[name]
    config = resolve(None, {}, settings, task=task)
    with tempfile.TemporaryDirectory() as folder:
        groups = {(1, ONE): Group(1, config, steps, Path(folder))}
        for number in numbers:
            for way, more in WAYS.items():
                shared = resolve(None, {}, [*settings, *more], task=task)
                groups[number, way] = Group(number, shared, steps, Path(folder))
        for group in groups.values():
            group.turn()  # not counted
        turns = [{key: group.turn() for key, group in groups.items()} for _ in range(rounds)]
        for group in groups.values():
            group.end()
    rates = {number: statistics.median(each[number, DATA][2] for each in turns) for number in numbers}
    said = foretold(config, rates)
    rows = []
    for key in groups:
        ratios = harness.spread([each[1, ONE][0] / each[key][0] for each in turns])
        wholes = harness.spread([1000 * each[key][0] for each in turns])
        ms = [1000 * statistics.median(each[key][1][part] for each in turns) for part in PARTS]
        rows.append([str(key[0]), key[1], wholes, ratios, *ms, said.get(key, "")])
    columns = ["processes", "way", "ms a step", "times as fast", *(f"{part}, ms" for part in PARTS), "dry run says, ms"]
    yield f"## {name}"
    yield harness.table(columns, rows)
    sums = ", ".join(f"{rate:.2f} GB/s in {number} processes" for number, rate in rates.items())
    yield f"Large sums flow at {sums}: the bandwidth that the dry run is told."


def foretold(config: Config, rates: dict[int, float]) -> dict[tuple[int, str], float]:
    """What a dry run says of a step, in ms, by processes and way."""
    task, _, _ = build_task(config, torch.device("cpu"))
    found = {}
    for number, rate in rates.items():
        found |= {(number, each.way): 1000 * each.step for each in costs(*parts.measured(task, number), number, rate)}
    return found


def main() -> None:
    asked = harness.arguments(__doc__ or "", only="", processes=[2, 4], steps=3)
    sections = [
        "Strong growth: the same batches, shared by more processes (gloo, one machine, one thread each). A step: the slowest "
        "process of a group, median of the rounds; parts: mean of a group's processes, of steps that are timed by part, in which "
        "nothing is computed while gradients are exchanged. Exchange has the waiting for other processes in it. "
        "The dry run (`--dry-run --world-size`) takes every process to have a core to itself. "
        f"**This machine has {os.cpu_count()} cores: more processes than that share them.**",
    ]
    for name in CASES:
        if asked.only in name:
            sections += measured(name, asked.processes, asked.rounds, asked.steps)
    harness.report("Several processes", [*sections, *processes_on_paper.sections()], asked.out)


if __name__ == "__main__":
    main()
