"""Evaluation of Conv4 at 84x84 on episodes of 12,000 images: easyfsl and learn2learn as they are used, and ours.

    uv run --group bench python benchmarks/evaluation.py --out benchmarks/results/evaluation.md

The peers put every episode's 100 images through the network, ours every image once. All use one network and the same
episodes. Peers are timed on a few episodes a round and scaled to the number of episodes, embedding is timed on part of the
images and scaled to all; the whole of ours is then run once without scaling. Images lie in memory, normalised, for the
peers; ours starts from uint8.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import product

import harness
import torch
from easyfsl.methods import PrototypicalNetworks
from learn2learn.nn import PrototypicalClassifier
from torch import Tensor, nn

from fewshot_mcl.data import EpisodeSampler, ImageStore
from fewshot_mcl.data.episodes import Episodes
from fewshot_mcl.evaluation.fewshot import embed, evaluate_episodes, normalise
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.networks.counting import count

CLASSES, PER_CLASS, SIZE, WAY, SHOT, QUERY = 20, 600, 84, 5, 5, 15
MEAN, STD = torch.full((3,), 0.5), torch.full((3,), 0.25)


def images_with_classes() -> ImageStore:
    """Noise around a pattern for each class, so that accuracies are neither chance nor perfect."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(CLASSES, 3, 6, 6, generator=generator)
    patterns = nn.functional.interpolate(patterns, SIZE, mode="bilinear") * 24 + 116
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    images = torch.empty(len(labels), 3, SIZE, SIZE, dtype=torch.uint8)
    for row, label in enumerate(labels):
        noise = torch.randn(3, SIZE, SIZE, generator=generator) * 90
        images[row] = (patterns[label] + noise).clamp(0, 255).to(torch.uint8)
    return ImageStore(images, labels, [str(c) for c in range(CLASSES)])


def settled(network: nn.Module, store: ImageStore) -> nn.Module:
    """With the batch statistics of some images, as a trained network has them."""
    with torch.no_grad():
        for rows in torch.randperm(len(store), generator=torch.Generator().manual_seed(1))[:512].split(64):
            network(normalise(store.images[rows], MEAN, STD))
    return network.eval()


def setting() -> tuple[ImageStore, nn.Module, EpisodeSampler]:
    """The images, the network and the episodes that all contestants share."""
    store = images_with_classes()
    torch.manual_seed(0)
    network = settled(create_backbone("conv4", image_size=SIZE), store)
    return store, network, EpisodeSampler(store.labels, way=WAY, shot=SHOT, query=QUERY)


def usual_order(network: nn.Module) -> nn.Module:
    """The same network as everyone writes it: ReLU before the max-pool. Values are equal to the last digit."""
    network = copy.deepcopy(network)
    for stage in network.stages:
        pool, relu = stage[2], stage[3]
        stage[2], stage[3] = relu, pool
    return network


def tensors(store: ImageStore, episodes: Episodes, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Support images, their labels, query images and theirs, normalised float32."""
    support, query = episodes.support[number].flatten(), episodes.query[number].flatten()
    each = [normalise(store.images[rows], MEAN, STD).contiguous() for rows in (support, query)]
    labels = [torch.arange(WAY).repeat_interleave(n) for n in (SHOT, QUERY)]
    return each[0], labels[0], each[1], labels[1]


@torch.no_grad()
def by_easyfsl(network: nn.Module, episode: tuple[Tensor, ...]) -> float:
    support, support_labels, query, query_labels = episode
    method = PrototypicalNetworks(network).eval()
    method.process_support_set(support, support_labels)
    return float((method(query).argmax(1) == query_labels).double().mean())


@torch.no_grad()
def by_learn2learn(network: nn.Module, episode: tuple[Tensor, ...]) -> float:
    support, support_labels, query, query_labels = episode
    classifier = PrototypicalClassifier(network(support), support_labels)
    return float((classifier(network(query)).argmax(1) == query_labels).double().mean())


@torch.no_grad()
def in_float64(network: nn.Module, episode: tuple[Tensor, ...]) -> float:
    """The accuracy without rounding, by the plain formula."""
    network = copy.deepcopy(network).double()
    support, support_labels, query, query_labels = episode
    features, queries = network(support.double()), network(query.double())
    centres = torch.stack([features[support_labels == k].mean(0) for k in range(WAY)])
    nearest = (queries[:, None] - centres).square().sum(-1).argmin(1)
    return float((nearest == query_labels).double().mean())


def easyfsl(count: int) -> harness.Work:
    """`count` episodes."""
    return _episode_by_episode(by_easyfsl, count)


def learn2learn(count: int) -> harness.Work:
    """`count` episodes."""
    return _episode_by_episode(by_learn2learn, count)


def _episode_by_episode(score: Callable[..., float], count: int) -> harness.Work:
    store, network, sampler = setting()
    network, episodes = usual_order(network), sampler.sample(count)
    few = [tensors(store, episodes, number) for number in range(count)]
    return lambda: [score(network, episode) for episode in few]


def embedding(count: int, precision: torch.dtype | None = None) -> harness.Work:
    """Features of `count` images."""
    store, network, _ = setting()
    rows = slice(None, None, len(store) // count)
    part = ImageStore(store.images[rows].clone(), store.labels[rows], store.class_names)
    return lambda: float(embed(network, part, MEAN, STD, precision)[0, 0])


def from_features(count: int) -> harness.Work:
    """`count` episodes, from features that are there."""
    sampler = EpisodeSampler(torch.arange(CLASSES).repeat_interleave(PER_CLASS), way=WAY, shot=SHOT, query=QUERY)
    features = torch.randn(CLASSES * PER_CLASS, 1600)
    return lambda: evaluate_episodes(features, sampler.sample(count)).mean


def agreement(episodes: int, compared: int) -> tuple[dict[str, int], list[str]]:
    """In how many of the compared episodes each peer's accuracy differs from ours; and what the whole of ours took and found."""
    store, network, sampler = setting()
    drawn, usual = sampler.sample(episodes), usual_order(network)
    start = time.perf_counter()
    features = embed(network, store, MEAN, STD)
    embedded = time.perf_counter()
    result = evaluate_episodes(features, drawn)
    end = time.perf_counter()
    rounded = evaluate_episodes(embed(network, store, MEAN, STD, precision=torch.bfloat16), drawn)
    differ = {"easyfsl": 0, "learn2learn": 0}
    right = {"ours": 0, **differ}  # of float64, on the episodes that differ
    for number in range(compared):
        episode = tensors(store, drawn, number)
        found = {"easyfsl": by_easyfsl(usual, episode), "learn2learn": by_learn2learn(usual, episode)}
        found["ours"] = float(result.accuracies[number])
        unlike = [name for name in differ if abs(found[name] - found["ours"]) > 1e-9]
        if unlike:
            exact = in_float64(usual, episode)
            for name in unlike:
                differ[name] += 1
            for name, value in found.items():
                right[name] += abs(value - exact) < 1e-9
    verdict = ", ".join(f"{name} {value}" for name, value in right.items())
    lines = [
        f"Of the {compared} compared episodes, those that differ were computed again in float64; equal to that: {verdict}.",
        f"Ours without scaling: {embedded - start:.1f} s to embed all images, {end - embedded:.2f} s for {episodes} episodes: "
        f"{100 * result.mean:.2f} ± {100 * result.ci95:.2f} %.",
        f"bfloat16, on request only, changes that accuracy by {100 * (rounded.mean - result.mean):+.3f} points, and that of "
        f"{int((rounded.accuracies != result.accuracies).sum())} of {episodes} episodes.",
    ]
    return differ, lines


def main() -> None:
    chosen = harness.arguments(__doc__ or "", episodes=600, many=10_000, timed=2, embedded=500, compared=40)
    differ, lines = agreement(chosen.episodes, chosen.compared)
    times = harness.take_turns(
        {
            "easyfsl": harness.Apart(easyfsl, chosen.timed),
            "learn2learn": harness.Apart(learn2learn, chosen.timed),
            "embedding": harness.Apart(embedding, chosen.embedded, environment=harness.OURS),
            "bfloat16": harness.Apart(embedding, chosen.embedded, torch.bfloat16, environment=harness.OURS),
            "episodes": harness.Apart(from_features, chosen.episodes, environment=harness.OURS),
            "many": harness.Apart(from_features, chosen.many, environment=harness.OURS),
            "product": harness.product_rate(),
        },
        chosen.rounds,
        least=0.0,
    )
    images = CLASSES * PER_CLASS
    ours = [seconds * images / chosen.embedded for seconds in times.seconds["embedding"]]
    rows = []
    for peer, number, name in product(differ, (chosen.episodes, chosen.many), ("episodes", "many")):
        if getattr(chosen, name) == number:
            per_round = zip(times.seconds[peer], ours, times.seconds[name])
            ratios = [p * number / chosen.timed / (e + s) for p, e, s in per_round]
            rows.append([peer, f"{number:,}", harness.spread(ratios), f"{differ[peer]} of {chosen.compared}"])
    operations = 2 * count(create_backbone("conv4", image_size=SIZE), SIZE, 3).multiply_adds * chosen.embedded
    rates = zip(times.seconds["embedding"], times.seconds["product"])
    share = [operations / e / (2 * 2048**3 / g) for e, g in rates]
    ms = {name: 1000 * times.median(name) for name in times.seconds}
    parts = [
        f"Conv4-64, {SIZE}x{SIZE}, {images:,} images, {WAY}-way {SHOT}-shot, {QUERY} queries a class. Each "
        f"contestant in its own process; peers timed on {chosen.timed} episodes a round, embedding on {chosen.embedded} images. "
        f"easyfsl takes {ms['easyfsl'] / chosen.timed:.0f} ms for an episode, ours {ms['embedding'] / chosen.embedded:.2f} "
        f"ms for an image and {ms['many'] / chosen.many:.3f} ms for an episode.",
        harness.table(["peer", "episodes", "times as long as ours", "episodes whose accuracy differs"], rows),
        f"Embedding reaches {harness.spread(share)} of the rate of a float32 matrix product (2048^3, same rounds); in bfloat16 "
        f"it is {times.ratio('embedding', 'bfloat16')} times as fast as in float32.",
        *lines,
    ]
    harness.report("Evaluation on episodes", parts, chosen.out, packages=["easyfsl", "learn2learn"])


if __name__ == "__main__":
    main()
