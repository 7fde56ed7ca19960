"""Images, episodes and where they come from. Names resolve on first use: importing the package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot_mcl.data.episodes import Episodes, EpisodeSampler
    from fewshot_mcl.data.sources import ImageOptions, open_source
    from fewshot_mcl.data.store import ImageStore

__all__ = ["EpisodeSampler", "Episodes", "ImageOptions", "ImageStore", "open_source"]

_HOMES = {
    "EpisodeSampler": "episodes",
    "Episodes": "episodes",
    "ImageOptions": "sources",
    "ImageStore": "store",
    "open_source": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
