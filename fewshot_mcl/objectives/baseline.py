"""Baseline: every peer learns from labels alone. With one peer, an ordinary network."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Objective


class Baseline(Objective):
    """Sum over peers of the cross entropy (eq. 2)."""

    least_peers = 1
    defaults: ClassVar[dict[str, Any]] = {"peers": 1}

    def logit_terms(self, out: PeerOutputs, targets: Tensor, epoch: float) -> dict[str, Tensor]:
        assert out.logits is not None
        return {"ce": F.cross_entropy(out.logits, targets).sum()}
