"""One of two processes that have some of three peers: what it holds, what it sends in a step, and how an error is shared.

torchrun --nproc-per-node 2 peer_worker.py OUT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from worker import FEW_SHOT, store, whole

from fewshot_mcl import parallel
from fewshot_mcl.config import resolve
from fewshot_mcl.errors import NotANumberError
from fewshot_mcl.training.loop import Trainer
from fewshot_mcl.training.session import task_on


class NoRun:
    """A run without checkpoints."""

    def has_checkpoint(self, name: str) -> bool:
        return False


def counted(sent: dict[str, int], name: str) -> Any:
    """A collective of `dist` that notes the bytes that it is given."""
    real: Callable[..., Any] = getattr(dist, name)

    def call(*arguments: Any) -> Any:
        tensor = arguments[1] if name == "all_gather" else arguments[0]
        sent[name] = sent.get(name, 0) + tensor.nbytes
        return real(*arguments)

    return mock.patch.object(dist, name, call)


def held(task: Any) -> int:
    """Bytes of memory behind the parameters of the peers."""
    return sum(p.untyped_storage().nbytes() for p in task.peers.parameters() if not p.is_meta)


def main() -> None:
    torch.set_num_threads(1)
    settings = ["parallel=peers", "peers=3", "objective.num_negatives=16", "objective.embedding_dim=8", *FEW_SHOT]
    with parallel.processes(), parallel.over("peers"):
        config = resolve(settings=[*settings, "kl_source=aux"])
        task = task_on({"train": store("train"), "val": store("val")}, config, torch.device("cpu"))
        trainer = Trainer(task, config, NoRun(), None)  # type: ignore[arg-type]
        trainer.modules.train()
        sent: dict[str, int] = {}
        with counted(sent, "all_gather"), counted(sent, "all_reduce"):
            trainer._step(0)
        found: dict[str, Any] = {"held": held(task), "sent": sent, "own": list(task.peers.own)}
        found["gradients"] = sum(p.grad.nbytes for p in task.peers.parameters() if p.grad is not None)
        found["states"] = len(trainer.optimizer.state)
        complete = whole(trainer.modules.state_dict())
        found["complete"] = complete.keys() == trainer.modules.state_dict().keys()
        if parallel.rank():  # of a peer that the other process has not
            with torch.no_grad():
                next(task.peers.classifiers[0].parameters()).view(-1)[0] = float("nan")
        found["errors"] = []
        for attempt in (lambda: trainer._tensors(trainer.modules), lambda: trainer._step(1)):
            try:
                attempt()
            except NotANumberError as error:
                found["errors"].append(error.what)
        everyone = parallel.from_all(found)
        if parallel.rank() == 0:
            torch.save(everyone, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
