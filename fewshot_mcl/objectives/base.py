"""What every method is: peers' outputs in, named loss terms out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives import functional as F
from fewshot_mcl.objectives.contrast_plan import ContrastPlan


@dataclass(frozen=True)
class Setting:
    """What an objective may need to know to build its own parameters.

    Attributes:
        num_peers: M.
        num_classes: C of the logits it will see; on episodes the way, or the training classes for an auxiliary
            classifier.
        feature_dim: length of a feature.
        stem_dim: width of the shared trunk's output, None where nothing is shared.
        labels: (N,) label of every training image; an image's index in here is its row in a memory bank.
        seed: of every draw.
        feature_channels: channels of the last feature map; None where features are not flattened maps.
    """

    num_peers: int
    num_classes: int | None
    feature_dim: int
    stem_dim: int | None
    labels: torch.Tensor | None
    seed: int
    feature_channels: int | None = None


class Objective(nn.Module):
    """A method. A subclass adds to `logit_terms` what it makes of logits beside labels, and to `feature_terms` what it
    makes of features.

    It owns its parameters and buffers (heads, banks, gates) and knows nothing of backbones, data or the loop. The two
    kinds of terms are apart because on an episode they see different things: logits belong to queries (or to an
    auxiliary classifier), features to all images.

    Example:
        A method of one's own: labels, and embeddings that stay short.

        >>> class Short(Objective):
        ...     def feature_terms(self, out, indices):
        ...         return {"short": 0.01 * out.features.square().mean()}
        >>> objective = Short(Setting(num_peers=2, num_classes=5, feature_dim=8, stem_dim=None, labels=None, seed=0))
        >>> out = PeerOutputs(features=torch.ones(2, 4, 8), logits=torch.zeros(2, 4, 5))
        >>> {name: round(float(term), 3) for name, term in objective(out, torch.zeros(4, dtype=torch.int64)).items()}
        {'ce': 3.219, 'short': 0.01, 'total': 3.229}
    """

    least_peers = 2
    needs_teacher = False  # whether `set_teacher` must be called before the first step
    defaults: ClassVar[dict[str, Any]] = {}  # keys of a run that give way to these unless the user says otherwise

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        if setting.num_peers < self.least_peers:
            raise UserError(
                f"this method needs at least {self.least_peers} peers, not {setting.num_peers}: use --peers {self.least_peers} "
                "or more, or --method baseline."
            )
        self.setting = setting

    def logit_terms(self, out: PeerOutputs, targets: Tensor, epoch: float) -> dict[str, Tensor]:
        """Weighted terms of logits (M, B', C) and targets (B',): by default the sum over peers of the cross entropy (eq. 2)."""
        assert out.logits is not None
        return {"ce": F.cross_entropy(out.logits, targets).sum()}

    def feature_terms(self, out: PeerOutputs, indices: Tensor | None) -> dict[str, Tensor]:
        """Weighted terms of features (M, B, D) and the images' indices (B,) in the training set."""
        return {}

    def forward(
        self, out: PeerOutputs, targets: Tensor, *, indices: Tensor | None = None, epoch: float = 0
    ) -> dict[str, Tensor]:
        """Every term as it enters the sum, and the sum as "total": the scalar to be minimised."""
        return with_total(self.logit_terms(out, targets, epoch) | self.feature_terms(out, indices))

    def plan(self, batch: int) -> ContrastPlan | None:
        """How the contrast of a batch of B images is computed, and why; None for a method without one."""
        return None

    def ensemble(self, out: PeerOutputs) -> Tensor:
        """(B', C) logits of the method's ensemble: the mean of all peers' logits."""
        assert out.logits is not None
        return out.logits.mean(0)

    def ensemble_modules(self) -> nn.ModuleDict:
        """What of its modules `ensemble` needs, by attribute name."""
        return nn.ModuleDict()


def with_total(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms and their sum."""
    return terms | {"total": torch.stack(list(terms.values())).sum()}
