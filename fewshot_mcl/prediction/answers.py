"""What is answered about an image, and how right answers about labelled images were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fewshot_mcl.prediction.calibration import SCORES, Calibration, Cell, distances, effective_shot
from fewshot_mcl.prediction.classifier import Prototypes

NEAREST = 3  # support images that are named with an answer


@dataclass(frozen=True)
class Prediction:
    """The answer about one image.

    Attributes:
        path: of the image; "image 0", ... of pixels.
        label: its class, or None for "none of these".
        best, probability: the nearest class, whether or not it is the answer, and its probability among the classes.
        second, second_probability: the next.
        score: how much it is like a known class; below the threshold it is none of these.
        nearest: the support images that are most like it, the nearest first.
        same_as: a support image with the very same pixels, of which the answer says nothing; or "".
    """

    path: str
    label: str | None
    best: str
    probability: float
    second: str
    second_probability: float
    score: float
    nearest: tuple[str, ...]
    same_as: str = ""

    def record(self) -> dict[str, Any]:
        """The same, fit for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """Answers about many images.

    Attributes:
        predictions: of those that could be read, in their order.
        skipped: the others, each with the reason.
    """

    predictions: list[Prediction]
    skipped: list[str]


@dataclass(frozen=True)
class Share:
    """`count` of `total` images, which are taken as independent of each other."""

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95%, Wilson's: it holds for few images too, and near 0 and 1."""
        z, n, p = 1.96, self.total, self.value
        middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((middle + side * width) / (1 + z * z / n) for side in (-1, 1))
        return (low if self.count else 0.0), (high if self.count < n else 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({self.count} of {self.total}; 95% interval {100 * low:.1f} to {100 * high:.1f} %)"


@dataclass(frozen=True)
class Evaluation:
    """How right answers about labelled images were.

    Attributes:
        accuracy: images of the support's classes whose nearest class is their own.
        false_rejects: of the same images, those that were answered with "none of these"; None without a threshold.
        false_accepts: images of classes that are not in the support, and were given one; None where there are none.
        by_class: accuracy of each class.
        skipped: images that could not be read, each with the reason.
    """

    accuracy: Share
    false_rejects: Share | None
    false_accepts: Share | None
    by_class: dict[str, Share]
    skipped: list[str]


@dataclass(frozen=True)
class Rule:
    """How logits become an answer.

    Attributes:
        cell: the measurements that are nearest to the support in way and shot; None where there are none.
        temperature: that logits are divided by.
        score: of `SCORES`.
        threshold, false_reject: a score below is "none of these", and the share of images of the support's classes that is
            expected there; None where no threshold was measured.
        false_accept: the rate that the threshold was chosen for.
    """

    cell: Cell | None
    temperature: float
    score: str
    threshold: float | None
    false_reject: float | None
    false_accept: float

    @classmethod
    def choose(cls, calibration: Calibration | None, prototypes: Prototypes, false_accept: float) -> Rule:
        """The rule for a support set."""
        if calibration is None:
            return cls(None, 1.0, "relative", None, None, false_accept)
        counts = prototypes.counts.tolist()
        cell = calibration.nearest(len(counts), effective_shot(counts))
        threshold, false_reject = calibration.threshold(cell, false_accept) or (None, None)
        return cls(cell, cell.temperature, calibration.score, threshold, false_reject, false_accept)


@torch.no_grad()
def decide(
    prototypes: Prototypes,
    rule: Rule,
    features: torch.Tensor,
    paths: Sequence[str],
    names: Sequence[str],
    supports: Sequence[str],
) -> list[Prediction]:
    """Answers about (Q, D) features.

    Args:
        prototypes, rule: of the support.
        features: of the queries.
        paths: (Q,) what the queries are called.
        names: (W,) of the classes.
        supports: (N,) what the support images are called.
    """
    logits = prototypes.logits(features)
    values, order = (logits / rule.temperature).softmax(1).sort(stable=True, dim=1, descending=True)
    scores = SCORES[rule.score](distances(logits, prototypes.metric, prototypes.scale)).tolist()
    nearest = prototypes.nearest(features, NEAREST).tolist()
    found = []
    for path, value, places, score, near in zip(paths, values.tolist(), order.tolist(), scores, nearest):
        best, second = names[places[0]], names[places[1]]
        none = rule.threshold is not None and score < rule.threshold
        found.append(
            Prediction(
                path, None if none else best, best, value[0], second, value[1], score, tuple(supports[i] for i in near)
            )
        )
    return found
