"""What the processes of one job know of each other beside their tensors: who has said what, and which run the job has begun.

It lies in the store of torchrun, which outlasts the processes where torchrun starts them again (`--max-restarts`). With one
process everything in here does nothing.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from fewshot_mcl.resources import several

LOST = (
    "another process of this job has ended, or cannot be reached any more: what it said itself, or torchrun, says why"
)
_RUN = "fewshot-mcl run"
_store: dist.Store | None = None


def join(backend: str, timeout: timedelta) -> None:
    """Make the process group of this job, of those processes that were started together with this one."""
    global _store
    _store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    # In a name space of their own, processes that are started again do not read the addresses of those before them.
    store = dist.PrefixStore(_start(), _store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def _start() -> str:
    return f"fewshot-mcl start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def first_to_say(text: str) -> bool:
    """Whether no other process has said that, which all may have to say."""
    if _store is None:
        return True
    try:
        return _store.add(f"{_start()} said {text}", 1) == 1
    except RuntimeError:  # the store has ended with the process that held it
        return True


def note_begun(path: Path) -> None:
    """Remember that this job has made the run in `path`."""
    if _store is not None:
        _store.set(_RUN, str(path))


def begun() -> Path | None:
    """The run that this job has made before torchrun started its processes again."""
    if _store is None or not _store.check([_RUN]):
        return None
    return Path(_store.get(_RUN).decode())


def lost(error: Exception) -> bool:
    """Whether an error is of the connection to other processes."""
    text = str(error)
    return several() and "memory" not in text and (isinstance(error, dist.DistError) or "gloo" in text)
