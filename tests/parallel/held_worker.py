"""One of several processes that train from a packed store: how its memory lies, and what its batches are.

torchrun --nproc-per-node 2 held_worker.py STORE OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from worker import FEW_SHOT

from fewshot_mcl import parallel
from fewshot_mcl.config import resolve
from fewshot_mcl.data.held import HeldStore
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.training.session import load_stores, open_data, task_on


def mapping(file: str) -> dict[str, int]:
    """Bytes of the memory that a process has of a file, from /proc/self/smaps; all maps of it together."""
    found, inside = {"Rss": 0, "Pss": 0, "Private_Dirty": 0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in line.split()[0]:
            inside = line.endswith(file)
        elif inside and name in found:
            found[name] += 1024 * int(rest.split()[0])
    return found


def own_memory() -> int:
    """Bytes that no file stands behind."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def batches(store: ImageStore) -> list[bool]:
    """Whether batches are those that are read from the store: of other rows in each process, none, the same one twice."""
    first = parallel.rank() * 7
    wanted = [
        torch.arange(first, first + 40),
        torch.randint(len(store), (64,), generator=torch.Generator().manual_seed(parallel.rank())),
        torch.arange(0 if parallel.rank() else 5),
        torch.tensor([len(store) - 1, 0, 0, len(store) - 1]),
    ]
    return [torch.equal(store.gather(rows), store.images[rows]) for rows in wanted]


def losses(settings: list[str]) -> list[list[float]]:
    """Terms of three steps."""
    config = resolve(task="few-shot", settings=settings)
    task = task_on(load_stores(config, open_data(config)), config, torch.device("cpu"))
    assert isinstance(task.train, HeldStore) == ("images=sharded" in settings)
    return [[float(term) for term in task.step(number)[0].values()] for number in range(3)]


def main() -> None:
    torch.set_num_threads(1)
    packed, out = sys.argv[1:]
    settings = [f"data={packed}", "peers=2", "memory_share=1e-9", *FEW_SHOT]
    found: dict[str, Any] = {}
    with parallel.processes():
        config = resolve(task="few-shot", settings=settings)
        mapped = load_stores(config, open_data(config))["train"]
        found["sum"] = int(sum(part.long().sum() for part in mapped.images.split(1024)))
        parallel.wait()  # until all have read it
        found["mapping"] = mapping("train/images.npy")
        parallel.wait()
        before = own_memory()
        held = HeldStore(mapped)
        found["held"], found["grown"] = held.held.nbytes, own_memory() - before
        found["bytes"], found["batches"] = mapped.images.nbytes, batches(held)
        found["losses"] = [losses([*settings, f"images={kind}"]) for kind in ("whole", "sharded")]
        Path(f"{out}-{parallel.rank()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
