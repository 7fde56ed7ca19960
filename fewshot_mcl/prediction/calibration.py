"""How far a network's answers may be believed, measured on episodes of validation classes; the test split is never looked at.

`calibrate` returns a dictionary fit for JSON, of the form of `Calibration`; a model's card has it under "calibration".
Every episode has some classes more than it is asked about, as far as there are. Queries of the classes asked about give
the temperature of the softmax; those of the classes left out are what "none of these" is for, and give its threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl import draws
from fewshot_mcl.data.episodes import EpisodeSampler
from fewshot_mcl.errors import UserError
from fewshot_mcl.objectives import functional as F

WAYS, SHOTS, QUERY = (2, 3, 5, 10, 20, 50), (1, 2, 3, 5, 10, 20), 5
EPISODES, BATCH, LEFT_OUT = 200, 8, 5
RATES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # of false acceptance
FITTED = 5_000  # queries: more change no digit of a temperature that matters
COOLEST, HOTTEST = 1e-4, 1e6  # temperatures


def distances(logits: Tensor, metric: str, scale: float) -> Tensor:
    """What `functional.prototypical_logits` made logits of: squared distances, or one less the cosine."""
    return 1 - logits / scale if metric == "cosine" else -logits


def relative_score(distances: Tensor) -> Tensor:
    """(..., W) distances to the prototypes -> (...) how much nearer the nearest is than all are in the mean: 0 to 1."""
    return 1 - distances.amin(-1) / distances.mean(-1).clamp_min(1e-12)


def distance_score(distances: Tensor) -> Tensor:
    """(..., W) distances to the prototypes -> (...) the negative of the least."""
    return -distances.amin(-1)


SCORES = {"distance": distance_score, "relative": relative_score}  # the higher, the more a query is like a known class
# On a small Conv4 trained on glyphs, 5-way 1-shot and 5-shot, the two tell classes left out about as well (AUROC on the
# validation split 0.67 and 0.76 for the distance, 0.65 and 0.74 for the relative score). But a distance has the scale of the
# images it was measured on: on clip art, a threshold chosen for 5 % accepted 45 and 39 % of the images of other classes
# by the distance, 32 and 13 % by the relative score. Features of length 1 have one scale whatever the images: there the
# distance tells better (ImageNet's on drawings, 3-way 5-shot: 0.82 against 0.74).
SCORE = "relative"


class Cell(BaseModel):
    """What was measured on episodes of one shape.

    Attributes:
        way, shot, query, episodes: classes asked about, support images and queries of each, and how many episodes.
        temperature: by which logits are divided; the one with the least negative log-likelihood.
        nll, nll_uncalibrated: mean negative log-likelihood in nats, with that temperature and with 1.
        accuracy: of the nearest prototype.
        auroc: by score, of telling the queries from those of classes left out; empty where none could be.
        thresholds: by rate of `Calibration.rates`: a query below is "none of these"; empty as above.
        false_rejects: by rate, the share of queries of the classes asked about that are below.
    """

    model_config = ConfigDict(frozen=True)

    way: int = Field(ge=2)
    shot: int = Field(ge=1)
    query: int = Field(ge=1)
    episodes: int = Field(ge=1)
    temperature: FiniteFloat = Field(gt=0)
    nll: FiniteFloat
    nll_uncalibrated: FiniteFloat
    accuracy: FiniteFloat
    auroc: dict[str, FiniteFloat] = {}
    thresholds: tuple[FiniteFloat, ...] = ()
    false_rejects: tuple[FiniteFloat, ...] = ()


class Calibration(BaseModel):
    """The measurements of a network.

    Attributes:
        source: where the validation images come from, in words.
        classes, images, seed: of the validation split, and of the episodes.
        score: of `SCORES`, that thresholds are of.
        rates: of false acceptance, rising.
        cells: one for each shape of episode.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    split: str = "val"
    classes: int
    images: int
    seed: int
    score: str = SCORE
    rates: tuple[FiniteFloat, ...] = RATES
    cells: tuple[Cell, ...] = Field(min_length=1)

    @classmethod
    def read(cls, content: Any) -> Calibration | None:
        """That of a card; None where it has none of this form."""
        try:
            found = cls.model_validate(content)
        except ValueError:
            return None
        lengths = {len(row) for cell in found.cells for row in (cell.thresholds, cell.false_rejects)}
        return found if found.score in SCORES and lengths <= {0, len(found.rates)} else None

    def nearest(self, way: int, shot: float) -> Cell:
        """The cell whose shape is nearest, by ratio of ways and of shots."""
        return min(self.cells, key=lambda cell: abs(math.log(cell.way / way)) + abs(math.log(cell.shot / shot)))

    def threshold(self, cell: Cell, false_accept: float) -> tuple[float, float] | None:
        """(threshold, false-reject rate) at a rate of false acceptance; between rates of `rates` both are interpolated.

        None where none was measured.

        Raises:
            UserError: for a rate outside `rates`.
        """
        if not self.rates[0] <= false_accept <= self.rates[-1]:
            raise UserError(
                f"--false-accept {false_accept:g}: thresholds were measured from {self.rates[0]:g} to {self.rates[-1]:g}."
            )
        if not cell.thresholds:
            return None
        found = (float(np.interp(false_accept, self.rates, row)) for row in (cell.thresholds, cell.false_rejects))
        return next(found), next(found)


def effective_shot(counts: Sequence[int]) -> float:
    """One number of shots for classes of unequal size: the harmonic mean, since a mean's error goes with 1 / images."""
    return len(counts) / sum(1 / count for count in counts)


@torch.no_grad()
def calibrate(
    features: Tensor,
    labels: Tensor,
    *,
    metric: str = "euclidean",
    scale: float = 1.0,
    source: str = "",
    seed: int = 0,
    score: str = SCORE,
) -> dict[str, Any] | None:
    """Measure a network on episodes of validation classes.

    Args:
        features: (N, D) of the validation images, as prototypes are made of them: centred and normalised where the card
            says so.
        labels: (N,) of their classes, none of which the network has seen in training.
        metric, scale: see `functional.prototypical_logits`.
        source: where the images come from, in words.
        seed: of the episodes.
        score: of `SCORES`, that thresholds are of.

    Returns:
        A `Calibration` as a dictionary fit for JSON; None where the classes are too few or too small, or features are not
            finite.
    """
    features, labels = features.float().cpu(), labels.cpu()
    sizes = torch.unique(labels, return_counts=True)[1]
    classes, smallest = len(sizes), int(sizes.min()) if len(sizes) else 0
    if classes < 2 or smallest < 2 or not bool(features.isfinite().all()):
        return None
    cells = [
        _cell(features, labels, way, shot, min(QUERY, smallest - shot), metric, scale, seed, score)
        for way in [way for way in WAYS if way < classes] or [2]
        for shot in SHOTS
        if shot < smallest
    ]
    measured = Calibration(
        source=source, classes=classes, images=len(labels), seed=seed, cells=tuple(cells), score=score
    ).model_dump(mode="json")
    return dict(_short(measured))


def _short(value: Any) -> Any:
    """The same with numbers of six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list) else value


def _cell(
    features: Tensor, labels: Tensor, way: int, shot: int, query: int, metric: str, scale: float, seed: int, score: str
) -> Cell:
    left_out = min(LEFT_OUT, len(labels.unique()) - way)
    sampler = EpisodeSampler(
        labels, way=way + left_out, shot=shot, query=query, seed=draws.key(seed, "calibration", way, shot)
    )
    episodes, parts = sampler.sample(EPISODES), []
    for start in range(0, EPISODES, BATCH):
        part = episodes[start : start + BATCH]
        centres = F.prototypes(features[part.support[:, :way]])
        parts.append(F.prototypical_logits(features[part.query].flatten(1, 2), centres, metric, scale))
    logits = torch.cat(parts)  # (E, (way + left_out) * query, way), class by class
    known, unknown = logits.split([way * query, left_out * query], dim=1)
    targets = torch.arange(way).repeat_interleave(query).repeat(EPISODES)
    flat = known.flatten(0, 1)
    temperature = best_temperature(flat[:FITTED], targets[:FITTED])
    return Cell(
        way=way, shot=shot, query=query, episodes=EPISODES, temperature=temperature,
        nll=float(nnf.cross_entropy(flat / temperature, targets)),
        nll_uncalibrated=float(nnf.cross_entropy(flat, targets)),
        accuracy=float((flat.argmax(1) == targets).double().mean()),
        **(_apart(distances(known, metric, scale), distances(unknown, metric, scale), score) if left_out else {}),
    )  # fmt: skip


def best_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature at which the softmax of (B, W) logits has the least negative log-likelihood at (B,) targets."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:  # convex in 1 / temperature, so there is one minimum
        return float(nnf.cross_entropy(logits / math.exp(log_temperature), targets))

    bounds = (math.log(COOLEST), math.log(HOTTEST))
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x))


def _apart(known: Tensor, unknown: Tensor, chosen: str) -> dict[str, Any]:
    """How well scores tell queries of known classes (..., W) from those of none, and the thresholds that rates ask for."""
    pairs = {
        name: [score(part).flatten().double().numpy() for part in (known, unknown)] for name, score in SCORES.items()
    }
    accepted, refused = pairs[chosen]
    thresholds = np.quantile(refused, 1 - np.array(RATES))
    return {
        "auroc": {name: auroc(*pair) for name, pair in pairs.items()},
        "thresholds": tuple(thresholds.tolist()),
        "false_rejects": tuple((accepted[:, None] < thresholds).mean(0).tolist()),
    }


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that one of `positive` is above one of `negative`, ties counted as half (Mann and Whitney)."""
    _, group, counts = np.unique(np.concatenate([positive, negative]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]  # from 1, equal values in their middle
    least = len(positive) * (len(positive) + 1) / 2
    return float((ranks[: len(positive)].sum() - least) / (len(positive) * len(negative)))
