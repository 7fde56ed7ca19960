"""What a report looks at: a run, its images, and what every peer makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot_mcl.config import FewShotConfig
from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.data.sources import open_source
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation.fewshot import embed
from fewshot_mcl.evaluation.restore import deterministic, load_peers, pick_device, weights_notes
from fewshot_mcl.evaluation.session import Protocol, drawn, refuse_overlap
from fewshot_mcl.report.duplicates import Duplicates, duplicates
from fewshot_mcl.runs import Run


@dataclass(frozen=True)
class Material:
    """A few-shot run and what its peers make of the images of its splits.

    Attributes:
        run: the run directory.
        config: its configuration.
        protocol: of `episodes`; its first shot is theirs.
        stores: split -> images; "test" holds the classes that the report measures.
        features: split -> (M, N, D) float32 on the processor, one row an image of that store, of every peer.
        episodes: of the split `protocol.split`.
        state: of the checkpoint that was loaded.
        notes: to be said on the page.
    """

    run: Run
    config: FewShotConfig
    protocol: Protocol
    stores: dict[str, ImageStore]
    features: dict[str, Tensor]
    episodes: Episodes
    state: dict[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def store(self) -> ImageStore:
        """The images that are measured."""
        return self.stores[self.protocol.split]

    @property
    def measured(self) -> Tensor:
        """Their features, (M, N, D)."""
        return self.features[self.protocol.split]

    @cached_property
    def duplicates(self) -> Duplicates:
        """Images of all splits that are there twice, or nearly."""
        return duplicates(self.stores)

    @property
    def networks(self) -> list[str]:
        """What the peers are called: "peer 0", ..., the last of which is deployed."""
        return [f"peer {m}" for m in range(self.config.peers)]


def gather(
    run: Run,
    protocol: Protocol,
    *,
    checkpoint: str = "best",
    data: str | None = None,
    root: Path | None = None,
    device: str = "auto",
) -> Material:
    """Load a few-shot run, its images, and embed those of every split with all its peers.

    Args:
        run: a run directory.
        protocol: the episodes; of its shots the first.
        checkpoint: "best" (by validation) or "last".
        data, root: another data source than the run's own, of which only the measured split is looked at.
        device: where to compute.

    Raises:
        UserError: as for `evaluation.session.evaluate_run`.
    """
    config, trained = run.config, run.data("train")
    assert isinstance(config, FewShotConfig)
    options = run.image_options
    source = open_source(*run.place(data, root), options)
    splits = source.splits if data is None else (protocol.split,)
    stores = {split: source.load(split, options) for split in dict.fromkeys((*splits, protocol.split))}
    if protocol.split != "train":
        refuse_overlap(stores[protocol.split], trained["classes"])
    peers, state = load_peers(run, checkpoint, pick_device(device))
    place = next(peers.parameters()).device
    mean, std = (torch.tensor(trained[name], device=place) for name in ("mean", "std"))
    with deterministic(config):
        features = {split: embed(peers, store, mean, std).cpu() for split, store in stores.items()}
    episodes = drawn(stores[protocol.split], protocol, protocol.shots[0])
    notes = (*source.notes, *weights_notes(config), *run.notes)
    return Material(run, config, protocol, stores, features, episodes, state, notes)
