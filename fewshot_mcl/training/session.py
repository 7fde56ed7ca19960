"""From a configuration to a finished run: data, task, trainer, and the files that remain."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from fewshot_mcl import job, parallel
from fewshot_mcl.config import COMMANDS, ClassifyConfig, Config, FewShotConfig
from fewshot_mcl.data.held import HeldStore
from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import Source, open_source, training_only
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import Interrupted, UserError, WriteError
from fewshot_mcl.evaluation.fewshot import embed
from fewshot_mcl.evaluation.restore import deterministic, load_state, pick_device, weights_notes
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.prediction.calibration import calibrate
from fewshot_mcl.resources import program_together
from fewshot_mcl.runs import Run
from fewshot_mcl.training import budget
from fewshot_mcl.training.display import LineDisplay, LiveDisplay
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.loop import Trainer, deployed
from fewshot_mcl.training.stopping import Stopping
from fewshot_mcl.training.supervised import SupervisedTask

if TYPE_CHECKING:
    from fewshot_mcl.training.tune import Tuning

MAPPED = 1e-9  # share of the memory that images may take which are to stay where they are


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to say.

    Attributes:
        results: on the validation split with the network that is deployed; empty where there is none.
        kept: steps done when that network was kept.
        seconds: that training took.
    """

    run: Run
    results: dict[str, Result]
    kept: int
    seconds: float


def train(config: Config, out: Path | None, resume: bool, console: Console, tuning: Tuning | None = None) -> Outcome:
    """Train and save a run. The test split cannot be opened in here.

    Args:
        config: of the run; on `resume`, the run's own.
        out: the run directory; None makes one under runs/.
        resume: continue the run in `out`.
        console: where to say how it goes.
        tuning: what `config` was chosen by, to be kept with the run.

    Raises:
        UserError: for anything the user can mend.
    """
    parallel.together(lambda: _require_a_peer_each(config))
    with training_only(), deterministic(config), parallel.over(config.parallel):
        task, data, notes = parallel.together(lambda: build_task(config, pick_device(config.device)))
        if not resume:
            budget.require_disk(task, out)
        for split, each in data.items():
            parallel.same(each["fingerprint"], f"{split} images")
        run = _run(config, out, resume, data)
        with run.locked():
            if tuning:
                run.write_json("tuning.json", tuning.record())
            return _train(task, run, notes, resume, console)


def _require_a_peer_each(config: Config) -> None:
    """Raise `UserError` where peers are to be split over more processes than there are peers."""
    if config.parallel == "peers" and parallel.world() > config.peers:
        raise UserError(
            f"parallel = peers gives each process at least one peer, and there are {config.peers} for {parallel.world()} "
            f"processes: start no more than {config.peers}, or use --set parallel=data."
        )


def _run(config: Config, out: Path | None, resume: bool, data: dict[str, Any]) -> Run:
    """The run directory, which process 0 makes and the others follow."""

    def first() -> Run | None:
        if parallel.rank():
            return None
        if resume and out:
            return _open(out, data)
        run = Run.create(out, config, data)
        job.note_begun(run.path)
        return run

    run = parallel.together(first)
    path = parallel.told(str(run.path) if run else "")
    return run or Run.open(Path(path))


def _train(
    task: EpisodicTask | SupervisedTask, run: Run, notes: tuple[str, ...], resume: bool, console: Console
) -> Outcome:
    config, stopping = task.config, Stopping()
    if parallel.rank():  # process 0 speaks for all
        console = Console(file=io.StringIO())
    display = (LiveDisplay if console.is_terminal else LineDisplay)(
        console, task.plan.steps, task.where, config.peers, task.protocol()
    )
    trainer = Trainer(task, config, run, display, stopping)
    if resume:
        parallel.together(trainer.resume)
    finished = trainer.done == task.plan.steps and (run.path / "model.json").exists()
    if resume and not finished:
        run.note_command()
    _announce(console, _heading(task, run, (*notes, *run.notes), trainer.done))
    said = len(run.notes)
    try:
        with stopping:
            with display:
                trainer.train()
            stopping.all_saved()
            outcome = _finish(task, run, trainer.seconds, save=not finished)
            _announce(console, run.notes[said:])
            return outcome
    except KeyboardInterrupt:
        raise Interrupted(_left(run, trainer)) from None
    except Interrupted as stopped:
        raise Interrupted(_left(run, trainer), stopped.code) from None
    except WriteError as error:
        raise UserError(f"{error.what}: {_left(run, trainer)}") from error
    except RuntimeError as error:
        if not job.lost(error):
            raise
        raise UserError(f"{job.LOST}. This one {_left(run, trainer)}") from error


def open_data(config: Config) -> Source:
    """Where the images of a configuration come from; names are looked at, no image is decoded.

    Raises:
        UserError: where nothing usable is found.
    """
    root = Path(config.root) if config.root else None
    if isinstance(config, ClassifyConfig):
        return open_labelled(config.data, root, config.image_options, config.download)
    return open_source(config.data, root, config.image_options)


def build_task(
    config: Config, device: torch.device, with_teacher: bool = True
) -> tuple[EpisodicTask | SupervisedTask, dict[str, Any], tuple[str, ...]]:
    """The task of a configuration, what a run keeps of its data, and what is to be said of them.

    Raises:
        UserError: where data, method and network do not go together.
    """
    source = open_data(config)
    stores = load_stores(config, source)
    task = task_on(stores, config, device)
    if task.objective.needs_teacher and with_teacher:
        task.use_teacher()
    data = {split: describe(store) for split, store in stores.items()}
    data["train"] |= {"mean": task.mean.tolist(), "std": task.std.tolist(), "network_size": task.size}
    return task, data, (*source.notes, *weights_notes(config))


def load_stores(config: Config, source: Source) -> dict[str, ImageStore]:
    """The images that a configuration trains and validates on: "train", and "val" where there is such a split."""
    splits = ("train", "val") if isinstance(config, FewShotConfig) else [s for s in source.splits if s != "test"]
    if config.images == "whole" or parallel.world() == 1:
        return {split: source.load(split, config.image_options) for split in splits}
    mapped = replace(config.image_options, memory_share=MAPPED)
    rest = {split: source.load(split, config.image_options) for split in splits if split != "train"}
    return {"train": HeldStore(source.load("train", mapped)), **rest}


def task_on(stores: dict[str, ImageStore], config: Config, device: torch.device) -> EpisodicTask | SupervisedTask:
    """The task of a configuration on images that are loaded; a teacher is not yet.

    Raises:
        UserError: where data, method and network do not go together.
    """
    budget.require_memory(config, stores["train"], device)
    task: EpisodicTask | SupervisedTask
    if isinstance(config, FewShotConfig):
        task = EpisodicTask(config, stores["train"], stores["val"], device)
    else:
        assert isinstance(config, ClassifyConfig)
        task = SupervisedTask(config, stores["train"], stores.get("val"), device)
    if config.compile:
        task.peers.compile()
    return task


def _left(run: Run, trainer: Trainer) -> str:
    """What a run that was stopped leaves behind."""
    unit, done = trainer.config.unit, trainer.done
    again = f"{program_together()} {COMMANDS[trainer.config.task]} --out {shlex.quote(str(run.path))} --resume"
    if not trainer.saved:
        when = "val_every" if unit == "episode" else "save_every"
        return f"stopped after {unit} {done}, before the first checkpoint ({when}). Begin it again with: {again}"
    return f"stopped after {unit} {done}; the checkpoint of {unit} {trainer.saved} is safe. Continue with: {again}"


def describe(store: ImageStore) -> dict[str, Any]:
    """What a run keeps of the data it has seen."""
    channels, height, width = store.shape
    return {
        "source": store.source, "fingerprint": store.fingerprint, "images": len(store), "channels": channels,
        "image_size": [height, width], "resize": store.resize, "classes": list(store.class_names),
    }  # fmt: skip


def _open(path: Path, data: dict[str, Any]) -> Run:
    """The run at `path`, if it was trained on `data`."""
    run = Run.open(path)
    for split, now in data.items():
        if run.data(split).get("fingerprint") != now["fingerprint"]:
            raise UserError(
                f"the {split} images are not those that {path} was trained on (another fingerprint); nothing was changed. "
                "Put the images back as they were, or start a new run with another --out."
            )
    return run


def _heading(task: EpisodicTask | SupervisedTask, run: Run, notes: tuple[str, ...], done: int) -> list[str]:
    config, store, steps = task.config, task.train, task.plan.steps
    count = sum(p.numel() for p in task.peers.parameters())
    one = sum(p.numel() for p in task.peers.deployed().parameters())
    unit = config.unit
    remaining = f"{unit}s {done + 1} to {steps}" if done < steps else f"all {steps} {unit}s are done already"
    return [
        f"{config.method}: {config.peers} {config.backbone} peer{'s' * (config.peers > 1)}, {count:,} parameters to train, "
        f"{one:,} in the deployed network; seed {config.seed}, on {task.device}",
        f"{store.source}: {task.describe_data()}, {store.shape[2]}x{store.shape[1]}x{store.shape[0]}, {store.resize}",
        *notes,
        f"{remaining}: {task.describe_steps()}; run {run.path}",
    ]


def _announce(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(printable(line), soft_wrap=True, highlight=False, markup=False)


def _finish(task: EpisodicTask | SupervisedTask, run: Run, seconds: float, save: bool) -> Outcome:
    """Take the network that is deployed, see what it gives in validation and, on `save`, write it."""
    tensors, state = run.load_checkpoint(task.ships)
    candidate = task.candidate()
    own = candidate.state_dict()
    load_state(candidate, {name: value for name, value in tensors.items() if name in own}, str(run.path))
    results, kept = task.closing(), state[run.config.unit]
    if save and task.config.peers - 1 in task.peers.own:  # process 0 has it, and writes
        network = task.peers.deployed()
        if isinstance(task, EpisodicTask):
            network.classifier = None  # of the training classes, whose work is done
        run.save_model(network.state_dict(), _card(task, run, results, kept) | _calibration(task, network))
    return Outcome(run, results, kept, seconds)


def _calibration(task: EpisodicTask | SupervisedTask, network: Backbone) -> dict[str, Any]:
    """How far the deployed network's answers about new classes may be believed."""
    if not isinstance(task, EpisodicTask):
        return {}
    features = embed(network, task.val, task.mean, task.std)
    config, source = task.config, task.val.source
    return {
        "calibration": calibrate(features, task.val.labels, metric=config.metric, scale=config.scale, source=source)
    }


def _card(task: EpisodicTask | SupervisedTask, run: Run, results: dict[str, Result], kept: int) -> dict[str, Any]:
    config, store = task.config, task.train
    validation = {}
    if results:
        result = deployed(results)
        figures: dict[str, Any] = {"images" if config.task == "classify" else "episodes": result.episodes}
        figures |= {"mean": result.mean, "ci95": result.ci95, "std": result.std}
        validation = {"validation": {**task.card_protocol(), **figures, "split": "val"}}
    return {
        "task": config.task, "backbone": config.backbone, "in_channels": store.shape[0], "image_size": task.size,
        "stored_size": store.shape[1], "feature_dim": task.peers.feature_dim, "mean": task.mean.tolist(),
        "std": task.std.tolist(), "color": config.color, "resize": store.resize, "method": config.method,
        "peer": config.peers - 1, "seed": config.seed, config.unit: kept, "checkpoint": task.ships,
        "trained_on": store.source, "classes": list(store.class_names), **task.card(), **validation,
    }  # fmt: skip
