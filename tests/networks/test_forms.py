"""Every form of running peers gives what one peer after another gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fewshot_mcl.errors import UserError
from fewshot_mcl.networks import PeerNetwork

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def outcome(peers: PeerNetwork) -> dict[str, torch.Tensor]:
    """Outputs of a training step, its gradients, and the state that it leaves."""
    out = peers.train()(IMAGES)
    assert out.logits is not None
    weights = torch.arange(out.features.numel(), dtype=torch.float64).view_as(out.features).cos()
    (out.logits.square().sum() + (out.features * weights).sum()).backward()
    gradients = {f"gradient {name}": p.grad for name, p in peers.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(peers.parameters()))
    state = {f"state {name}": value for name, value in peers.state_dict().items()}
    return {"features": out.features, "logits": out.logits, **gradients, **state}


def peers_of(backbone: str, share: str, method: str = "mcl-okd", **more: Any) -> PeerNetwork:
    torch.manual_seed(0)
    return PeerNetwork(backbone, 3, num_classes=4, share=share, method=method, image_size=32, **more).double()


@pytest.mark.parametrize("form", ["stacked", "grouped"])
@pytest.mark.parametrize(
    ("backbone", "share", "method"),
    [
        ("conv4", "last-two", "mcl-okd"),
        ("conv4", "none", "mcl-okd"),
        ("conv4", "paper-code", "cl-ilr"),
        ("resnet32", "last-one", "mcl-okd"),
        ("resnet12", "last-one", "mcl-okd"),
    ],
)
def test_a_training_step_is_that_of_the_loop(form: str, backbone: str, share: str, method: str) -> None:
    loop = peers_of(backbone, share, method)
    other = copy.deepcopy(loop)
    other.form = form  # type: ignore[assignment]
    wanted, found = outcome(loop), outcome(other)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backbone", ["densenet40-12", "hcgnet-a1"])
def test_networks_that_join_channels_can_be_stacked_but_not_grouped(backbone: str) -> None:
    loop = peers_of(backbone, "last-one")
    other = copy.deepcopy(loop)
    other.form = "stacked"
    wanted, found = outcome(loop), outcome(other)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-9)
    with pytest.raises(UserError, match="grouped"):
        peers_of(backbone, "last-one", form="grouped")


def test_evaluation_and_the_deployed_peer_do_not_depend_on_the_form() -> None:
    loop = peers_of("conv4", "last-two").eval()
    for form in ("stacked", "grouped"):
        other = copy.deepcopy(loop)
        other.form = form  # type: ignore[assignment]
        torch.testing.assert_close(other(IMAGES).features, loop(IMAGES).features, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.deployed().eval()(IMAGES), loop(IMAGES).logits[-1], rtol=1e-9, atol=1e-9)
