"""The formulas, as pure functions of tensors. Equation numbers are those of the MCL-OKD paper.

Peers come first in every shape: logits (M, B, C), features (M, B, D).
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl.objectives.multi_view import multi_view_contrast, multi_view_contrast_exact
from fewshot_mcl.objectives.relations import rkd_angle, rkd_distance

__all__ = [
    "cross_entropy",
    "distillation",
    "multi_view_contrast",
    "multi_view_contrast_exact",
    "prototypes",
    "prototypical_logits",
    "rampup",
    "rkd_angle",
    "rkd_distance",
]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Eq. 2: logits (M, B, C), targets (B,) -> (M,) mean over the batch of -log softmax at the target."""
    peers, batch, classes = logits.shape
    losses = nnf.cross_entropy(logits.reshape(-1, classes), targets.repeat(peers), reduction="none")
    return losses.view(peers, batch).mean(1)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Eq. 5 times T^2: KL(teacher || student) of logits (..., B, C) softened by T = `temperature`, averaged over B.

    Returns (...). The gradient goes into both arguments; detach the teacher to stop it.
    """
    log_p = nnf.log_softmax(student / temperature, -1)
    log_q = nnf.log_softmax(teacher / temperature, -1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1).mean(-1)


def rampup(epoch: float, length: int) -> float:
    """Weight exp(-5 (1 - e/length)^2) that grows from 0.0067 to 1 over `length` epochs counted from 0; 1 where `length` is 0."""
    return math.exp(-5 * (1 - min(epoch, length) / length) ** 2) if length else 1.0


def prototypes(support: Tensor) -> Tensor:
    """Class means: support features (..., way, shot, D) -> (..., way, D)."""
    return support.mean(-2)


def prototypical_logits(query: Tensor, centres: Tensor, metric: str = "euclidean", scale: float = 1.0) -> Tensor:
    """Episode logits of prototypical networks (Snell et al. 2017, eq. 2).

    Args:
        query: (..., Q, D) features.
        centres: (..., way, D) prototypes.
        metric: "euclidean" gives -||q - c||^2, "cosine" gives `scale` times the cosine.
        scale: of the cosine.

    Returns:
        (..., Q, way) logits.
    """
    if metric == "cosine":
        return scale * nnf.normalize(query, dim=-1) @ nnf.normalize(centres, dim=-1).mT
    if metric != "euclidean":
        raise ValueError(f"metric must be 'euclidean' or 'cosine', not '{metric}'")
    # Distances do not change when both sides move: around the centres' mean, the expansion below loses no digits to cancellation.
    origin = centres.mean(-2, keepdim=True)
    query, centres = query - origin, centres - origin
    squares = query.square().sum(-1, keepdim=True) + centres.square().sum(-1).unsqueeze(-2)
    return 2 * query @ centres.mT - squares
