"""The command in one of several processes, with a difference in the last of them.

torchrun --nproc-per-node 2 differing.py slow|memory|stop-at-N|as-given ARGUMENTS... ({rank} in one is the process's number)
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fewshot_mcl.cli import main
from fewshot_mcl.data import ImageStore


def hindered(kind: str, gather: Callable[[ImageStore, Tensor], Tensor]) -> Callable[[ImageStore, Tensor], Tensor]:
    """Looking up the images of a step, with what is to happen then."""
    calls = 0

    def hinder(store: ImageStore, indices: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if kind == "slow":
            time.sleep(0.2)
        elif kind == "memory" and calls == 4:
            raise torch.OutOfMemoryError("out of memory")
        elif kind.startswith("stop-at-") and calls == int(kind.rpartition("-")[2]):
            os.kill(os.getpid(), signal.SIGTERM)
        return gather(store, indices)

    return hinder


if __name__ == "__main__":
    rank, kind, *arguments = os.environ.get("RANK", "0"), *sys.argv[1:]
    if rank == str(int(os.environ.get("WORLD_SIZE", "1")) - 1):
        ImageStore.gather = hindered(kind, ImageStore.gather)  # type: ignore[method-assign]
    sys.argv = ["fewshot-mcl", *(each.replace("{rank}", rank) for each in arguments)]
    main()
