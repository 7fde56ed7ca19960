"""Labels, and any loss of the library pytorch-metric-learning on the features (Musgrave et al., arXiv 2008.09164)."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_mcl import draws
from fewshot_mcl.errors import UserError, unknown
from fewshot_mcl.networks import PeerOutputs
from fewshot_mcl.objectives.base import Setting
from fewshot_mcl.objectives.baseline import Baseline

Arguments = dict[str, bool | int | float | str]
NO_ARGUMENTS: Arguments = {}
LEFT_OUT = ("GenericPairLoss", "DynamicSoftMarginLoss")  # a base class; one with a state that no checkpoint would have


class MetricLearning(Baseline):
    """Sum of cross entropies + `weight` times the loss of every peer's features and the images' classes, summed over peers.

    A method for one network; several peers each learn for themselves. A loss with parameters (proxies, say) has them once
    for each peer, and they learn with the peers. Losses that draw do so from the seed and the images of the step alone.

    Args:
        setting: what all objectives are told; without `labels` it can form the ensemble, but not learn.
        loss: a class of `pytorch_metric_learning.losses`. `num_classes` and `embedding_size` are filled in.
        weight: of that loss.
        embedding_dim: of a linear head between features and loss, one a peer; 0 means none.
        arguments: other arguments of the class.

    Raises:
        UserError: without the library; if it has no such loss, or the loss does not work with labels and features alone.
    """

    labels: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        loss: str = "SupConLoss",
        weight: float = 0.5,
        embedding_dim: int = 0,
        arguments: Arguments = NO_ARGUMENTS,
    ) -> None:
        super().__init__(setting)
        if embedding_dim < 0:
            raise UserError(f"objective.embedding_dim = {embedding_dim}: it must be positive, or 0 for no head.")
        self.weight = weight
        self.heads, self.losses = nn.ModuleList(), nn.ModuleList()
        if setting.labels is None:
            return
        peers, width = range(setting.num_peers), embedding_dim or setting.feature_dim
        self.register_buffer("labels", setting.labels.to(torch.int64), persistent=False)
        if embedding_dim:
            self.heads.extend(nn.Linear(setting.feature_dim, embedding_dim) for _ in peers)
        classes = int(setting.labels.max()) + 1
        self.losses.extend(_build(loss, classes, width, arguments) for _ in peers)

    def feature_terms(self, out: PeerOutputs, indices: Tensor | None) -> dict[str, Tensor]:
        assert indices is not None, "the classes are looked up by the images' indices"
        labels = self.labels[indices]
        vectors = [head(f) for head, f in zip(self.heads, out.features)] if self.heads else list(out.features)
        with draws.seeded(self.setting.seed, "metric loss", *indices.tolist()):
            try:
                losses = [loss(v, labels) for loss, v in zip(self.losses, vectors)]
            except ValueError as error:  # some ask for as many images of every class
                name = type(self.losses[0]).__name__
                raise UserError(f"{name} cannot work on this step's images: {error} Take another loss.") from error
        return {"metric": self.weight * torch.stack(losses).sum()}


def _build(name: str, classes: int, width: int, arguments: dict[str, Any]) -> nn.Module:
    """A loss by the name of its class."""
    kinds = _kinds()
    if name not in kinds:
        raise unknown("loss of pytorch-metric-learning", name, kinds)
    sizes = {"num_classes": classes, "embedding_size": width, "descriptors_dim": width}
    parents = [kind for kind in kinds[name].__mro__ if "__init__" in vars(kind)]
    asked = {parameter for kind in parents for parameter in inspect.signature(kind).parameters}
    try:
        loss: nn.Module = kinds[name](**{key: size for key, size in sizes.items() if key in asked} | arguments)
        with torch.no_grad():  # what needs more than features and labels says so now, not in the first step
            copy.deepcopy(loss)(torch.eye(4, width), torch.arange(4) // 2 % classes)
    except Exception as error:  # the library's own kinds are many
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the loss {name} does not work on features and labels with objective.arguments = {arguments}: {reason.rstrip('.')}. "
            "Give its class's arguments, --set 'objective.arguments={margin=0.1}', or take another loss, SupConLoss say."
        ) from error
    return loss


def _kinds() -> dict[str, Any]:
    """The losses of the library that learn from features and labels, by name."""
    try:
        from pytorch_metric_learning import losses
    except ImportError as error:
        raise UserError(
            f"method 'metric-learning' needs pytorch-metric-learning, which cannot be imported ({error}). Install the extra: "
            "pip install 'fewshot-mcl[metric-learning]'."
        ) from error
    base = losses.BaseMetricLossFunction
    found = {name: kind for name, kind in vars(losses).items() if inspect.isclass(kind) and issubclass(kind, base)}
    return {name: kind for name, kind in found.items() if kind is not base and name not in LEFT_OUT}
