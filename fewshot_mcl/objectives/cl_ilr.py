"""CL-ILR: heads of a tree that learn from labels and from each other (Song & Chai, "Collaborative Learning for Deep
Neural Networks", arXiv 1805.11761). The tree and the gradients divided at its forks are the network's business.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective, Setting


class ClIlr(Objective):
    """0.5 cross entropy + 0.5 T^2 KL(mean of the other peers' logits || peer), summed over peers.

    Args:
        setting: what all objectives are told.
        T: temperature.
        ce_weight, kl_weight: of the labels and of the other peers.
        ensemble: "all" means all peers' logits. "as-published" means those of peers 0..M-2: the published test loop
            uses the peer number left over from an earlier loop, and its table of ensembles was very probably made so.
    """

    least_peers = 3  # with two, the tree has no second fork
    defaults: ClassVar[dict[str, Any]] = {"kl_source": "aux", "share": "paper-code"}

    def __init__(
        self,
        setting: Setting,
        *,
        T: float = 2.0,  # noqa: N803 (the field's name for it)
        ce_weight: float = 0.5,
        kl_weight: float = 0.5,
        ensemble: Literal["all", "as-published"] = "all",
    ) -> None:
        super().__init__(setting)
        self.temperature, self.ce_weight, self.kl_weight = T, ce_weight, kl_weight
        self.ensemble_members = setting.num_peers - (ensemble == "as-published")

    def logit_terms(self, out: PeerOutputs, targets: Tensor, epoch: float) -> dict[str, Tensor]:
        assert out.logits is not None
        constants = out.logits.detach()
        others = (constants.sum(0) - constants) / (len(constants) - 1)  # (M, B, C): without peer m
        kl = F.distillation(out.logits, others, self.temperature).sum()
        return {
            "ce": self.ce_weight * F.cross_entropy(out.logits, targets).sum(),
            "kl": self.kl_weight * kl,
        }

    def ensemble(self, out: PeerOutputs) -> Tensor:
        """(B, C) mean of the logits of the peers that the option `ensemble` names."""
        assert out.logits is not None
        return out.logits[: self.ensemble_members].mean(0)
