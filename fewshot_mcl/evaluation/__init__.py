"""Evaluation on episodes. Importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot_mcl.evaluation.fewshot import embed, evaluate_episodes, evaluate_peers
    from fewshot_mcl.evaluation.statistics import Result, pooled

__all__ = ["Result", "embed", "evaluate_episodes", "evaluate_peers", "pooled"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "statistics" if name in ("Result", "pooled") else "fewshot"
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
