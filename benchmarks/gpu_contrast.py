"""The contrastive loss by form, beside what the device can do; part of gpu.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import harness
import torch
from contrast import CLASSES, DIM, EPS, PEERS, TEMPERATURE, Case, published
from gpu_device import Bench, use_precision
from torch import Tensor

from fewshot_mcl import draws
from fewshot_mcl.objectives import contrast_plan
from fewshot_mcl.objectives.candidates import Candidates, Dense, Gathered, counted, other_classes
from fewshot_mcl.objectives.contrast import MultiViewContrast
from fewshot_mcl.objectives.multi_view import contrast_pairs, expected

Loss = Callable[[Tensor, Tensor], Tensor]  # of embeddings (M, B, D) and banks (M, N, D)


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches in this process: operations a second by precision, bytes a second copied and gathered."""

    products: dict[str, float]
    copied: float
    gathered: float


def ceilings(bench: Bench, banks: Tensor) -> Ceilings:
    """Measured one after another; bytes copied count twice, those of gathered rows once."""
    size, numbers, rows = (256, 1 << 20, 1 << 12) if bench.small else (8192, 1 << 28, 1 << 20)
    products = {}
    for precision in bench.precisions:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b, c = (torch.ones(size, size, dtype=dtype, device=bench.device).normal_() for _ in range(3))
        use_precision(precision)
        products[precision] = 2 * size**3 / _seconds(bench, lambda a=a, b=b, c=c: torch.mm(a, b, out=c))
    use_precision("float32")
    source = torch.ones(numbers, device=bench.device)
    target, flat = torch.empty_like(source), banks.flatten(0, 1)
    ids = torch.randint(len(flat), (rows,), generator=torch.Generator().manual_seed(0)).to(bench.device)
    fetched = flat.new_empty(rows, flat.shape[1])
    copied = 2 * source.nbytes / _seconds(bench, lambda: target.copy_(source))
    return Ceilings(
        products, copied, fetched.nbytes / _seconds(bench, lambda: torch.index_select(flat, 0, ids, out=fetched))
    )


def _seconds(bench: Bench, work: harness.Work) -> float:
    return bench.turns({"work": work}).median("work")


def published_all(embeddings: Tensor, banks: Tensor, positives: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The expectation over negatives written plainly: all rows, weighted, for every ordered pair, under autograd."""
    rows, batch, total = banks.shape[1], len(positives), embeddings.new_zeros(())
    c, weights = count / rows, allowed * (count / allowed.sum(1, keepdim=True))
    for a, b in ((a, b) for a in range(PEERS) for b in range(PEERS) if a != b):
        x = torch.exp(embeddings[a] @ banks[b].T / TEMPERATURE)
        positive = torch.exp((embeddings[a] * banks[b][positives]).sum(1) / TEMPERATURE)
        z = (rows * (positive.sum() + (x * weights).sum()) / (batch * (count + 1))).detach()
        negative = torch.log(c / (x / z + c + EPS)) * weights
        total = total - (torch.log(positive / (positive + (c + EPS) * z)).sum() + negative.sum()) / batch
    return total


class Losses:
    """The loss of one batch in every form: embeddings and banks in, a scalar that can be derived out."""

    def __init__(self, case: Case, contrast: MultiViewContrast, count: int) -> None:
        self.contrast, self.indices, self.count = contrast, case.indices, count
        self.ids = contrast.draw(case.indices)
        self.rows = contrast.banks.shape[1]

    def straightforward(self, embeddings: Tensor, banks: Tensor) -> Tensor:
        return published(embeddings, banks, self.indices, self.ids.long())

    def straightforward_all(self, embeddings: Tensor, banks: Tensor) -> Tensor:
        own = self.contrast.labels[self.indices]
        allowed = (own[:, None] != self.contrast.labels).to(banks.dtype)
        return published_all(embeddings, banks, self.indices, allowed, self.count)

    def gather(self, embeddings: Tensor, banks: Tensor) -> Tensor:
        return self._pairs(embeddings, banks, Gathered(self._plan(banks, "gather"), self.ids))

    def dense(self, embeddings: Tensor, banks: Tensor) -> Tensor:
        weights = counted(self.ids, self.rows, banks.dtype)
        return self._pairs(embeddings, banks, Dense(self._plan(banks, "dense"), weights, self.count, self.rows))

    def all(self, embeddings: Tensor, banks: Tensor) -> Tensor:
        own, labels = self.contrast.labels[self.indices], self.contrast.labels
        usable = (own[:, None] != labels).sum(1)
        allowed = other_classes(own, labels, banks.dtype)
        return self._pairs(embeddings, banks, expected(banks, allowed, usable, self.count))

    def _pairs(self, embeddings: Tensor, banks: Tensor, candidates: Candidates) -> Tensor:
        return contrast_pairs(embeddings, banks, self.indices, candidates, TEMPERATURE, EPS)[0].sum()

    def _plan(self, banks: Tensor, form: str) -> contrast_plan.ContrastPlan:
        """The plan of that form, whatever shapes say."""
        cost = 0.0 if form == "gather" else math.inf
        with mock.patch.object(contrast_plan, "gathering_costs", return_value=cost):
            return contrast_plan.choose_form(banks, len(self.indices), self.count)


def needed(form: str, batch: int, rows: int, count: int) -> tuple[float, float]:
    """Bytes of bank rows that a form must read, and operations of its two products, forward and backward together."""
    pairs = PEERS * (PEERS - 1)
    if form == "straightforward":
        return 2 * pairs * batch * count * DIM * 4, 4 * pairs * batch * count * DIM
    if form == "gather":
        return 2 * PEERS * batch * count * DIM * 4, 4 * pairs * batch * count * DIM
    return 2 * PEERS * rows * DIM * 4, 4 * pairs * batch * rows * DIM


def rows_of(bench: Bench, case: Case, count: int, forms: dict[str, str], name: str) -> list[list[Any]]:
    """Rows of the table for one K.

    Args:
        forms: methods of `Losses`, the straightforward one first, by the name that `needed` knows them by.
        name: what the table calls K.
    """
    with draws.seeded(0, "heads"):
        contrast = case.contrast(num_negatives=count).to(bench.device)
    losses = Losses(case, contrast, count)
    with torch.no_grad():
        embeddings = contrast.embed(case.features)
        slow: Loss = getattr(losses, next(iter(forms.values())))
        true = bench.attempt(lambda: float(slow(embeddings.double(), contrast.banks.double())))
    embeddings.requires_grad_()

    def prepare(method: str) -> tuple[harness.Work, float, float]:
        loss: Loss = getattr(losses, method)

        def step() -> Tensor:
            value = loss(embeddings, contrast.banks)
            torch.autograd.grad(value, embeddings)
            return value.detach()

        found, mib = bench.peak(step)
        return step, float(found), mib

    ready = {form: bench.attempt(lambda m=method: prepare(m)) for form, method in forms.items()}
    times = bench.turns({form: each[0] for form, each in ready.items() if not isinstance(each, str)})
    chosen, rows = contrast.plan(len(case.indices)).form, []
    for form, each in ready.items():
        mark = " (chosen)" if form == chosen and name != "all" else ""
        if isinstance(each, str):
            rows.append([name, form + mark, each, *[""] * 5])
            continue
        seconds = times.median(form)
        read, operations = needed(form, len(case.indices), losses.rows, count)
        if name == "all":
            read, operations = needed("dense", len(case.indices), losses.rows, count)
        ratio = times.ratio("straightforward", form) if "straightforward" in times.seconds else ""
        error = true if isinstance(true, str) else f"{abs(each[1] / true - 1):.1e}"
        rows.append([
            name, form + mark, ratio, f"{seconds * 1e3:.3g}", f"{each[2]:,.0f}", error,
            read / seconds / 1e9, operations / seconds / 1e12,
        ])  # fmt: skip
    return rows


def contrast_part(bench: Bench) -> Iterator[str]:
    """Every K in every form, and the exact expectation; then what the device can do."""
    use_precision("float32")
    rows, batch, counts = (1000, 8, [8, 64]) if bench.small else (50_000, 64, [256, 4096, 16384])
    case = Case(rows, batch)
    case.indices, case.features = case.indices.to(bench.device), case.features.to(bench.device)
    forms = {"straightforward": "straightforward", "gather": "gather", "dense": "dense"}
    lines = [row for count in counts for row in rows_of(bench, case, count, forms, f"{count:,}")]
    lines += rows_of(bench, case, counts[-1], {"straightforward": "straightforward_all", "dense": "all"}, "all")
    limits = ceilings(bench, case.contrast(num_negatives=counts[0]).banks.to(bench.device))
    yield f"## 2. The contrastive loss: four peers, {rows:,} rows of {DIM}, batch {batch}, {CLASSES} classes"
    yield harness.table(["K", "form", "ratio", "ms", "MiB", "error", "GB/s of rows", "TFLOP/s"], lines)
    products = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in limits.products.items())
    yield (
        f"Ceilings, measured in this process: product {products} TFLOP/s; copy {limits.copied / 1e9:,.3g} GB/s (read and "
        f"written), gather of 512-byte rows {limits.gathered / 1e9:,.3g} GB/s (read). Loss and gradient of given embeddings, "
        "float32 without TF32, the same negatives. Bytes are those of bank rows that must be read, operations those of the two "
        "products, for loss and gradient; what a form does beyond that is in its time. Errors are relative to the "
        "straightforward formulation in float64."
    )
