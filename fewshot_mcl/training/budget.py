"""What a run must have room for, by arithmetic: what does not fit is refused before anything of it is allocated."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fewshot_mcl import parallel
from fewshot_mcl.config import ClassifyConfig, Config
from fewshot_mcl.data.store import ImageStore, in_bytes, memory_bytes
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.restore import build_peers
from fewshot_mcl.spread import whole_state
from fewshot_mcl.training.loop import Plan

if TYPE_CHECKING:
    from fewshot_mcl.training.episodic import EpisodicTask
    from fewshot_mcl.training.supervised import SupervisedTask

FLOAT = 4  # bytes
METRICS_ROW = 400  # bytes


def validations(plan: Plan) -> int:
    """In a whole run."""
    return math.ceil(plan.steps / plan.val_every)


def saves(plan: Plan) -> int:
    """Checkpoints "last" in a whole run."""
    often, rare = plan.steps // plan.save_every, validations(plan)
    return often + rare - plan.steps // math.lcm(plan.save_every, plan.val_every)


def state_factor(optimizer: torch.optim.Optimizer) -> int:
    """Numbers that an optimizer keeps for each parameter."""
    if isinstance(optimizer, torch.optim.Adam):
        return 2
    return int(optimizer.defaults.get("momentum", 0) > 0)


def _bytes(module: nn.Module) -> int:
    """Of its state, of which other processes may hold a part."""
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in whole_state(module).values())


def disk_bytes(task: EpisodicTask | SupervisedTask) -> int:
    """Of the run directory at its largest: a checkpoint and the one before it are kept until the next is written."""
    modules, best = task.modules(), _bytes(task.candidate())
    parameters = list(modules.parameters())
    learned = sum(p.nbytes for p in parameters)
    last = _bytes(modules) + learned * state_factor(task.optimizer(parameters))
    kept = validations(task.plan) * best if task.plan.keep_all else 0
    model = _bytes(task.peers.deployed())
    return 3 * last + 2 * best + kept + model + METRICS_ROW * (task.plan.steps // task.plan.log_every + 1)


def require_disk(task: EpisodicTask | SupervisedTask, out: Path | None) -> None:
    """Raise `UserError` where the disk has no room for a run in `out` (None: under runs/)."""
    needed, place = disk_bytes(task), (out or Path("runs")).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed <= free:
        return
    kept = " or --set report=last, which keeps no network of every validation" if task.plan.keep_all else ""
    raise UserError(
        f"not enough disk: the run directory takes up to {in_bytes(needed)}, and {place} has {in_bytes(free)} free. Choose "
        f"another disk with --out DIR{kept}, fewer --peers or a smaller --backbone."
    )


def require_memory(config: Config, store: ImageStore, device: torch.device) -> None:
    """Raise `UserError` where what training keeps for a run on `store` cannot fit; called before it is allocated.

    Counted are parameters, gradients, optimizer, memory banks, and the copy of them that becomes a checkpoint: not the
    activations of a step, which only a step can tell (`train --dry-run`).
    """
    needed, available = _fixed_bytes(config, store), available_memory(device)
    if needed <= available:
        return
    raise UserError(
        f"not enough memory: parameters, gradients, optimizer and memory banks take {in_bytes(needed)}, and "
        f"{in_bytes(available)} is available on {device}. {_what_fits(config, store, available)}"
    )


def _what_fits(config: Config, store: ImageStore, available: int) -> str:
    for peers in range(config.peers - 1, 1, -1):
        if _fixed_bytes(config.model_copy(update={"peers": peers}), store) <= available:
            return f"It fits with --peers {peers}."
    width = config.objective.get("embedding_dim", 1)
    while width > 1:
        width //= 2
        objective = config.objective | {"embedding_dim": width}
        if _fixed_bytes(config.model_copy(update={"objective": objective}), store) <= available:
            return f"It fits with --set objective.embedding_dim={width}."
    return "Use a smaller --backbone or --image-size, --method baseline, or fewer images."


def _fixed_bytes(config: Config, store: ImageStore) -> int:
    with torch.device("meta"):  # shapes only
        peers = build_peers(config, store.shape[0], store.shape[1], store.num_classes, pretrained=False)
    width, rows = config.objective.get("embedding_dim", 0) if config.objective.get("beta") else 0, len(store)
    if config.objective.get("banks") == "sharded":
        rows = math.ceil(rows / parallel.world())
    heads = config.peers * width * peers.feature_dim * FLOAT
    learned = sum(p.nbytes for p in peers.own_parameters()) + heads
    banks = config.peers * rows * width * FLOAT
    optimizer = learned * (2 if not isinstance(config, ClassifyConfig) else int(config.momentum > 0))
    return 2 * learned + optimizer + banks  # parameters and gradients; a checkpoint is written from their own memory


def available_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate on a device: of the machine, its container's limit, its own limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_limits())


def _limits() -> Iterator[int]:
    yield memory_bytes()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
        yield max(0, limit - pages * resource.getpagesize())
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            stat = (group / limit_file).with_name("memory.stat").read_text().split()
            files = sum(
                int(stat[stat.index(name) + 1]) for name in ("active_file", "inactive_file")
            )  # given up at need
            yield max(0, int((group / limit_file).read_text()) - int((group / used_file).read_text()) + files)
