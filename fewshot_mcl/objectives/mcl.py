"""MCL: labels and the multi-view contrast, without the online teacher (the paper's "+MCL" ablation)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives.base import Objective, Setting
from fewshot_mcl.objectives.contrast import MultiViewContrast
from fewshot_mcl.objectives.contrast_plan import ContrastPlan


class Mcl(Objective):
    """Sum of cross entropies + beta * sum over ordered pairs of the contrast (eqs. 2 and 8).

    Args:
        setting: what all objectives are told; needs `labels`.
        beta: weight of the contrast; 0 leaves it out altogether.
        **contrast: options of `MultiViewContrast`.
    """

    def __init__(self, setting: Setting, *, beta: float = 0.025, **contrast: Any) -> None:
        super().__init__(setting)
        self.beta = beta
        self.contrast = MultiViewContrast(setting, **contrast) if beta else None

    def plan(self, batch: int) -> ContrastPlan | None:
        return self.contrast.plan(batch) if self.contrast is not None else None

    def feature_terms(self, out: PeerOutputs, indices: Tensor | None) -> dict[str, Tensor]:
        if self.contrast is None:
            return {}
        assert indices is not None, "the contrast needs the images' indices"
        return {"contrast": self.beta * self.contrast(out.features, indices)}
