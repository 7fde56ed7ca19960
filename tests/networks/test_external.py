"""Models of torchvision and timm as backbones: the libraries themselves, and fakes of what they might hold."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerNetwork, create_backbone
from fewshot_mcl.networks.external import LIBRARIES


@pytest.fixture
def models() -> Any:
    return pytest.importorskip("torchvision.models")


@torch.no_grad()
def test_a_resnet_comes_as_four_stages(models: Any, tmp_path: Path) -> None:
    original = models.resnet18(num_classes=9).eval()
    images = torch.randn(2, 3, 64, 64)
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": original.state_dict()}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        backbone = create_backbone("torchvision/resnet18", 4, image_size=64, weights=str(tmp_path / file)).eval()
        assert backbone.stage_channels == (64, 128, 256, 512)
        assert backbone(images).shape == (2, 4)
        backbone.classifier = original.fc
        torch.testing.assert_close(backbone(images), original(images))
    graph = PeerNetwork("torchvision/resnet18", 2, 4, image_size=64).eval()
    assert [len(level) for level in graph.stages] == [1, 1, 2, 2]
    out = graph(images)
    assert out.stem.shape == (2, 128)
    assert torch.equal(graph.deployed()(images), out.logits[-1])


@torch.no_grad()
def test_other_models_come_as_one_piece(models: Any) -> None:
    name = "torchvision/mobilenet_v3_small"
    images = torch.randn(2, 1, 64, 64)
    graph = PeerNetwork(name, 2, 3, "none", in_channels=1, image_size=64).eval()
    out = graph(images)
    assert out.features.shape == (2, 2, graph.feature_dim)
    assert out.features.shape[-1] == 1024
    assert out.stem is None
    assert torch.equal(graph.deployed()(images), out.logits[-1])
    assert PeerNetwork(name, 1, None, in_channels=1, image_size=64).train()(images).features.shape == (1, 2, 1024)
    with pytest.raises(UserError, match="one piece, of which 'last-two' leaves nothing to share: use share 'none'"):
        PeerNetwork(name, 2, image_size=64)


def test_building_draws_only_parameters(models: Any) -> None:
    torch.manual_seed(0)
    models.resnet18()
    after = torch.rand(1)
    torch.manual_seed(0)
    backbone = create_backbone("torchvision/resnet18", image_size=32)
    assert torch.equal(torch.rand(1), after)
    assert all(module.training for module in backbone.modules())
    assert all(not m.num_batches_tracked for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


def test_refusals(models: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        create_backbone("torchvision/resnet_18")
    with pytest.raises(UserError, match="unknown library of backbones 'torchhub'"):
        create_backbone("torchhub/resnet18")
    with pytest.raises(UserError, match="one linear classifier"):
        create_backbone("torchvision/squeezenet1_1")
    with pytest.raises(UserError, match="does not take images of 32 pixels"):
        create_backbone("torchvision/alexnet", image_size=32)
    with pytest.raises(UserError, match="there is no file"):
        create_backbone("torchvision/resnet18", weights=tmp_path / "missing.pth")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "pickle.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    for file in ("other.pth", "pickle.pth", "broken.safetensors"):
        with pytest.raises(UserError, match="does not hold weights of torchvision/resnet18"):
            create_backbone("torchvision/resnet18", weights=tmp_path / file)


def test_weights_in_the_old_form_of_torch(models: Any, tmp_path: Path) -> None:
    """They load; one that names more numbers than it has bytes is refused before torch makes room for them."""
    file, state = tmp_path / "old.pt", models.resnet18().state_dict()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    backbone = create_backbone("torchvision/resnet18", image_size=64, weights=file)
    assert torch.equal(next(backbone.parameters()), state["conv1.weight"])
    numbers = (9408).to_bytes(2, "little")  # of the first convolution, as BININT2
    data = file.read_bytes()
    file.write_bytes(data.replace(b"M" + numbers, b"J" + (2**31 - 1).to_bytes(4, "little"), 1))
    with pytest.raises(UserError, match=r"names 2,147,483,647 numbers in [\d,]+ bytes"):
        create_backbone("torchvision/resnet18", image_size=64, weights=file)


def test_a_text_longer_than_its_file_takes_no_room(models: Any, tmp_path: Path) -> None:
    """Of weights in the old form; a file of a few bytes says that a text of 2 GiB comes."""
    file = tmp_path / "old.pt"
    file.write_bytes(b"\x80\x02X" + (2**31 - 1).to_bytes(4, "little") + b"a text.")
    tracemalloc.start()
    with pytest.raises(UserError, match="does not hold weights"):
        create_backbone("torchvision/resnet18", image_size=64, weights=file)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**30


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[library], None)
    with pytest.raises(UserError, match=f"pip install {library}"):
        create_backbone(f"{library}/resnet18")


class TimmLike(nn.Module):
    """The parts and names of a timm ResNet; `twist` makes its forward more than them."""

    def __init__(self, twist: bool) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.fc, self.twist = nn.Linear(4, 1000), twist

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return self.fc((2 * maps if self.twist else maps).mean((2, 3)))


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("timm")
    fake.list_models = lambda: ["plain", "twisted"]  # type: ignore[attr-defined]
    fake.create_model = lambda name: TimmLike(name == "twisted")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", fake)
    assert len(create_backbone("timm/plain", image_size=8).stages) == 4
    whole = create_backbone("timm/twisted", 5, in_channels=1, image_size=8)
    assert len(whole.stages) == 1
    assert whole(torch.randn(2, 1, 8, 8)).shape == (2, 5)
    with pytest.raises(UserError, match="unknown timm model"):
        create_backbone("timm/none")


def test_peers_of_a_real_timm_model_start_from_a_file_of_its_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    model = timm.create_model("resnet10t", num_classes=7)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    peers = PeerNetwork(
        "timm/resnet10t", 2, 5, "last-two", image_size=64, weights=tmp_path / "weights.safetensors"
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model.eval().forward_head(model.forward_features(images), pre_logits=True)
    out = peers(images)
    assert out.logits.shape == (2, 2, 5)
    for features in out.features:
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
