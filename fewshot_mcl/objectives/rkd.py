"""RKD: a network that keeps a trained one's distances and angles between images (Park et al., "Relational Knowledge
Distillation", arXiv 1904.05068).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.base import Setting
from fewshot_mcl.objectives.baseline import Baseline

Teacher = Tensor | Callable[[Tensor], Tensor]


class RkdD(Baseline):
    """The class loss + `distance_weight` times the loss of distances, over all images of a step.

    A method for one network; several peers each learn from the teacher for themselves, and their terms are summed. It
    needs `set_teacher` before its first step, and again after resuming: the teacher is no part of the state dict.

    Args:
        setting: what all objectives are told.
        distance_weight: lambda_D (50 as in the RKD paper's few-shot experiments, as far as known).
    """

    least_peers = 1
    needs_teacher = True
    share = 1.0  # of each weight

    def __init__(self, setting: Setting, *, distance_weight: float = 50.0) -> None:
        super().__init__(setting)
        self.distance_weight = distance_weight
        self.teacher: Teacher | None = None

    def set_teacher(self, teacher: Teacher) -> None:
        """What the trained network, frozen and in eval mode, makes of the training images.

        Args:
            teacher: (N, Dt) features, row i of training image i. Such a network says the same of an image in every step,
                so one pass over the training images is enough; but where images are augmented, give a function from
                indices (B,) to the features (B, Dt) of the batch as it is.

        Raises:
            ValueError: if the table is no matrix, or has not one row for each training image.
        """
        if isinstance(teacher, Tensor):
            rows = len(teacher) if self.setting.labels is None else len(self.setting.labels)
            if teacher.dim() != 2 or len(teacher) != rows:
                raise ValueError(
                    f"the teacher's features must be one row for each of the {rows} training images, not a tensor of shape "
                    f"{tuple(teacher.shape)}: compute them on the whole training split, in its order."
                )
            teacher = teacher.detach()
        self.teacher = teacher

    def teacher_features(self, indices: Tensor, device: torch.device) -> Tensor:
        """Indices (B,) -> (B, Dt)."""
        if self.teacher is None:
            raise UserError("this method learns from a trained network: give its features with set_teacher(features).")
        if not isinstance(self.teacher, Tensor):
            with torch.no_grad():
                return self.teacher(indices)
        self.teacher = self.teacher.to(device)  # moves once
        return self.teacher[indices]

    def feature_terms(self, out: PeerOutputs, indices: Tensor | None) -> dict[str, Tensor]:
        assert indices is not None, "the teacher's features are looked up by the images' indices"
        return self.relation_terms(out.features, self.teacher_features(indices, out.features.device))

    def relation_terms(self, features: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Weighted terms of features (M, B, D) and the teacher's (B, Dt)."""
        losses = torch.stack([F.rkd_distance(student, teacher) for student in features])
        return {"distance": self.share * self.distance_weight * losses.sum()}


class RkdDa(RkdD):
    """The class loss + half of (`distance_weight` times the loss of distances + `angle_weight` times that of angles).

    Args:
        setting: what all objectives are told.
        angle_weight: lambda_A (100, likewise).
        **options: of `RkdD`.
    """

    share = 0.5

    def __init__(self, setting: Setting, *, angle_weight: float = 100.0, **options: Any) -> None:
        super().__init__(setting, **options)
        self.angle_weight = angle_weight

    def relation_terms(self, features: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        losses = torch.stack([F.rkd_angle(student, teacher) for student in features])
        return super().relation_terms(features, teacher) | {"angle": self.share * self.angle_weight * losses.sum()}
