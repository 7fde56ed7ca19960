"""Few-shot metric learning with peers that teach each other. Names resolve on first use: importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewshot_mcl.data import Episodes, EpisodeSampler, ImageStore, open_source
    from fewshot_mcl.evaluation import Result, embed, evaluate_episodes, evaluate_peers
    from fewshot_mcl.few_shot import FewShot
    from fewshot_mcl.networks import BACKBONES, Backbone, PeerNetwork, PeerOutputs, create_backbone
    from fewshot_mcl.objectives import METHODS, Objective, create_objective

_ROOMS = {
    "data": ("EpisodeSampler", "Episodes", "ImageStore", "open_source"),
    "evaluation": ("Result", "embed", "evaluate_episodes", "evaluate_peers"),
    "few_shot": ("FewShot",),
    "networks": ("BACKBONES", "Backbone", "PeerNetwork", "PeerOutputs", "create_backbone"),
    "objectives": ("METHODS", "Objective", "create_objective"),
}

__all__ = [
    "BACKBONES", "METHODS", "Backbone", "EpisodeSampler", "Episodes", "FewShot", "ImageStore", "Objective", "PeerNetwork",
    "PeerOutputs", "Result", "__version__", "create_backbone", "create_objective", "embed", "evaluate_episodes",
    "evaluate_peers", "open_source",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
