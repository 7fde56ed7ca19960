"""Peers over any split of a backbone."""

from __future__ import annotations

import copy

import pytest
import torch

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerNetwork, create_backbone
from fewshot_mcl.networks.peers import copies_per_stage


@pytest.mark.parametrize(
    ("share", "method", "stages", "peers", "copies"),
    [
        ("last-two", "mcl-okd", 4, 4, (1, 1, 4, 4)),
        ("last-one", "mcl-okd", 4, 4, (1, 1, 1, 4)),
        ("none", "mcl-okd", 4, 3, (3, 3, 3, 3)),
        ("paper-code", "mcl-okd", 3, 4, (1, 4, 4)),
        ("paper-code", "one", 3, 4, (1, 1, 4)),
        ("paper-code", "cl-ilr", 3, 4, (1, 2, 4)),
        ("paper-code", "cl-ilr", 3, 5, (1, 3, 5)),
        ("last-two", "baseline", 4, 1, (1, 1, 1, 1)),
    ],
)
def test_presets(share: str, method: str, stages: int, peers: int, copies: tuple[int, ...]) -> None:
    assert copies_per_stage(share, stages, peers, method) == copies


@pytest.mark.parametrize("share", ["last-two", "last-one", "none", "paper-code"])
@pytest.mark.parametrize("num_peers", [1, 2, 5])
@pytest.mark.parametrize("num_classes", [None, 7])
def test_every_peer_is_the_plain_backbone(share: str, num_peers: int, num_classes: int | None) -> None:
    peers = PeerNetwork("conv4", num_peers, num_classes, share, image_size=32).train()
    images = torch.randn(4, 3, 32, 32)
    peers(images)  # moves the running statistics
    plain = create_backbone("conv4", num_classes, image_size=32)
    deployed = peers.deployed()
    assert sum(p.numel() for p in deployed.parameters()) == sum(p.numel() for p in plain.parameters())
    plain.load_state_dict(deployed.state_dict())
    out = peers.eval()(images)
    assert out.features.shape == (num_peers, 4, peers.feature_dim)
    assert torch.equal(plain.eval().features(images), out.features[-1])
    for m in range(num_peers):
        assert torch.equal(peers.peer(m).features(images), out.features[m])
        if num_classes:
            assert torch.equal(peers.peer(m)(images), out.logits[m])
    assert (out.logits is None) == (num_classes is None)


def test_a_tree_gives_each_head_its_own_branch() -> None:
    peers = PeerNetwork("conv4", 4, None, "paper-code", "cl-ilr", image_size=16)
    assert [len(level) for level in peers.stages] == [1, 1, 2, 4]
    assert peers.peer(0).stages[2] is peers.peer(1).stages[2] is not peers.peer(2).stages[2]
    assert peers.peer(2).stages[2] is peers.peer(3).stages[2]


def test_parameters_of_four_peers() -> None:
    shared = 1792 + 128 + 36928 + 128
    own = 2 * (36928 + 128)
    peers = PeerNetwork("conv4", 4)
    assert sum(p.numel() for p in peers.parameters()) == shared + 4 * own
    assert sum(p.numel() for p in PeerNetwork("conv4", 4, share="none").parameters()) == 4 * 113_088


def test_the_stem_is_the_shared_trunks_average() -> None:
    peers = PeerNetwork("conv4", 3, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    trunk = peers.peer(0).stages[:2]
    expected = trunk[1](trunk[0](images)).mean((2, 3))
    torch.testing.assert_close(peers(images).stem, expected)
    assert peers.stem_dim == 64
    whole = PeerNetwork("conv4", 3, share="none", image_size=32)
    assert whole.stem_dim is None
    assert whole(images).stem is None


def test_own_layers_start_differently_and_the_deployed_one_is_a_copy() -> None:
    peers = PeerNetwork("conv4", 2, image_size=16)
    first, last = peers.peer(0).stages[3][0].weight, peers.peer(1).stages[3][0].weight
    assert not torch.equal(first, last)
    before = copy.deepcopy(last)
    with torch.no_grad():
        peers.deployed().stages[3][0].weight.zero_()
    assert torch.equal(peers.peer(1).stages[3][0].weight, before)


def test_pooling_before_relu_changes_nothing() -> None:
    """The block computes pool then ReLU; Snell's order gives the same values and gradients."""
    block = create_backbone("conv4", image_size=32).double().stages[0].train()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    conv, norm, pool = block[:3]
    ours, theirs = block(images), pool(torch.relu(norm(conv(images))))
    assert torch.equal(ours, theirs)
    weights = torch.rand_like(ours)
    grads = [torch.autograd.grad((out * weights).sum(), images, retain_graph=True)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="Did you mean 'conv4'"):
        create_backbone("con4")
    with pytest.raises(UserError, match="at least 16 pixels"):
        create_backbone("conv4", image_size=15)
    with pytest.raises(UserError, match="unknown share preset"):
        PeerNetwork("conv4", share="last-three")
    with pytest.raises(UserError, match="at least 1"):
        PeerNetwork("conv4", 0)
