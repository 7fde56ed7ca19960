"""Methods by name. Importing this package imports no torch."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewshot_mcl.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from fewshot_mcl.objectives import functional
    from fewshot_mcl.objectives.base import Objective

__all__ = ["METHODS", "Objective", "create_objective", "functional"]

METHODS = {  # name -> module:class
    "baseline": "baseline:Baseline",
    "dml": "dml:Dml",
    "cl-ilr": "cl_ilr:ClIlr",
    "one": "one:One",
    "okddip": "okddip:OkdDip",
    "mcl": "mcl:Mcl",
    "mcl-okd": "mcl_okd:MclOkd",
    "rkd-d": "rkd:RkdD",
    "rkd-da": "rkd:RkdDa",
    "metric-learning": "metric_learning:MetricLearning",
}
"""Where the class of each method stands, by the name that users type.

Example:
    >>> METHODS["mcl-okd"]
    'mcl_okd:MclOkd'
"""


def create_objective(
    method: str,
    *,
    num_peers: int,
    num_classes: int | None,
    feature_dim: int,
    stem_dim: int | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
    feature_channels: int | None = None,
    **options: Any,
) -> Objective:
    """The objective of a method.

    Args:
        method: one of `METHODS`.
        num_peers, num_classes, feature_dim, stem_dim, labels, seed, feature_channels: see `objectives.base.Setting`.
        **options: the method's own, see its class.

    Raises:
        UserError: if there is no such method or option, or the method cannot work with so few peers or images.

    Example:
        >>> import torch
        >>> from fewshot_mcl import PeerNetwork
        >>> peers = PeerNetwork("conv4", num_peers=2, num_classes=5, in_channels=1, image_size=28)
        >>> objective = create_objective("dml", num_peers=2, num_classes=5, feature_dim=peers.feature_dim, T=2.0)
        >>> terms = objective(peers(torch.rand(4, 1, 28, 28)), torch.tensor([0, 1, 2, 3]))
        >>> sorted(terms)
        ['ce', 'kl', 'total']
        >>> terms["total"].backward()
    """
    from fewshot_mcl.objectives.base import Setting

    cls = _method(method)
    for name in options:
        if name not in (valid := options_of(method)):
            raise (
                unknown(f"option of method '{method}'", name, valid)
                if valid
                else UserError(f"method '{method}' has no options.")
            )
    return cls(Setting(num_peers, num_classes, feature_dim, stem_dim, labels, seed, feature_channels), **options)


def options_of(method: str) -> dict[str, inspect.Parameter]:
    """A method's options by name, those of the classes and modules it hands them on to included."""
    from fewshot_mcl.objectives.contrast import MultiViewContrast

    classes = [c for c in _method(method).__mro__ if "__init__" in vars(c)]
    if any(c.__name__ == "Mcl" for c in classes):
        classes.append(MultiViewContrast)
    parameters = [p for c in classes for p in inspect.signature(c, eval_str=True).parameters.values()]
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def defaults_of(method: str) -> dict[str, Any]:
    """Keys of a run that take these values under the method unless the user says otherwise."""
    return dict(_method(method).defaults)


def _method(name: str) -> Any:
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    module, cls = METHODS[name].split(":")
    return getattr(import_module(f"{__name__}.{module}"), cls)


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module(f"{__name__}.functional")
    if name == "Objective":
        return import_module(f"{__name__}.base").Objective
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
