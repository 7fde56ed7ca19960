"""ONE: a gate over the peers' logits is their teacher (Lan et al., "Knowledge Distillation by On-the-Fly Native
Ensemble", arXiv 1806.04606).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective, Setting


class One(Objective):
    """Cross entropies of the peers and of the gated logits + T^2 KL(gated logits || peer), summed over peers.

    The gate reads the shared trunk's output. Where nothing is shared it reads the mean of the peers' features, as
    constants: no peer is to learn from how it is weighed. Logits and features must be of the same images; on episodes,
    those of an auxiliary classifier.

    Args:
        setting: what all objectives are told.
        T: temperature.
        kl_rampup_epochs: epochs over which the distillation grows to its weight (0: from the start, as in the
            comparison's published code; the original has 80).
    """

    defaults: ClassVar[dict[str, Any]] = {"kl_source": "aux"}

    def __init__(
        self,
        setting: Setting,
        *,
        T: float = 3.0,  # noqa: N803 (the field's name for it)
        kl_rampup_epochs: int = 0,
    ) -> None:
        super().__init__(setting)
        self.temperature, self.kl_rampup_epochs = T, kl_rampup_epochs
        width, peers = setting.stem_dim or setting.feature_dim, setting.num_peers
        self.gate = nn.Sequential(nn.Linear(width, peers), nn.BatchNorm1d(peers), nn.ReLU())

    def weights(self, out: PeerOutputs) -> Tensor:
        """(B, M) share of each peer in the gated logits. In training mode the gate's batch norm takes note of the batch."""
        if self.setting.stem_dim is None:
            return self.gate(out.features.detach().mean(0)).softmax(1)
        assert out.stem is not None, "the gate was built for a shared trunk"
        return self.gate(out.stem).softmax(1)

    def ensemble(self, out: PeerOutputs) -> Tensor:
        """(B, C) gated logits."""
        check_same_images(out)
        return torch.einsum("bm,mbc->bc", self.weights(out), out.logits)

    def ensemble_modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"gate": self.gate})

    def logit_terms(self, out: PeerOutputs, targets: Tensor, epoch: float) -> dict[str, Tensor]:
        assert out.logits is not None
        gated = self.ensemble(out)
        kl = F.distillation(out.logits, gated.detach(), self.temperature).sum()
        return super().logit_terms(out, targets, epoch) | {
            "gated_ce": F.cross_entropy(gated[None], targets).sum(),
            "kl": F.rampup(epoch, self.kl_rampup_epochs) * kl,
        }


def check_same_images(out: PeerOutputs) -> None:
    """Refuse logits (M, B', C) of other images than the features (M, B, D): their own features decide how they are weighed."""
    assert out.logits is not None
    if out.logits.shape[1] != out.features.shape[1]:
        raise UserError(
            f"this method weighs the logits of an image by its features, but there are logits of {out.logits.shape[1]} "
            f"images and features of {out.features.shape[1]}: on episodes use --set kl_source=aux."
        )
