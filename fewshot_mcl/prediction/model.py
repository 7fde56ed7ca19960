"""A network to answer with: a run's, or one that is packaged; how it looks at images, and how far it may be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl import models
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import open_source
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.evaluation.fewshot import embed
from fewshot_mcl.evaluation.restore import load_deployed, pick_device
from fewshot_mcl.networks.backbone import Backbone
from fewshot_mcl.prediction.calibration import Calibration, calibrate
from fewshot_mcl.prediction.photos import Item, Looks, name_of, show
from fewshot_mcl.progress import waiting
from fewshot_mcl.runs import Run

COSINE_SCALE = 10.0  # of a network that learned to classify, which has no scale of its own
PIECE = 64  # images that are decoded and looked at together

Progress = Callable[[int, int], None]  # is told how many of how many images are done


def silent(done: int, total: int) -> None:
    """A `Progress` that says nothing."""


@dataclass(frozen=True)
class Seen:
    """What a network makes of some images.

    Attributes:
        features: (n, D) of those that can be used.
        kept: (n,) their places among all.
        bad: by place, why the others cannot.
        digests: (n,) equal where two images are equal pixel by pixel, as the network sees them.
    """

    features: Tensor
    kept: list[int]
    bad: dict[int, str]
    digests: list[bytes]

    def reasons(self, items: Sequence[Item]) -> list[str]:
        """The bad ones by name, each with its reason."""
        return [f"{printable(name_of(items[i], i))} ({reason})" for i, reason in self.bad.items()]


@dataclass
class Model:
    """A network with its card.

    Attributes:
        name: "glyphs", "efficientnet-lite0", or the path of a run.
        chosen: whether it was asked for by name.
        network, card: see `evaluation.restore.load_deployed`; the network ends at its features.
        run: the run that it is of, if any.
        uncalibrated: why there is no calibration, once that is known.
    """

    name: str
    chosen: bool
    network: Backbone
    card: dict[str, Any]
    device: torch.device
    run: Run | None = None
    uncalibrated: str = field(default="", init=False)

    @classmethod
    def open(cls, name: str | Path | None, device: str = "auto") -> Model:
        """A packaged network or a finished run; None is the best network that is installed.

        Raises:
            UserError: where there is none of that name, or it is damaged.
        """
        place = pick_device(device)
        named = models.default_model() if name is None else str(name)
        run = None
        if named in models.MODELS:
            network, card = models.open_model(named)
        elif Path(named).exists() or len(Path(named).parts) > 1:
            run = Run.open(Path(named))
            network, card = load_deployed(run)
        else:
            raise unknown("model or run", printable(named), (*models.MODELS, "the path of a run"))
        network.classifier = None
        return cls(named, name is not None, network.eval().to(place), card, place, run)

    @property
    def metric(self) -> str:
        return str(self.card.get("metric", "cosine"))

    @property
    def scale(self) -> float:
        return float(self.card.get("scale", COSINE_SCALE))

    @property
    def looks(self) -> Looks:
        return Looks.of(self.card)

    @property
    def measures(self) -> bool:
        """Whether `calibration` has to be measured first: the card of a run of an older version has none."""
        return self.run is not None and "calibration" not in self.card and self.card.get("task") != "classify"

    def describe(self) -> str:
        """The network, and what it was trained on."""
        what = "the packaged model" if self.run is None else "the run"
        classes = self.card.get("classes") or ()
        on = f"{self.card.get('trained_on', 'unknown images')}" + (f" ({len(classes)} classes)" if classes else "")
        size, colour = self.looks.seen, "grey" if self.looks.channels == 1 else "colour"
        backbone = "" if self.name == self.card["backbone"] else f": {self.card['backbone']}"
        return f"{what} {self.name}{backbone}, trained on {on}; it sees {size}x{size} pixels in {colour}"

    def look(self, items: Sequence[Item], progress: Progress = silent) -> Seen:
        """Features of images, decoded piece by piece: their number is not limited by the memory."""
        parts: list[Tensor] = []
        kept: list[int] = []
        digests: list[bytes] = []
        bad: dict[int, str] = {}
        progress(0, len(items))
        for start in range(0, len(items), PIECE):
            images, reasons = show(items[start : start + PIECE], self.looks)
            good = [i for i in range(len(images)) if i not in reasons]
            bad |= {start + i: reason for i, reason in reasons.items()}
            kept += [start + i for i in good]
            digests += [images[i].tobytes() for i in good]
            if good:
                parts.append(self.features(images[good]))
            progress(min(start + PIECE, len(items)), len(items))
        features = torch.cat(parts) if parts else torch.empty(0, int(self.card.get("feature_dim", 0)))
        return Seen(features, kept, bad, digests)

    def features(self, images: np.ndarray | Tensor) -> Tensor:
        """(N, C, S, S) uint8 -> (N, D) float32 on the processor; centred and of length 1 where the card says so."""
        store = ImageStore(images, torch.zeros(len(images), dtype=torch.int64), ("",))
        mean, std = (torch.tensor(self.card[name], device=self.device) for name in ("mean", "std"))
        features = embed(self.network, store, mean, std).float().cpu()
        if centre := self.card.get("centre"):
            features = nnf.normalize(features - torch.tensor(centre), dim=1)
        return features

    def calibration(self) -> Calibration | None:
        """The card's; of a run without one it is measured on the run's own validation images, if they are still there.

        Where there is none, `uncalibrated` says why.
        """
        if "calibration" in self.card:
            found = Calibration.read(self.card["calibration"])
            known = "its validation classes are too few or too small to measure on"
            unknown_form = "its card has no calibration of a form that is known here"
            self.uncalibrated = "" if found else known if self.card["calibration"] is None else unknown_form
            return found
        if not self.measures:
            self.uncalibrated = "it was trained without validation classes of its own"
            return None
        assert self.run is not None
        try:
            with waiting(f"measuring on validation images how far answers of {self.name} may be believed"):
                self.card["calibration"] = self._measured(self.run)
        except UserError as error:
            self.uncalibrated = str(error)
            return None
        return self.calibration()

    def _measured(self, run: Run) -> dict[str, Any] | None:
        source = open_source(*run.place(None, None), run.image_options)
        store = source.load("val", run.image_options)
        if store.fingerprint != run.data("val").get("fingerprint"):
            raise UserError("its validation images are not what they were")
        return calibrate(
            self.features(store.images), store.labels, metric=self.metric, scale=self.scale, source=store.source
        )
