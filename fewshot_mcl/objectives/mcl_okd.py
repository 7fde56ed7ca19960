"""MCL-OKD: labels, the multi-view contrast, and an ensemble of all peers that teaches the last one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Setting
from fewshot_mcl.objectives.mcl import Mcl


class MclOkd(Mcl):
    """Eq. 9: cross entropies + T^2 KL(mean of all peers' logits || last peer) + beta * contrast.

    Args:
        setting: what all objectives are told; needs `labels`.
        T: temperature of the distillation.
        kl_weight: of the distillation (1 as published).
        detach_teacher: whether the teacher is a constant for the gradient (as published; the paper is silent).
        kl_rampup_epochs: epochs over which the distillation grows to its weight (0: from the start, as published).
        **options: `beta` and the options of `MultiViewContrast`.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        T: float = 3.0,  # noqa: N803 (the field's name for it)
        kl_weight: float = 1.0,
        detach_teacher: bool = True,
        kl_rampup_epochs: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(setting, **options)
        self.temperature, self.kl_weight, self.detach_teacher = T, kl_weight, detach_teacher
        self.kl_rampup_epochs = kl_rampup_epochs

    def logit_terms(self, out: PeerOutputs, targets: Tensor, epoch: float) -> dict[str, Tensor]:
        assert out.logits is not None
        teacher = self.ensemble(out)
        if self.detach_teacher:
            teacher = teacher.detach()
        weight = self.kl_weight * F.rampup(epoch, self.kl_rampup_epochs)
        kl = weight * F.distillation(out.logits[-1], teacher, self.temperature)
        return super().logit_terms(out, targets, epoch) | {"kl": kl}
