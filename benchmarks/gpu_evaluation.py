"""Episodes from images embedded once, beside every episode's images put through the network; part of gpu.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import harness
import torch
from gpu_device import Bench, use_precision
from torch import Tensor, nn

from fewshot_mcl import draws
from fewshot_mcl.data.episodes import Episodes, EpisodeSampler
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.evaluation.fewshot import embed, evaluate_episodes, normalise
from fewshot_mcl.networks import create_backbone
from fewshot_mcl.networks.counting import count

CLASSES, WAY, SHOT, QUERY = 20, 5, 5, 15
GOAL = (10_000, 0.1)  # episodes, seconds


class Setting:
    """12,000 images of 84x84 on the host, a Conv4 on the device whose batch statistics are settled, and episodes."""

    def __init__(self, bench: Bench) -> None:
        self.side, each = (32, 20) if bench.small else (84, 600)
        generator = torch.Generator(bench.device).manual_seed(0)
        labels = torch.arange(CLASSES).repeat_interleave(each)
        patterns = torch.rand(CLASSES, 3, 6, 6, generator=generator, device=bench.device)
        patterns = nn.functional.interpolate(patterns, self.side, mode="bilinear") * 24 + 116
        images = torch.empty(len(labels), 3, self.side, self.side, dtype=torch.uint8)
        for rows in torch.arange(len(labels)).split(500):
            noise = torch.randn(len(rows), *images.shape[1:], generator=generator, device=bench.device) * 90
            images[rows] = (patterns[labels[rows].to(bench.device)] + noise).clamp(0, 255).to("cpu", torch.uint8)
        self.store = ImageStore(images, labels, [str(c) for c in range(CLASSES)])
        self.mean, self.std = (torch.full((3,), value, device=bench.device) for value in (0.5, 0.25))
        with draws.seeded(0, "network"):
            self.network = create_backbone("conv4", image_size=self.side).to(bench.device)
        with torch.no_grad():
            self.network(self._put(torch.arange(0, len(labels), 20)))
        self.usual = copy.deepcopy(self.network.eval())
        for stage in self.usual.stages:  # ReLU before the max-pool, as everyone writes it: the values are the same
            assert isinstance(stage, nn.Sequential)
            stage[2], stage[3] = stage[3], stage[2]
        self.sampler = EpisodeSampler(labels, way=WAY, shot=SHOT, query=QUERY)
        self.counts = (10, 50) if bench.small else (600, GOAL[0])

    def _put(self, rows: Tensor) -> Tensor:
        return normalise(self.store.images[rows].to(self.mean.device), self.mean, self.std).contiguous()

    @torch.no_grad()
    def straightforward(self, episodes: Episodes) -> list[float]:
        """Accuracy of each episode, by putting its images through the network."""
        found = []
        for support, query in zip(episodes.support, episodes.query):
            features, queries = self.usual(self._put(support.flatten())), self.usual(self._put(query.flatten()))
            centres = features.unflatten(0, (WAY, SHOT)).mean(1)
            nearest = torch.cdist(queries, centres).argmin(1).cpu()
            found.append(float((nearest == torch.arange(WAY).repeat_interleave(QUERY)).double().mean()))
        return found

    def embedded(self, precision: torch.dtype | None = None) -> Tensor:
        """(N, D)."""
        return embed(self.network, self.store, self.mean, self.std, precision)


def evaluation_part(bench: Bench) -> Iterator[str]:
    """Embedding, drawing and evaluating, each timed, and the whole beside the straightforward way."""
    use_precision("float32")
    setting = Setting(bench)
    few, counts = (2 if bench.small else 5), setting.counts
    drawn = {number: setting.sampler.sample(number) for number in counts}
    features, mib = bench.peak(setting.embedded)
    few_episodes = drawn[counts[0]][:few]
    straight, straight_mib = bench.peak(lambda: setting.straightforward(few_episodes))
    works: dict[str, harness.Work] = {
        "straightforward": lambda: setting.straightforward(few_episodes),
        "embedding": setting.embedded,
        "bfloat16": lambda: setting.embedded(torch.bfloat16),
    }
    for number in counts:
        works[f"draw {number}"] = lambda n=number: setting.sampler.sample(n)
        works[f"evaluate {number}"] = lambda n=number: evaluate_episodes(features, drawn[n])
    times = bench.turns(works)
    results = {number: evaluate_episodes(features, drawn[number]) for number in counts}
    differ = sum(abs(a - float(b)) > 1e-9 for a, b in zip(straight, results[counts[0]].accuracies))
    yield "## 3. Evaluation: Conv4, 5-way 5-shot, 15 queries a class"
    yield harness.table(
        ["episodes", "straightforward s", "ours s", "ratio", "draw s", "evaluate s", "accuracy %"],
        [_row(times, number, few, 100 * results[number].mean) for number in counts],
    )
    images = len(setting.store)
    operations = 2 * count(setting.network, setting.side).multiply_adds * images
    yield (
        f"{images:,} images of {setting.side}x{setting.side}, embedded from uint8 on the host at "
        f"{images / times.median('embedding'):,.0f} images/s, {operations / times.median('embedding') / 1e12:.3g} TFLOP/s "
        f"(bfloat16: {images / times.median('bfloat16'):,.0f} images/s); peak {mib:,.0f} MiB, straightforward "
        f"{straight_mib:,.0f} MiB. The straightforward way puts every episode's images through the network, timed on {few} "
        f"episodes and scaled; the accuracy of {differ} of these {few} differs. Ours: embed, draw, evaluate."
    )
    draw, evaluate = _evaluation(times, counts[-1])
    verdicts = ["met" if each <= GOAL[1] else "missed" for each in (evaluate, draw + evaluate)]
    if bench.small:
        verdicts = ["not judged at small sizes"] * 2
    yield (
        f"Goal: {GOAL[0]:,} episodes in {GOAL[1]} s after embedding: **{verdicts[0]}** ({evaluate:.3g} s); with their draw, "
        f"which the host does: **{verdicts[1]}** ({draw + evaluate:.3g} s)."
    )


def _evaluation(times: harness.Times, number: int) -> tuple[float, float]:
    return times.median(f"draw {number}"), times.median(f"evaluate {number}")


def _row(times: harness.Times, number: int, few: int, accuracy: float) -> list[object]:
    draw, evaluate = (times.seconds[f"{what} {number}"] for what in ("draw", "evaluate"))
    ours = [e + d + v for e, d, v in zip(times.seconds["embedding"], draw, evaluate)]
    straight = [seconds * number / few for seconds in times.seconds["straightforward"]]
    whole = harness.Times({"straightforward": straight, "ours": ours})
    each = [whole.median("straightforward"), whole.median("ours"), whole.ratio("straightforward", "ours")]
    return [f"{number:,}", *each, *_evaluation(times, number), f"{accuracy:.2f}"]
