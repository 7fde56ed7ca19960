"""DML: every peer learns from every other peer's predictions (Zhang et al., "Deep Mutual Learning", arXiv 1706.00384)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective, Setting


class Dml(Objective):
    """Cross entropies + T^2 KL(peer j || peer i), summed over ordered pairs i != j and divided by M - 1.

    Args:
        setting: what all objectives are told.
        T: temperature (2 in the comparison's published code; the original has 1).
        average_partners: divide by the M - 1 partners; the original's code sums, which for its two peers is the same.
        detach_teacher: whether a partner is a constant for the gradient.
    """

    defaults: ClassVar[dict[str, Any]] = {"kl_source": "aux"}

    def __init__(
        self,
        setting: Setting,
        *,
        T: float = 2.0,  # noqa: N803 (the field's name for it)
        average_partners: bool = True,
        detach_teacher: bool = True,
    ) -> None:
        super().__init__(setting)
        self.temperature, self.detach_teacher = T, detach_teacher
        self.kl_weight = 1 / (setting.num_peers - 1) if average_partners else 1.0

    def logit_terms(self, out: PeerOutputs, targets: Tensor, epoch: float) -> dict[str, Tensor]:
        assert out.logits is not None
        teachers = out.logits.detach() if self.detach_teacher else out.logits
        # All (M, M) pairs at once: a peer's divergence from itself is zero, and so is its gradient.
        pairs = F.distillation(out.logits[:, None], teachers[None], self.temperature)
        return super().logit_terms(out, targets, epoch) | {"kl": self.kl_weight * pairs.sum()}
