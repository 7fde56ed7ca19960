"""How time and memory of a training step grow with peers, negatives, images and episodes, and evaluation with episodes.

    uv run --group bench python benchmarks/growth.py --out benchmarks/results/growth.md

The curves go into growth.svg beside the report. An exponent e says that the cost grows as size ** e; it is fitted by least
squares to the logarithms of the upper half of a range, where fixed costs count little.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import harness  # first: it pins the threads
import numpy as np
import torch
from matplotlib import pyplot as plt

from fewshot_mcl import EpisodeSampler, PeerNetwork, PeerOutputs, create_objective, evaluate_episodes

CLASSES, WIDTH, BATCH = 100, 64, 64
Step = Callable[[], object]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # of Okabe and Ito
MARKERS = "osD^v"


@dataclass
class Curve:
    """Cost against size.

    Attributes:
        name, unit: what grows, and what is counted of it.
        sizes: rising.
        seconds, memory: of one step each; the latter in bytes beyond what was there before it.
    """

    name: str
    unit: str
    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def exponent(self, values: list[float] | list[int]) -> str:
        """Of the upper half of the range, the middle included; "-" where nothing was seen to be used."""
        half = min(len(values) // 2, len(values) - 2)
        x, y = np.log(self.sizes[half:]), np.array(values[half:], float)
        return f"{np.polyfit(x, np.log(y), 1)[0]:.2f}" if len(values) > 1 and (y > 0).all() else "-"


def contrast_step(rows: int, negatives: int | str, peers: int = 4) -> Step:
    """Forward, backward and bank update of the contrast alone: batches of 64, embeddings of 128."""
    labels = torch.arange(rows) % CLASSES
    options = {"negatives": "all"} if negatives == "all" else {"num_negatives": negatives}
    objective = create_objective(
        "mcl", num_peers=peers, num_classes=CLASSES, feature_dim=WIDTH, labels=labels, **options
    )
    indices = torch.randperm(rows)[:BATCH]
    features = torch.randn(peers, BATCH, WIDTH, requires_grad=True)
    return lambda: objective.feature_terms(PeerOutputs(features), indices)["contrast"].backward()


def peers_step(peers: int) -> Step:
    """A whole step of MCL-OKD: ResNet-32 peers, 32 images of 32x32, K = 256 of 10,000."""
    network = PeerNetwork("resnet32", num_peers=peers, num_classes=CLASSES, share="last-two")
    labels = torch.arange(10_000) % CLASSES
    method = "mcl-okd" if peers > 1 else "baseline"
    objective = create_objective(
        method, num_peers=peers, num_classes=CLASSES, feature_dim=network.feature_dim, labels=labels
    )
    images, indices = torch.randn(32, 3, 32, 32), torch.randperm(len(labels))[:32]
    return lambda: objective(network(images), labels[indices], indices=indices)["total"].backward()


def episode_step(way: int, shot: int) -> Step:
    """An episode of two Conv4 peers on images of 28x28, with as many queries as shots: classified by class means."""
    network = PeerNetwork("conv4", num_peers=2, num_classes=None, share="last-two", image_size=28)
    labels = torch.arange(CLASSES).repeat_interleave(2 * shot)
    objective = create_objective("dml", num_peers=2, num_classes=way, feature_dim=network.feature_dim)
    sampler = EpisodeSampler(labels, way=way, shot=shot, query=shot, seed=0)
    images, targets = torch.randn(len(labels), 3, 28, 28), torch.arange(way).repeat_interleave(shot)

    def step() -> None:
        episode = sampler.sample(1)
        rows = torch.cat([episode.support[0].flatten(), episode.query[0].flatten()])
        features = network(images[rows]).features
        centres = features[:, : way * shot].unflatten(1, (way, shot)).mean(2)
        logits = -torch.cdist(features[:, way * shot :], centres).square()
        objective(PeerOutputs(features, logits), targets)["total"].backward()

    return step


def evaluation(episodes: int) -> Step:
    """5-way 5-shot episodes of 15 queries from 12,000 embeddings of 1,600 numbers, drawing them included."""
    labels = torch.arange(20).repeat_interleave(600)
    features = torch.randn(len(labels), 1600)
    sampler = EpisodeSampler(labels, way=5, shot=5, query=15, seed=0)
    return lambda: evaluate_episodes(features, sampler.sample(episodes))


def ranges(largest: float) -> Iterator[tuple[Curve, list[int], Callable[[int], Step]]]:
    """Every curve, its sizes, and the work at a size."""

    def upto(*sizes: int) -> list[int]:
        return [size for size in sizes if size <= largest * sizes[-1]]

    yield Curve("peers", "M"), upto(1, 2, 4, 8, 16), peers_step
    yield Curve("negatives", "K of N = 50,000"), upto(256, 1024, 4096, 16384), lambda k: contrast_step(50_000, k)
    rows = upto(10_000, 31_623, 100_000, 316_228, 1_000_000)
    yield Curve("images, K = 256", "N"), rows, lambda n: contrast_step(n, 256)
    yield Curve("images, all negatives", "N"), rows, lambda n: contrast_step(n, "all")
    yield Curve("way", "classes of 5 + 5 images"), upto(5, 10, 20, 40, 80), lambda way: episode_step(way, 5)
    yield (
        Curve("shot", "support images of 5 classes, as many queries"),
        upto(1, 4, 16, 64),
        lambda s: episode_step(5, s),
    )
    yield Curve("evaluation", "episodes"), upto(600, 2000, 6000, 20_000), evaluation


def measure(curve: Curve, size: int, work: Step, rounds: int, least: float) -> None:
    """Add a point: the median of several steps, or the only one where a step is long."""
    work()
    seconds: list[float] = []
    while len(seconds) < rounds and sum(seconds) < least:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    curve.sizes.append(size)
    curve.seconds.append(statistics.median(seconds))
    ctypes.CDLL(None).malloc_trim(0)  # what glibc has kept of earlier steps would be used again, unseen
    curve.memory.append(harness.peak_memory(work))
    print(f"{curve.name} {size:,}: {1000 * curve.seconds[-1]:.4g} ms, {curve.memory[-1] / 2**20:.4g} MiB", flush=True)


def plot(curves: list[Curve], path: Path) -> None:
    """Time above, memory below; a column for what grows: the method, the images, the episodes."""
    plt.rcParams["svg.fonttype"] = "none"  # letters as text: a tenth of the size
    columns = [("contrast and peers", [*curves[:2], curves[-1]]), ("images", curves[2:4]), ("episodes", curves[4:-1])]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), constrained_layout=True)
    for column, (title, drawn) in enumerate(columns):
        for number, curve in enumerate(drawn):
            style = {"color": COLOURS[number], "marker": MARKERS[number], "label": f"{curve.name} ({curve.unit})"}
            axes[0, column].loglog(curve.sizes, [1000 * s for s in curve.seconds], **style)
            axes[1, column].loglog(curve.sizes, [max(m, 1) / 2**20 for m in curve.memory], **style)
        axes[0, column].set(title=title, xlabel="size", ylabel="time of a step (ms)")
        axes[1, column].set(xlabel="size", ylabel="peak memory beyond before (MiB)", ylim=(0.05, None))
        axes[1, column].legend(fontsize=8, loc="lower right")  # where there is room: little memory is used
        for row in range(2):
            axes[row, column].grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    asked = harness.arguments(__doc__ or "", largest=1.0, least=1.0)
    torch.manual_seed(0)
    curves = []
    for curve, sizes, make in ranges(asked.largest):
        for size in sizes:
            measure(curve, size, make(size), asked.rounds, asked.least)
        curves.append(curve)
    exact = Curve("all negatives", "N = 50,000")
    measure(exact, 50_000, contrast_step(50_000, "all"), asked.rounds, asked.least)
    image = (asked.out or Path("growth.md")).with_suffix(".svg")
    plot([*curves, exact], image)
    points = [
        [curve.name, f"{size:,}", 1000 * seconds, memory / 2**20]
        for curve in [*curves, exact]
        for size, seconds, memory in zip(curve.sizes, curve.seconds, curve.memory)
    ]
    fitted = [
        [c.name, c.unit, f"{c.sizes[0]:,} to {c.sizes[-1]:,}", c.exponent(c.seconds), c.exponent(c.memory)]
        for c in curves
    ]
    about = [f"* {name}: {' '.join((work.__doc__ or '').split())}" for name, work in ABOUT.items()]
    harness.report(
        "Growth",
        [
            "\n".join(about),
            "An exponent e says that the cost grows as size ** e: least squares on logarithms of the upper half of the range.",
            harness.table(["", "size", "range", "exponent of time", "exponent of memory"], fitted),
            f"![time and memory against size]({image.name})",
            harness.table(["", "size", "ms", "MiB"], points),
        ],
        asked.out,
        ["matplotlib"],
    )


ABOUT = {"peers": peers_step, "negatives, images": contrast_step, "way, shot": episode_step, "evaluation": evaluation}

if __name__ == "__main__":
    main()
