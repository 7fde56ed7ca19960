"""A training step of four peers: ours beside the same step written the published way, and where the time goes.

    uv run --group bench python benchmarks/step.py --out benchmarks/results/step.md

Both start from the same weights, images and negatives; timed are forward pass, losses, backward pass, the update of the banks
and the optimizer, and in ours the making of the batch as well. The published way is in torch's own layout, ReLU before the
pool, the contrast by a gather for every ordered pair and autograd through it. Each contestant has a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import harness
import torch
from contrast import published
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.profiler import ProfilerActivity, profile, record_function

from fewshot_mcl.config import resolve
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.networks.counting import count
from fewshot_mcl.training.episodic import EpisodicTask
from fewshot_mcl.training.supervised import SupervisedTask

Task = EpisodicTask | SupervisedTask
WAY, SHOT, QUERY, PEERS = 5, 5, 15, 4
FEW_SHOT = {"way": WAY, "shot": SHOT, "query": QUERY}
CASES: dict[
    str, tuple[str, dict[str, Any], tuple[int, int, int]]
] = {  # task, settings, (classes, images a class, side)
    "ResNet-32, batch 64, K = 256": ("classify", {"backbone": "resnet32", "batch": 64}, (100, 500, 32)),
    "ResNet-32, batch 64, K = 16,384": ("classify", {"backbone": "resnet32", "batch": 64}, (100, 500, 32)),
    "Conv4, 84x84, 5-way 5-shot, K = 256": ("few-shot", FEW_SHOT, (64, 600, 84)),
}
PARTS = ("batch, losses, record", "peers, forward", "contrast", "backward", "optimizer")
OPERATIONS = {  # by the beginnings of their names; the first that fits
    "convolution, backward": ("aten::convolution_backward",),
    "convolution": ("aten::mkldnn_convolution",),
    "batch norm, backward": ("aten::native_batch_norm_backward",),
    "batch norm": ("aten::native_batch_norm",),
    "ReLU, pooling, and their backward": ("aten::clamp_min", "aten::threshold", "aten::max_pool2d", "aten::mean"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "fetching and writing rows": ("aten::index", "aten::_index", "aten::gather", "aten::scatter"),
    "optimizer": ("aten::_foreach", "aten::_fused"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_"),
}


def build(name: str, precision: str = "float32") -> Task:
    """The task that the command line would train, on images of noise."""
    kind, settings, (classes, each, side) = CASES[name]
    settings = settings | {"precision": precision, "method": "mcl-okd", "peers": PEERS}
    negatives = name.rpartition("= ")[2].replace(",", "")
    objective = [f"objective.num_negatives={negatives}", "objective.negatives=other-class"]
    extra = ["val_share=0", "augment=none"] if kind == "classify" else []
    config = resolve(None, settings, objective + extra, task=kind)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (classes * each, 3, side, side), dtype=torch.uint8, generator=generator)
    store = ImageStore(images, torch.arange(classes).repeat_interleave(each), [str(c) for c in range(classes)])
    device = torch.device("cpu")
    if kind == "classify":
        return SupervisedTask(config, store, None, device)  # type: ignore[arg-type]
    return EpisodicTask(config, store, store, device)  # type: ignore[arg-type]


class Step:
    """A step of ours, always of batch 0: the task's own, and what the loop does with it."""

    def __init__(self, name: str, precision: str) -> None:
        self.task = build(name, precision)
        self.optimizer = self.task.optimizer(self.task.modules().parameters())

    def __call__(self) -> float:
        with record_function("step"):
            terms, _ = self.task.step(0)
        self.optimizer.zero_grad(set_to_none=True)
        with record_function("backward"):
            terms["total"].backward()
        with record_function("optimizer"):
            self.optimizer.step()
        return float(terms["total"].detach())


class Published:
    """The same step in the published formulation, on what peers and contrast of ours see in it."""

    def __init__(self, name: str) -> None:
        self.task = build(name)
        seen: dict[str, Tensor] = {}
        hooks = [
            self.task.peers.register_forward_pre_hook(lambda _, given: seen.update(images=given[0].contiguous())),
            self.task.objective.contrast.register_forward_pre_hook(lambda _, given: seen.update(rows=given[1])),
        ]
        modules = self.task.modules()
        before = {key: value.clone() for key, value in modules.state_dict().items()}
        self.task.step(0)
        modules.load_state_dict(before)
        for hook in hooks:
            hook.remove()
        self.images, self.rows = seen["images"], seen["rows"]
        self.episodic = isinstance(self.task, EpisodicTask)
        own = torch.arange(WAY).repeat_interleave(QUERY)
        self.targets = own if self.episodic else self.task.train.labels[self.rows]
        modules.to(memory_format=torch.contiguous_format)
        for stage in self.task.peers.modules():
            if isinstance(stage, nn.Sequential) and isinstance(stage[-2], nn.MaxPool2d):
                stage[-1], stage[-2] = stage[-2], stage[-1]  # ReLU first, as everyone writes it
        self.optimizer = self.task.optimizer(modules.parameters())

    def logits(self, features: Tensor, classified: Tensor | None) -> Tensor:
        """(M, B', C)."""
        if classified is not None:
            return classified
        support, query = features.split([WAY * SHOT, WAY * QUERY], 1)
        return -torch.cdist(query, support.unflatten(1, (WAY, SHOT)).mean(2)).square()

    def __call__(self) -> float:
        objective, contrast = self.task.objective, self.task.objective.contrast
        with record_function("step"):
            out = self.task.peers(self.images)
            logits = self.logits(out.features, out.logits)
            loss = torch.stack([nnf.cross_entropy(each, self.targets) for each in logits]).sum()
            teacher = nnf.softmax(logits.mean(0).detach() / objective.temperature, 1)
            student = nnf.log_softmax(logits[-1] / objective.temperature, 1)
            loss = loss + objective.temperature**2 * nnf.kl_div(student, teacher, reduction="batchmean")
            negatives = contrast.draw(self.rows).long()
            with record_function("contrast"):
                embeddings = contrast.embed(out.features)
                loss = loss + objective.beta * published(embeddings, contrast.banks, self.rows, negatives)
                contrast._advance(embeddings.detach(), self.rows, contrast.normalisers)
        self.optimizer.zero_grad(set_to_none=True)
        with record_function("backward"):
            loss.backward()
        with record_function("optimizer"):
            self.optimizer.step()
        return float(loss.detach())


def profiled(kind: str, *options: str) -> harness.Work:
    """Times of a step's parts and operations in seconds, of either kind of step."""
    step = Published(*options) if kind == "published" else Step(*options)
    for name, module in (("peers, forward", step.task.peers), ("contrast", step.task.objective.contrast)):
        ranges: list[Any] = []
        module.register_forward_pre_hook(lambda *_, name=name, ranges=ranges: ranges.append(_entered(name)))
        module.register_forward_hook(lambda *_, ranges=ranges: ranges.pop().__exit__(None, None, None))

    def work() -> tuple[dict[str, float], dict[str, float]]:
        step()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            step()
        events = seen.key_averages()
        total = {event.key: event.cpu_time_total / 1e6 for event in events}
        own = {event.key: event.self_cpu_time_total / 1e6 for event in events}
        parts = {name: total.get(name, 0.0) for name in PARTS}
        parts[PARTS[0]] = total["step"] - total["peers, forward"] - total["contrast"]
        return parts, by_operation(own)

    return work


def _entered(name: str) -> record_function:
    range_ = record_function(name)
    range_.__enter__()
    return range_


def by_operation(own: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each kind of operation; "other" is the rest."""
    found = dict.fromkeys([*OPERATIONS, "other"], 0.0)
    for key, seconds in own.items():
        kind = next((kind for kind, starts in OPERATIONS.items() if key.startswith(starts)), "other")
        found[kind] += seconds
    return found


def ratios_part(rounds: int) -> Iterator[str]:
    """Times beside the published step, the first losses, and the share of the machine's arithmetic."""
    rows = []
    for name in CASES:
        work: dict[str, harness.Work] = {"published": harness.Apart(Published, name)}
        for precision in ("float32", "bfloat16"):
            work[precision] = harness.Apart(Step, name, precision, environment=harness.OURS)
        losses = {each: step() for each, step in work.items()}
        work["product"] = harness.product_rate()
        times = harness.take_turns(work, rounds if "16,384" not in name else 2, least=0, warm=True)
        for precision in ("float32", "bfloat16"):
            difference = abs(losses[precision] / losses["published"] - 1)
            rows.append([
                name, precision, times.ratio("published", precision), f"{times.median('published') * 1e3:,.0f}",
                f"{times.median(precision) * 1e3:,.0f}", f"{difference:.1e}",
                arithmetic(name) / (2 * 2048**3) * times.median("product") / times.median(precision),
            ])  # fmt: skip
    yield "## Beside the published step"
    yield harness.table(["", "precision", "ratio", "published ms", "ours ms", "difference of the loss", "share"], rows)
    yield (
        "The difference is relative, of the first step's loss, from the published one in float32. The share is that of the "
        "time which the network's arithmetic (forward, and twice that for backward) takes at the rate of a float32 product of "
        "two matrices of 2,048."
    )


def arithmetic(name: str) -> float:
    """Floating-point operations of a step's convolutions and linear layers: forward, and twice as many backward."""
    task = build(name)
    return 3 * 2 * task.images_per_step * count(task.peers, task.size).multiply_adds


def profile_part() -> Iterator[str]:
    """Where the time of one step goes."""
    kinds = {"published": ("published",), "float32": ("ours", "float32"), "bfloat16": ("ours", "bfloat16")}
    for name in CASES:
        found = {}
        for kind, (whose, *precision) in kinds.items():
            environment = {} if whose == "published" else harness.OURS
            found[kind] = harness.Apart(profiled, whose, name, *precision, environment=environment)()
        yield f"## {name}: parts of a step in ms (share), from the profiler"
        for number, what in enumerate(("part", "operation")):
            names = list(found["float32"][number])
            yield harness.table(
                [what, *kinds], [[row, *(_cell(each[number], row) for each in found.values())] for row in names]
            )


def _cell(values: dict[str, float], row: str) -> str:
    return f"{1000 * values[row]:,.0f} ({values[row] / sum(values.values()):.0%})"


def main() -> None:
    given = harness.arguments(str(__doc__).splitlines()[0])
    harness.report("A training step", [*ratios_part(given.rounds), *profile_part()], given.out)


if __name__ == "__main__":
    main()
