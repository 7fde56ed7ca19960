"""A place where the commands of the documentation find what they speak of."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typing_in import typed

from fewshot_mcl.training import episodic, estimate

RUN = "runs/glyphs-mcl-okd-10way-1shot-seed0"  # what the first command of the documentation makes


def _photos(root: Path) -> None:
    """Fifteen classes of twelve small pictures in a colour of their own, without a split."""
    for label in range(15):
        (root / f"class{label:02}").mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng((label, number)).integers(0, 64, (28, 28, 3), dtype=np.uint8)
            pixels[..., label % 3] += np.uint8(12 * label)
            Image.fromarray(pixels).save(root / f"class{label:02}" / f"{number}.png")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, and the run of the first command, which here ended after two episodes."""
    place = tmp_path_factory.mktemp("made")
    _photos(place / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(episodic, "FINAL_EPISODES", 8)
        short = ["--episodes", "2", "--set", "val_episodes=2", "--quiet"]
        assert not typed(["fewshot-mcl", "train", *short], patch)
        assert not typed(["fewshot-mcl", "train", "--method", "baseline", *short], patch)
    assert (place / RUN).is_dir()
    for label in range(3):
        shutil.copytree(place / f"photos/class{label:02}", place / f"my-classes/class{label:02}")
    return place


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working directory, where estimates are of fewest steps and in this process."""
    place = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(place)
    monkeypatch.setattr(episodic, "FINAL_EPISODES", 8)
    for name, value in (("SECONDS", 0.0), ("WARM_UP", 0), ("TIMED", 1), ("PART", 32)):
        monkeypatch.setattr(estimate, name, value)
    monkeypatch.setattr(estimate, "estimate", estimate.measure)
    monkeypatch.setattr("fewshot_mcl.reproduce.session.estimate", estimate.measure)
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "bash"))
    torch.set_num_threads(1)
    return place
