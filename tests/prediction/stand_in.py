"""A small network that stands in for the packaged ones, and pictures that are easy to tell apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewshot_mcl import draws, models
from fewshot_mcl.data import open_source
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.evaluation.fewshot import channel_statistics, embed
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.prediction.calibration import calibrate

KINDS = {"rows": (4, 4), "columns": (4, 4), "checks": (3, 3)}  # widths of stripes down and across


@cache
def stand_in() -> tuple[Any, dict[str, Any]]:
    """A network that has learned nothing: its features are random, which is enough for patterns of stripes."""
    store = open_source("glyphs").load("val", ImageOptions())
    with draws.seeded(0, "stand-in"):
        network = create_backbone("conv4", in_channels=1, image_size=28).eval()
    mean, std = channel_statistics(store)
    features = embed(network, store, mean, std)
    return network, {
        "task": "few-shot", "backbone": "conv4", "in_channels": 1, "image_size": 28, "stored_size": 28, "feature_dim": 64,
        "mean": mean.tolist(), "std": std.tolist(), "color": "auto", "resize": "as stored", "trained_on": "glyphs",
        "classes": ["a", "b"], "metric": "euclidean", "scale": 1.0,
        "calibration": calibrate(features, store.labels, source="glyphs"),
    }  # fmt: skip


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands in for `fewshot_mcl.models`."""

    def open_model(name: str) -> tuple[Any, dict[str, Any]]:
        network, card = stand_in()
        return network, dict(card, name=name)

    monkeypatch.setattr(models, "open_model", open_model)
    monkeypatch.setattr(models, "default_model", lambda: "glyphs")
    return models


def stripes(kind: str, seed: int, side: int = 40) -> np.ndarray:
    """(side, side, 3) uint8: a pattern under noise, coloured."""
    random = np.random.default_rng((seed, *kind.encode()))
    down, across = KINDS[kind]
    rows, columns = np.arange(side)[:, None] // across % 2, np.arange(side) // down % 2
    pattern = {"rows": rows + 0 * columns, "columns": columns + 0 * rows, "checks": rows ^ columns}[kind]
    pixels = 60 + 120 * pattern[..., None] + random.integers(0, 60, (side, side, 3))
    pixels[..., 2] //= 3
    return pixels.astype(np.uint8)


def save(path: Path, kind: str, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stripes(kind, seed)).save(path)
    return path


@pytest.fixture
def support(tmp_path: Path) -> Path:
    """Three classes of 4, 2 and 3 images."""
    for kind, count in (("rows", 4), ("columns", 2), ("checks", 3)):
        for k in range(count):
            save(tmp_path / "support" / kind / f"{k}.png", kind, k)
    return tmp_path / "support"


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """Two images of each kind, at different depths."""
    for i, kind in enumerate(KINDS):
        for k in range(2):
            save(tmp_path.joinpath("queries", *["deep"] * i) / f"{kind}-{k}.png", kind, 100 + k)
    return tmp_path / "queries"
