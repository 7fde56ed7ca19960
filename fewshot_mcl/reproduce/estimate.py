"""What a run will take, from a few timed steps in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, cast

import torch

from fewshot_mcl.config import Config
from fewshot_mcl.data.sources import training_only
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.restore import pick_device
from fewshot_mcl.networks.counting import count
from fewshot_mcl.objectives.rkd import RkdD

TIMED, WARM_UP = 3, 1  # steps


@dataclass(frozen=True)
class Estimate:
    """Of one run.

    Attributes:
        parameters, multiply_adds: of all peers, the latter of one image's forward.
        seconds: of training, without validation.
        memory: bytes at the peak, of the process or of the GPU.
    """

    parameters: int
    multiply_adds: int
    seconds: float
    memory: int


def estimate(config: Config) -> Estimate:
    """Time a few steps of a run. What they allocate is gone with the process they run in.

    Raises:
        UserError: where the run could not start.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            answer = pool.submit(_measure, config).result()
        except BrokenProcessPool as error:
            raise UserError(
                "the timed steps were ended by the system, perhaps for want of memory: use fewer peers."
            ) from error
    if isinstance(answer, str):  # an exception of ours would come back without its class
        raise UserError(answer)
    return answer


def _measure(config: Config) -> Estimate | str:
    from fewshot_mcl.training.loop import Trainer
    from fewshot_mcl.training.session import build_task

    device = pick_device(config.device)
    try:
        with training_only():
            task, _, _ = build_task(config, device, with_teacher=False)
    except UserError as error:
        return str(error)
    if task.objective.needs_teacher:  # it may not be trained yet; another network of its size costs as much
        width = task.peers.feature_dim
        cast(RkdD, task.objective).set_teacher(lambda indices: torch.randn(len(indices), width, device=device))
    counts = count(task.peers, task.size, task.train.shape[0])
    trainer = Trainer(task, config, cast(Any, None), cast(Any, None))  # whose run and display single steps do not touch
    seconds = trainer.time_steps(WARM_UP, TIMED)
    return Estimate(counts.parameters, counts.multiply_adds, seconds * task.plan.steps, _peak_memory(device))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
