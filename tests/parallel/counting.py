"""One of several processes that take one step of each case, in each way to share it, and count the bytes that they hand to
torch.distributed.

torchrun --nproc-per-node 2 counting.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from worker import CLASSIFY, FEW_SHOT, store

from fewshot_mcl import parallel
from fewshot_mcl.config import resolve
from fewshot_mcl.training import data_parallel, peer_parallel
from fewshot_mcl.training.costs import DATA, PEERS, SHARDED
from fewshot_mcl.training.session import task_on

SMALL = ["peers=3", "backbone=conv4", "share=last-two"]
CONTRAST = ["objective.num_negatives=16", "objective.embedding_dim=8"]
CASES = {
    "classify mcl-okd": ("classify", [*CLASSIFY, *SMALL, *CONTRAST]),
    "classify dml, statistics per process": ("classify", [*CLASSIFY, *SMALL, "method=dml", "batch_norm=per-process"]),
    "few-shot mcl-okd": ("few-shot", [*FEW_SHOT, *SMALL, *CONTRAST]),
    "few-shot one, with a classifier": ("few-shot", [*FEW_SHOT, *SMALL, "method=one"]),
}


def ways(case: str) -> list[str]:
    """To share a step of it."""
    return [DATA, *[SHARDED] * ("mcl-okd" in case), PEERS]


def task(case: str, way: str = DATA) -> Any:
    """The task of a case, on images that are made up."""
    kind, settings = CASES[case]
    settings = [*settings, *["objective.banks=sharded"] * (way == SHARDED)]
    stores = {"train": store("train")} | ({"val": store("val")} if kind == "few-shot" else {})
    return task_on(stores, resolve(task=kind, settings=settings), torch.device("cpu"))


class Counted:
    """Stands for functions of torch.distributed, each of which it calls; adds up the bytes that they are given."""

    def __init__(self) -> None:
        self.summed = self.gathered = self.gradients = 0

    def all_reduce(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.summed += tensor.nbytes
        return REAL["all_reduce"](tensor, *args, **kwargs)

    def all_gather(self, parts: list[torch.Tensor], tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.gathered += tensor.nbytes
        return REAL["all_gather"](parts, tensor, *args, **kwargs)

    def bucket(self, state, bucket):  # type: ignore[no-untyped-def]  # torch wants its annotations not as text
        self.gradients += bucket.buffer().nbytes
        before = self.summed
        future = allreduce_hook(None, bucket)
        self.summed = before  # whichever function it calls
        return future


REAL = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}


def step_of(case: str, way: str) -> dict[str, int]:
    """What one step hands over."""
    with parallel.over("peers" if way == PEERS else "data"):
        this, counted = task(case, way), Counted()
        modules = this.modules().train()
        step = data_parallel.step_of(modules, this.step)
        if isinstance(step, DistributedDataParallel):
            step.register_comm_hook(None, counted.bucket)
        with (
            mock.patch.object(dist, "all_reduce", counted.all_reduce),
            mock.patch.object(dist, "all_gather", counted.all_gather),
        ):
            terms, _ = step(0)
            terms["total"].backward()
            peer_parallel.add_up(modules)
    return vars(counted)


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with parallel.processes():
        for case in CASES:
            found[case] = {way: step_of(case, way) for way in ways(case)}
        if parallel.rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
