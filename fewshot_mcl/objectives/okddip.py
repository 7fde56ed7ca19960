"""OKDDip: auxiliary peers with targets of their own choosing, and a leader that learns from them (Chen et al., "Online
Knowledge Distillation with Diverse Peers", arXiv 1912.00350).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective, Setting
from fewshot_mcl.objectives.one import check_same_images


class OkdDip(Objective):
    """Cross entropies + w(epoch) (sum of T^2 KL(target || auxiliary) + T^2 KL(mean of auxiliaries || leader)).

    Peers 0..M-2 are auxiliaries, M-1 is the leader. An auxiliary's target is the sum of all auxiliaries' logits, its
    own included, weighed by attention between their features. Logits and features must be of the same images; on
    episodes, the logits are those of an auxiliary classifier.

    Args:
        setting: what all objectives are told.
        T: temperature.
        kl_rampup_epochs: epochs over which w grows from 0.0067 to 1.
        detach_targets: "none" sends the gradient into the whole target, as published; "logits" into the attention
            only. Never into neither: the attention has nothing else to learn from.
        detach_leader_target: whether the leader's target is a constant (not as published).
    """

    least_peers = 3
    defaults: ClassVar[dict[str, Any]] = {"kl_source": "aux"}

    def __init__(
        self,
        setting: Setting,
        *,
        T: float = 3.0,  # noqa: N803 (the field's name for it)
        kl_rampup_epochs: int = 80,
        detach_targets: Literal["none", "logits"] = "none",
        detach_leader_target: bool = False,
    ) -> None:
        super().__init__(setting)
        self.temperature, self.kl_rampup_epochs = T, kl_rampup_epochs
        self.detach_targets, self.detach_leader_target = detach_targets, detach_leader_target
        width = max(setting.feature_dim // 8, 1)
        self.query = nn.Linear(setting.feature_dim, width, bias=False)
        self.key = nn.Linear(setting.feature_dim, width, bias=False)

    def attention(self, out: PeerOutputs) -> Tensor:
        """(B, M-1, M-1): [:, a, b] is the share of auxiliary b in the target of auxiliary a. Not scaled, as published."""
        features = out.features[:-1]
        scores = torch.einsum("abd,cbd->bac", self.query(features), self.key(features))
        return scores.softmax(-1)

    def peer_targets(self, out: PeerOutputs) -> Tensor:
        """(M-1, B, C) target logits of the auxiliaries."""
        assert out.logits is not None
        logits = out.logits[:-1]
        logits = logits.detach() if self.detach_targets == "logits" else logits
        return torch.einsum("bac,cbk->abk", self.attention(out), logits)

    def logit_terms(self, out: PeerOutputs, targets: Tensor, epoch: float) -> dict[str, Tensor]:
        check_same_images(out)
        assert out.logits is not None
        auxiliaries, leader = out.logits[:-1], out.logits[-1]
        mean = auxiliaries.mean(0)
        mean = mean.detach() if self.detach_leader_target else mean
        weight = F.rampup(epoch, self.kl_rampup_epochs)
        return super().logit_terms(out, targets, epoch) | {
            "kl": weight * F.distillation(auxiliaries, self.peer_targets(out), self.temperature).sum(),
            "leader_kl": weight * F.distillation(leader, mean, self.temperature),
        }
