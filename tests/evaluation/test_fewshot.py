"""Evaluation: equal to the obvious way, independent of batching, always in evaluation mode."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from fewshot_mcl.data import EpisodeSampler, ImageStore
from fewshot_mcl.evaluation import Result, embed, evaluate_episodes, evaluate_peers, pooled
from fewshot_mcl.evaluation.fewshot import normalise
from fewshot_mcl.networks import PeerNetwork, create_backbone

LABELS = torch.arange(8).repeat_interleave(20)


def features(dim: int = 16, peers: int = 3) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(peers, 160, dim) + 0.7 * torch.randn(8, dim)[LABELS]


def slow(f: Tensor, support: Tensor, query: Tensor) -> tuple[Tensor, float]:
    """One episode, a query at a time."""
    centres = torch.stack([f[own].mean(0) for own in support])
    logits = torch.stack([-((f[q] - centres) ** 2).sum(1) for own in query for q in own])
    targets = torch.arange(len(query)).repeat_interleave(query.shape[1])
    return logits, (logits.argmax(1) == targets).double().mean().item()


def test_equals_the_obvious_way_for_every_peer_and_the_ensemble() -> None:
    f = features().double()
    episodes = EpisodeSampler(LABELS, way=5, shot=3, query=7, seed=1).sample(30)
    results = evaluate_peers(f, episodes, batch=7)
    assert list(results) == ["peer 0", "peer 1", "peer 2", "ensemble"]
    for e in range(30):
        every = [slow(peer, episodes.support[e], episodes.query[e]) for peer in f]
        for m, (_, accuracy) in enumerate(every):
            assert results[f"peer {m}"].accuracies[e].item() == accuracy
        summed = torch.stack([logits for logits, _ in every]).sum(0)
        targets = torch.arange(5).repeat_interleave(7)
        assert results["ensemble"].accuracies[e].item() == (summed.argmax(1) == targets).double().mean().item()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dim", [3, 16, 1600])
def test_the_batch_of_episodes_changes_not_one_bit(metric: str, dim: int) -> None:
    f = features(dim, peers=2)
    episodes = EpisodeSampler(LABELS, way=5, shot=1, query=15, seed=2).sample(64)
    whole = evaluate_peers(f, episodes, metric=metric, scale=10.0, batch=64)
    for batch in (1, 5, 63):
        other = evaluate_peers(f, episodes, metric=metric, scale=10.0, batch=batch)
        for name, result in whole.items():
            assert torch.equal(result.accuracies, other[name].accuracies)


def test_logits_do_not_depend_on_the_batch_either() -> None:
    from fewshot_mcl.evaluation.fewshot import episode_logits

    f = features(1600, 1)[0]
    episodes = EpisodeSampler(LABELS, way=5, shot=5, query=15, seed=2).sample(40)
    whole = episode_logits(f, episodes, "euclidean", 1.0)
    parts = [episode_logits(f, episodes[i : i + 7], "euclidean", 1.0) for i in range(0, 40, 7)]
    assert torch.equal(whole, torch.cat(parts))


def test_one_peer_has_no_ensemble() -> None:
    f = features(peers=1)
    episodes = EpisodeSampler(LABELS, way=5, shot=1, query=5).sample(9)
    results = evaluate_peers(f, episodes)
    assert list(results) == ["peer 0"]
    assert torch.equal(results["peer 0"].accuracies, evaluate_episodes(f[0], episodes).accuracies)


def image_store(n: int = 70) -> ImageStore:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return ImageStore(images, torch.arange(n) * 7 // n, [str(i) for i in range(7)])


def test_embed_forces_evaluation_mode_and_restores_the_mode() -> None:
    store, mean, std = image_store(), torch.tensor([0.5]), torch.tensor([0.3])
    network = create_backbone("conv4", in_channels=1, image_size=16).train()
    network(torch.randn(30, 1, 16, 16))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = embed(network, store, mean, std)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        expected = network.eval()((store.images.float() / 255 - 0.5) / 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    peers = PeerNetwork("conv4", 3, in_channels=1, image_size=16)
    assert embed(peers, store, mean, std).shape == (3, 70, 64)


def test_normalise() -> None:
    images = torch.tensor([[[[0, 51], [102, 255]], [[255, 0], [0, 0]]]], dtype=torch.uint8)
    found = normalise(images, torch.tensor([0.2, 0.5]), torch.tensor([0.4, 0.5]))
    expected = torch.tensor([[[[-0.5, 0.0], [0.5, 2.0]], [[1.0, -1.0], [-1.0, -1.0]]]])
    torch.testing.assert_close(found, expected)


def test_interval_and_its_t_form() -> None:
    values = torch.rand(50, dtype=torch.float64)
    result = Result(values)
    low, high = scipy.stats.t.interval(0.95, 49, values.mean(), scipy.stats.sem(values.numpy()))
    assert result.ci95_t == pytest.approx((high - low) / 2)
    assert result.ci95 == pytest.approx(1.96 * scipy.stats.sem(values.numpy()))
    assert result.std == pytest.approx(values.numpy().std(ddof=1))


def test_paired_differences() -> None:
    a, b = (Result(torch.rand(40, dtype=torch.float64)) for _ in range(2))
    difference = a.minus(b)
    assert difference.mean == pytest.approx(a.mean - b.mean)
    assert difference.ci95 == pytest.approx(1.96 * float((a.accuracies - b.accuracies).std()) / math.sqrt(40))
    assert pooled([a, b]).mean == pytest.approx((a.mean + b.mean) / 2)
    with pytest.raises(ValueError, match="cannot pair"):
        a.minus(Result(b.accuracies[:39]))


class Refuses(nn.Module):
    """A network that must not be run in training mode."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return images.flatten(1)


def test_no_network_is_ever_run_in_training_mode() -> None:
    embed(Refuses().train(), image_store(), torch.tensor([0.5]), torch.tensor([0.3]))
