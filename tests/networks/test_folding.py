"""What evaluation looks through is the network itself, rearranged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewshot_mcl.networks import BACKBONES, PeerNetwork, create_backbone
from fewshot_mcl.networks.folding import folded


def trained(network: nn.Module) -> nn.Module:
    """With statistics and gains that differ from where they start."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return network.double()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_folded_backbone_gives_the_features_of_the_backbone_in_evaluation_mode(name: str) -> None:
    network = trained(create_backbone(name, image_size=32))
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(images), network.eval()(images), rtol=1e-9, atol=1e-9)


def test_folded_peers_give_every_peers_features_and_logits() -> None:
    peers = trained(PeerNetwork("resnet32", 3, num_classes=5, share="last-one"))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = folded(peers)(images), peers.eval()(images)
    for name in ("features", "logits", "stem"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["conv4", "resnet12", "resnet32", "vgg16"])
def test_every_batch_norm_behind_a_convolution_is_folded(name: str) -> None:
    assert not any(
        isinstance(module, nn.BatchNorm2d) for module in folded(create_backbone(name, image_size=32)).modules()
    )


def test_the_network_itself_is_left_as_it_is() -> None:
    network = trained(create_backbone("conv4", image_size=32)).train()
    before = copy.deepcopy(network.state_dict())
    folded(network)(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert all(module.training for module in network.modules())
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
