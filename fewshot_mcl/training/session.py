"""From a configuration to a finished run: data, task, trainer, and the files that remain."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from fewshot_mcl.config import Config
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import open_source, training_only
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import Interrupted, UserError
from fewshot_mcl.evaluation.restore import load_state, pick_device, teacher_features
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.objectives.rkd import RkdD
from fewshot_mcl.resources import program
from fewshot_mcl.runs import Run, default_path
from fewshot_mcl.training.display import LineDisplay, LiveDisplay
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.loop import Trainer, deployed

FINAL_EPISODES = 600  # of the closing figure on the validation split


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to say: results on the validation split with the best checkpoint, and the time training took."""

    run: Run
    results: dict[str, Result]
    best_episode: int
    seconds: float


def train(config: Config, out: Path | None, resume: bool, console: Console) -> Outcome:
    """Train and save a run. The test split cannot be opened in here.

    Args:
        config: of the run; on `resume`, the run's own.
        out: the run directory; None makes one under runs/.
        resume: continue the run in `out`.
        console: where to say how it goes.

    Raises:
        UserError: for anything the user can mend.
    """
    with training_only():
        device = pick_device(config.device)
        stores, notes = _load(config)
        task = EpisodicTask(config, stores["train"], stores["val"], device)
        if task.objective.needs_teacher:
            cast(RkdD, task.objective).set_teacher(teacher_features(config, stores["train"], device))
        data = {split: describe(store) for split, store in stores.items()}
        data["train"] |= {"mean": task.mean.tolist(), "std": task.std.tolist()}
        run = _open(out, data) if resume and out else Run.create(out or default_path(config), config, data)
        protocol = f"val {config.val_way}-way {config.val_shot}-shot"
        display = (LiveDisplay if console.is_terminal else LineDisplay)(
            console, config.episodes, config.peers, protocol
        )
        trainer = Trainer(task, config, run, display)
        if resume:
            trainer.resume()
        finished = trainer.done == config.episodes and (run.path / "model.json").exists()
        if resume and not finished:
            run.note_command()
        _announce(console, config, run, task, notes, trainer.done)
        try:
            with display:
                trainer.train()
            return _finish(task, config, run, trainer.seconds, save=not finished)
        except KeyboardInterrupt:
            raise Interrupted(_left(run, trainer.done)) from None


def _left(run: Run, done: int) -> str:
    """What a run that was stopped leaves behind."""
    if not (run.path / "checkpoints" / "last.json").exists():
        return f"stopped after episode {done}, before the first checkpoint (val_every): {run.path} cannot be resumed."
    episode = run.read_json("checkpoints/last.json", "episode")["episode"]
    again = f"{program()} train --out {shlex.quote(str(run.path))} --resume"
    return f"stopped after episode {done}; the checkpoint of episode {episode} is safe. Continue with: {again}"


def _load(config: Config) -> tuple[dict[str, ImageStore], tuple[str, ...]]:
    root = Path(config.root) if config.root else None
    source = open_source(config.data, root, config.image_options)
    stores = {split: source.load(split, config.image_options) for split in ("train", "val")}
    return stores, source.notes


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


def _announce(
    console: Console, config: Config, run: Run, task: EpisodicTask, notes: tuple[str, ...], done: int
) -> None:
    store = task.train
    channels, height, width = store.shape
    count = sum(p.numel() for p in task.peers.parameters())
    one = sum(p.numel() for p in task.peers.deployed().parameters())
    lines = [
        f"{config.method}: {config.peers} {config.backbone} peer{'s' * (config.peers > 1)}, {count:,} parameters to train, "
        f"{one:,} in the deployed network; seed {config.seed}, on {task.device}",
        f"{store.source}: {store.num_classes} training classes ({len(store):,} images), {task.val.num_classes} validation "
        f"classes, {width}x{height}x{channels}, {store.resize}",
        *notes,
        f"{_remaining(done, config.episodes)}: {config.way}-way {config.shot}-shot, {config.query} queries a class; "
        f"run {run.path}",
    ]
    console.print("\n".join(map(printable, lines)), soft_wrap=True, highlight=False, markup=False)


def _remaining(done: int, episodes: int) -> str:
    return f"episodes {done + 1} to {episodes}" if done < episodes else f"all {episodes} episodes are done already"


def _finish(task: EpisodicTask, config: Config, run: Run, seconds: float, save: bool) -> Outcome:
    """Evaluate the best checkpoint on 600 validation episodes and, on `save`, write the deployed network."""
    tensors, state = run.load_checkpoint("best")
    load_state(task.peers, {name.removeprefix("peers."): value for name, value in tensors.items()}, str(run.path))
    results = task.evaluate(task.val_sampler.sample(FINAL_EPISODES, start=config.val_episodes))
    if save:
        network = task.peers.deployed()
        network.classifier = None
        run.save_model(network.state_dict(), _card(network, task, config, results, state["episode"]))
    return Outcome(run, results, state["episode"], seconds)


def _card(
    network: Backbone, task: EpisodicTask, config: Config, results: dict[str, Result], episode: int
) -> dict[str, Any]:
    result = deployed(results)
    return {
        "backbone": config.backbone, "in_channels": task.train.shape[0], "image_size": task.train.shape[1],
        "feature_dim": network.feature_dim, "mean": task.mean.tolist(), "std": task.std.tolist(),
        "color": config.color, "resize": task.train.resize, "metric": config.metric, "scale": config.scale,
        "method": config.method, "peer": config.peers - 1, "seed": config.seed, "episode": episode,
        "trained_on": task.train.source, "classes": list(task.train.class_names),
        "validation": {
            "way": config.val_way, "shot": config.val_shot, "query": config.val_query, "episodes": result.episodes,
            "mean": result.mean, "ci95": result.ci95, "std": result.std, "split": "val",
        },
    }  # fmt: skip
