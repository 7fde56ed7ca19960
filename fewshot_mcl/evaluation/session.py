"""`fewshot-mcl evaluate`: a run's networks on episodes of a split, with the protocol beside every figure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fewshot_mcl.config import FewShotConfig
from fewshot_mcl.data.episodes import Episodes, EpisodeSampler
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import open_source
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.evaluation.fewshot import embed, evaluate_peers
from fewshot_mcl.evaluation.restore import deterministic, load_peers, pick_device, weights_notes
from fewshot_mcl.evaluation.statistics import Result
from fewshot_mcl.runs import Run

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPARED = 50  # episodes whose images are embedded in float32 as well
MOST_EPISODES = 1_000_000
PROTOCOLS = {"paper-text": (600, 15), "baseline-repo": (2000, 30)}  # episodes and queries a class: the sources disagree


@dataclass(frozen=True)
class Protocol:
    """What is measured: `shots` are evaluated one after another, each on `episodes` episodes of `split`."""

    way: int
    shots: tuple[int, ...]
    query: int
    episodes: int
    seed: int
    split: str = "test"


def preset(name: str) -> tuple[int, int]:
    """Episodes and queries a class of one of `PROTOCOLS`; a `UserError` where there is none of that name."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def evaluate_run(
    run: Run,
    protocol: Protocol,
    *,
    checkpoint: str = "best",
    data: str | None = None,
    root: Path | None = None,
    device: str = "auto",
    precision: str = "float32",
) -> dict[str, Any]:
    """Evaluate a run and keep the evaluation in its directory.

    Args:
        run: a run directory.
        protocol: the episodes.
        checkpoint: "best" (by validation) or "last".
        data, root: another data source than the run's own.
        device: where to compute.
        precision: of the networks. With "bfloat16" each entry has what that changes, on the first `COMPARED` episodes.

    Returns:
        What is saved: `results`, one entry for each shot and network (every peer and the ensemble), and what they have
            in common.

    Raises:
        UserError: if a class to be tested was a class of training, a class is too small, or a file is damaged.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    config, trained = run.config, run.data("train")
    assert isinstance(config, FewShotConfig)
    store, notes = _load(run, protocol.split, data, root)
    if store.split != "train":
        refuse_overlap(store, trained["classes"])
    by_shot = {shot: drawn(store, protocol, shot) for shot in protocol.shots}
    peers, state = load_peers(run, checkpoint, pick_device(device))
    place = next(peers.parameters()).device
    mean, std = (torch.tensor(trained[name], device=place) for name in ("mean", "std"))
    with deterministic(config):
        features = embed(peers, store, mean, std, precision=PRECISIONS[precision])
        measure = partial(evaluate_peers, metric=config.metric, scale=config.scale)
        results: list[dict[str, Any]] = []
        for shot, episodes in by_shot.items():
            found = measure(features, episodes)
            entries = {name: _entry(result, name, shot, episodes, protocol) for name, result in found.items()}
            if precision != "float32":
                some, part = _part(store, episodes[:COMPARED])
                exact = measure(embed(peers, part, mean, std), some)
                for name, entry in entries.items():
                    entry["change"] = _change(found[name], exact[name])
            results += entries.values()
    content = {
        "run": str(run.path), "method": config.method, "backbone": config.backbone, "peers": config.peers,
        "checkpoint": checkpoint, "checkpoint_episode": state["episode"], "data": store.source, "fingerprint": store.fingerprint,
        "image_size": store.shape[1], "resize": store.resize, "classes": store.num_classes, "images": len(store),
        "metric": config.metric, "interval": "95%: 1.96 s / sqrt(E) over episodes; ci95_t with Student's t", "unit": "fraction",
        "precision": precision, "deployed": f"peer {config.peers - 1}", "results": results,
        "notes": [*notes, *weights_notes(config), *run.notes],
    }  # fmt: skip
    return content | {"file": str(run.save_evaluation(content))}


def _load(run: Run, split: str, data: str | None, root: Path | None) -> tuple[ImageStore, tuple[str, ...]]:
    """The split to test, decoded as the training images were."""
    options = run.image_options
    source = open_source(*run.place(data, root), options)
    return source.load(split, options), source.notes


def refuse_overlap(store: ImageStore, training: list[str]) -> None:
    """Raise `UserError` where a class to be tested was one of training."""
    common = sorted(set(store.class_names) & set(training))
    if common:
        few = ", ".join(printable(name) for name in common[:5]) + (", ..." if len(common) > 5 else "")
        raise UserError(
            f"{len(common)} of {store.num_classes} classes to be tested were classes of training ({few}): this would not measure "
            "learning of new classes. Test on other classes."
        )


def drawn(store: ImageStore, protocol: Protocol, shot: int) -> Episodes:
    """The episodes of a protocol, with `shot` support images a class.

    Raises:
        UserError: where the protocol or the classes do not allow it.
    """
    if not 2 <= protocol.episodes <= MOST_EPISODES:
        raise UserError(
            f"an interval needs 2 to {MOST_EPISODES:,} episodes, not {protocol.episodes}: use --episodes 600."
        )
    if protocol.way < 2:
        raise UserError(f"{protocol.way}-way episodes leave nothing to choose from: use --way 2 or more.")
    sampler = EpisodeSampler(
        store.labels,
        way=protocol.way,
        shot=shot,
        query=protocol.query,
        seed=protocol.seed,
        class_names=store.class_names,
    )
    return sampler.sample(protocol.episodes)


def _part(store: ImageStore, episodes: Episodes) -> tuple[Episodes, ImageStore]:
    """Episodes, and the images that they hold and no others, numbered anew."""
    rows = torch.cat([episodes.support.flatten(), episodes.query.flatten()]).unique()
    support, query = (torch.searchsorted(rows, old) for old in (episodes.support, episodes.query))
    return Episodes(episodes.classes, support, query), ImageStore(
        store.images[rows], store.labels[rows], store.class_names
    )


def _change(found: Result, exact: Result) -> dict[str, Any]:
    """What another precision than float32 changes: the mean of paired differences, over the episodes of `exact`."""
    difference = Result(found.accuracies[: exact.episodes]).minus(exact)
    return {
        "episodes": exact.episodes, "differing": int((difference.accuracies != 0).sum()), "mean": difference.mean,
        "ci95": difference.ci95,
    }  # fmt: skip


def _entry(result: Result, network: str, shot: int, episodes: Episodes, protocol: Protocol) -> dict[str, Any]:
    return {
        "way": protocol.way, "shot": shot, "query": protocol.query, "episodes": result.episodes, "seed": protocol.seed,
        "mean": result.mean, "ci95": result.ci95, "std": result.std, "network": network, "split": protocol.split,
        "ci95_t": result.ci95_t, "episode_list": episodes.digest, "accuracies": result.accuracies.tolist(),
    }  # fmt: skip
