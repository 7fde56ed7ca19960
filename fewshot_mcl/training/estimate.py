"""What a run will take, from a few steps and a part of a validation in a process of its own. Nothing is written."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from fewshot_mcl.config import Config
from fewshot_mcl.data.sources import training_only
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.classification import Ensembles, Images, classify_images
from fewshot_mcl.evaluation.fewshot import embed, evaluate_peers
from fewshot_mcl.evaluation.restore import pick_device
from fewshot_mcl.networks.counting import count
from fewshot_mcl.objectives.contrast_plan import ContrastPlan
from fewshot_mcl.objectives.rkd import RkdD
from fewshot_mcl.runs import Tensors
from fewshot_mcl.training import budget, parts
from fewshot_mcl.training.costs import BANDWIDTH, Several, costs
from fewshot_mcl.training.episodic import FINAL_EPISODES, EpisodicTask
from fewshot_mcl.training.loop import Trainer
from fewshot_mcl.training.session import build_task
from fewshot_mcl.training.supervised import SupervisedTask

WARM_UP, TIMED, SECONDS = 2, 3, 6.0  # steps; steps at least, and for so long: a machine is faster or slower for seconds
PART = 512  # images of a validation that are timed
EPISODES = 1000  # that the time of several processes is said of


@dataclass(frozen=True)
class Estimate:
    """Of one run.

    Attributes:
        parameters, multiply_adds: of all peers, the latter of one image's forward.
        steps, validation, saving: seconds of all of them together; their sum is what a run prints at its end.
        closing: seconds of the last validation.
        memory: bytes of the process at its peak.
        gpu_memory: bytes on the GPU at the peak; None without one.
        disk: bytes of the run directory at its largest.
        contrast: how the method's contrast of a step is computed; None for a method without one.
        several: what it would take with several processes; None where that was not asked for.
    """

    parameters: int
    multiply_adds: int
    steps: float
    validation: float
    saving: float
    closing: float
    memory: int
    gpu_memory: int | None
    disk: int
    contrast: ContrastPlan | None
    several: Several | None = None

    @property
    def seconds(self) -> float:
        """Of training: what a run says at its end."""
        return self.steps + self.validation + self.saving


def estimate(config: Config, out: Path | None = None, processes: int = 1, bandwidth: float = BANDWIDTH) -> Estimate:
    """Time a part of a run that would be written to `out`. What it allocates is gone with the process it runs in.

    Args:
        config: of the run.
        out: its directory.
        processes: what as many would take is estimated, too.
        bandwidth: of the link of each of them, in GB/s.

    Raises:
        UserError: where the run could not start, or would not fit.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            answer = pool.submit(measure, config, out, processes, bandwidth).result()
        except BrokenProcessPool as error:
            raise UserError(
                "the timed steps were ended by the system, perhaps for want of memory: use fewer peers."
            ) from error
    if isinstance(answer, str):  # an exception of ours would come back without its class
        raise UserError(answer)
    return answer


def measure(
    config: Config, out: Path | None = None, processes: int = 1, bandwidth: float = BANDWIDTH
) -> Estimate | str:
    """`estimate` in this process; what is wrong as text."""
    try:
        with training_only():
            return _measure(config, out, processes, bandwidth)
    except UserError as error:
        return str(error)


def _measure(config: Config, out: Path | None, processes: int, bandwidth: float) -> Estimate:
    device = pick_device(config.device)
    missing = config.teacher is not None and not (Path(config.teacher) / "model.json").exists()
    task, _, _ = build_task(config, device, with_teacher=not missing)
    budget.require_disk(task, out)
    if task.objective.needs_teacher and missing:  # it is not trained yet
        stand_in_teacher(task)
    counts = count(task.peers, task.size, task.train.shape[0])
    trainer = Trainer(task, config, cast(Any, Unwritten()), cast(Any, None))  # no display is touched by what follows
    step = trainer.time_steps(WARM_UP, TIMED, SECONDS)
    seen = budget.validations(task.plan)
    validation = _validation_seconds(task)
    found = Estimate(
        counts.parameters,
        counts.multiply_adds,
        steps=step * task.plan.steps,
        validation=validation * seen,
        saving=_seconds(trainer.save) * budget.saves(task.plan),
        closing=_closing_seconds(task, validation),
        memory=_peak_memory(),
        gpu_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        disk=budget.disk_bytes(task),
        contrast=task.objective.plan(task.images_per_step),
    )
    return found if processes == 1 else replace(found, several=_several(task, processes, bandwidth))


def _several(task: EpisodicTask | SupervisedTask, processes: int, bandwidth: float) -> Several:
    """What N processes would take; the task cannot be used after that."""
    steps, unit = (
        (task.batches, "an epoch") if isinstance(task, SupervisedTask) else (EPISODES, f"{EPISODES:,} episodes")
    )
    facts, measured = parts.measured(task, processes)
    return Several(processes, bandwidth, steps, unit, costs(facts, measured, processes, bandwidth))


def stand_in_teacher(task: EpisodicTask | SupervisedTask) -> None:
    """Give a task whose method needs a teacher one that knows nothing, at no cost."""
    width, device = task.peers.feature_dim, task.device
    cast(RkdD, task.objective).set_teacher(lambda indices: torch.randn(len(indices), width, device=device))


class Unwritten:
    """Stands in for a run: a checkpoint is hashed as in writing and in reading, but not written."""

    def save_checkpoint(self, name: str, tensors: Tensors, state: dict[str, Any]) -> None:
        for value in tensors.values():
            stored = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            for _ in range(2):  # written and read back
                hashlib.sha256(stored.data)


def _seconds(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _validation_seconds(task: EpisodicTask | SupervisedTask) -> float:
    """Of one validation, from a part of its images."""
    if isinstance(task, SupervisedTask):
        return _classifying_seconds(task, task.val, len(task.val)) if task.val else 0.0
    store = task.val
    part = ImageStore(store.images[:PART], store.labels[:PART], store.class_names)
    embed(task.peers, part, task.mean, task.std)
    seconds = _seconds(lambda: embed(task.peers, part, task.mean, task.std)) * len(store) / len(part)
    return seconds + _episode_seconds(task, embed(task.peers, part, task.mean, task.std))


def _episode_seconds(task: EpisodicTask, features: torch.Tensor) -> float:
    """Of the validation episodes, given (M, n, D) features of a part of the images."""
    whole = torch.cat([features.clone() for _ in range(math.ceil(len(task.val) / features.shape[1]))], 1)
    return _seconds(lambda: evaluate_peers(whole, task.val_episodes, metric=task.config.metric))


def _classifying_seconds(task: SupervisedTask, images: Images, number: int) -> float:
    """Of classifying `number` images, from a part of `images`."""
    part = replace(images, rows=images.rows[:PART])
    ensembles: Ensembles = {"ensemble": task.objective.ensemble}
    task.objective.eval()
    classify_images(task.peers, ensembles, part)
    return _seconds(lambda: classify_images(task.peers, ensembles, part)) * number / len(part)


def _closing_seconds(task: EpisodicTask | SupervisedTask, validation: float) -> float:
    """Of the last validation. (What a test takes is not known: nothing here may open its images.)"""
    if isinstance(task, EpisodicTask):
        return validation * max(1, FINAL_EPISODES / task.config.val_episodes)
    return validation


def _peak_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
