"""The contrastive loss: forms, draws, noise and memory, beside a plain rendering of the published formulation.

    uv run --group bench python benchmarks/contrast.py --imagenet --out benchmarks/results/contrast.md

Given are four peers, 128 numbers an embedding, banks of 50,000 rows, a batch of 64 and the same negatives for both; timed
are forward pass, backward pass and the update of the banks. `--imagenet` trains, saves and resumes banks of 1,281,167 rows
in processes of their own (3 GB of disk in the folder for temporary files).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import harness
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl.objectives import create_objective
from fewshot_mcl.objectives.contrast import MultiViewContrast
from fewshot_mcl.objectives.multi_view import contrast_pairs

PEERS, DIM, CLASSES, TEMPERATURE, EPS = 4, 128, 100, 0.1, 1e-7
FETCHED = 1 << 16


def published(embeddings: Tensor, banks: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The loss as published: for every ordered pair a gather of all rows, and autograd through it."""
    ids = torch.cat([positives[:, None], negatives], 1)
    rows, batch, total = banks.shape[1], len(ids), embeddings.new_zeros(())
    c = negatives.shape[1] / rows
    for a, b in ((a, b) for a in range(PEERS) for b in range(PEERS) if a != b):
        gathered = banks[b].index_select(0, ids.view(-1)).view(*ids.shape, -1)
        x = torch.exp(torch.bmm(gathered, embeddings[a][:, :, None])[:, :, 0] / TEMPERATURE)
        p = x / (rows * x.mean()).detach()
        positive = torch.log(p[:, 0] / (p[:, 0] + c + EPS))
        negative = torch.log(c / (p[:, 1:] + c + EPS))
        total = total - (positive.sum() + negative.sum()) / batch
    return total


class Case:
    """Embeddings, banks and a batch, and both ways to learn from them."""

    def __init__(self, rows: int, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(rows) % CLASSES
        self.indices = torch.randperm(rows, generator=generator)[:batch]
        self.features = torch.randn(PEERS, batch, DIM, generator=generator)

    def contrast(self, **options: object) -> MultiViewContrast:
        """Ours."""
        objective = create_objective(
            "mcl", num_peers=PEERS, num_classes=CLASSES, feature_dim=DIM, labels=self.labels, seed=0, **options
        )
        return objective.contrast

    def ours(self, contrast: MultiViewContrast, negatives: Tensor | None = None) -> harness.Work:
        """A step of ours; without `negatives`, their draw belongs to it."""
        return lambda: contrast(self.features, self.indices, negatives).backward()

    def theirs(self, contrast: MultiViewContrast, negatives: Tensor) -> harness.Work:
        """The same step in the published formulation, with heads and banks of `contrast`."""

        def step() -> None:
            embeddings = contrast.embed(self.features)
            published(embeddings, contrast.banks, self.indices, negatives).backward()
            with torch.no_grad():
                for bank, row in zip(contrast.banks, embeddings):
                    moved = bank[self.indices] * 0.5 + row * 0.5
                    bank[self.indices] = moved / moved.norm(dim=1, keepdim=True)

        return step


def gather(banks: Tensor) -> harness.Work:
    """Fetching FETCHED rows from anywhere in the banks into a buffer that is kept and stays in the cache."""
    flat = banks.flatten(0, 1)
    ids, buffer = torch.randint(len(flat), (FETCHED,)).split(2048), flat.new_empty(2048, flat.shape[1])
    return lambda: [torch.index_select(flat, 0, part, out=buffer) for part in ids]


def share_of_limit(contrast: MultiViewContrast, batch: int, seconds: float, limits: harness.Times) -> str:
    """How near a step comes to fetching all its rows twice, or to the arithmetic of its two products with the whole bank."""
    peers, rows, dim = contrast.banks.shape
    if contrast.plan(batch).form == "gather":
        best = 2 * peers * batch * contrast.num_negatives / FETCHED * limits.median("gather")
        return f"{best / seconds:.2f} of the gather rate"
    best = 4 * peers * (peers - 1) * batch * rows * dim / (2 * 2048**3) * limits.median("product")
    return f"{best / seconds:.2f} of the product rate"


def peak_mib(work: harness.Work) -> float:
    """MiB that `work` takes at its highest; what the allocator keeps from earlier work is given back first."""
    ctypes.CDLL(None).malloc_trim(0)
    return harness.peak_memory(work) / 2**20


def errors(case: Case, contrast: MultiViewContrast, negatives: Tensor) -> list[str]:
    """Relative errors of the loss in float32, ours and the published one, against float64."""
    with torch.no_grad():
        embeddings = contrast.embed(case.features)
        given = embeddings, contrast.banks, case.indices, negatives
        true = contrast_pairs(embeddings.double(), contrast.banks.double(), *given[2:], TEMPERATURE)[0].sum()
        found = contrast_pairs(*given, TEMPERATURE)[0].sum(), published(*given)
    return [f"{abs(float(value / true) - 1):.1e}" for value in found]


def forms_part(case: Case, counts: list[int], rounds: int) -> Iterator[str]:
    """Time, memory, error and share of the limit by K; the exact expectation beside the largest K."""
    rows, plans, batch = [], [], len(case.indices)
    exact = case.contrast(num_negatives=counts[-1], negatives="all")
    limits = {"product": harness.product_rate(), "gather": gather(exact.banks)}
    for count in counts:
        contrast = case.contrast(num_negatives=count)
        negatives = contrast.draw(case.indices).long()
        work = {"published": case.theirs(contrast, negatives), f"{count:,}": case.ours(contrast, negatives)}
        if count == counts[-1]:
            work["all"] = case.ours(exact)
        times = harness.take_turns({**work, **limits}, rounds if count < 10_000 else max(2, rounds // 2))
        memory = {name: peak_mib(each) for name, each in work.items()}
        for name, used in [(f"{count:,}", contrast), ("all", exact)][: len(work) - 1]:
            seconds = times.median(name)
            rows.append([
                name, times.ratio("published", name), f"{times.median('published') * 1e3:,.0f}", f"{seconds * 1e3:,.1f}",
                f"{memory['published']:,.0f} / {memory[name]:,.1f}", f"{memory['published'] / max(memory[name], 0.1):,.0f}",
                *(errors(case, contrast, negatives) if name != "all" else ["", ""]),
                share_of_limit(used, batch, seconds, times),
            ])  # fmt: skip
            plans.append(f"* {name}: {used.plan(batch)}")
    yield "## Forms: forward, backward, update of the banks, the same negatives"
    yield harness.table(
        [
            "K",
            "ratio",
            "published ms",
            "ours ms",
            "MiB, published / ours",
            "ratio",
            "error, ours",
            "error, published",
            "share",
        ],
        rows,
    )
    yield "\n".join(plans)
    yield (
        f'"all" is the exact expectation over draws of {counts[-1]:,} negatives; it takes '
        f"{times.ratio('all', f'{counts[-1]:,}')} times as long as given ones. MiB are the growth of the process at its "
        "highest. Errors are relative, of the loss in float32 against float64. The share is that of the time which the rows "
        "take that must be fetched (twice, 512 bytes each), or the arithmetic of two products of all images with the banks."
    )


def draws_part(case: Case, counts: list[int], rounds: int) -> Iterator[str]:
    """The draw of a batch's negatives without replacement."""
    rows, own = [], case.labels[case.indices]
    pools = [torch.nonzero(case.labels != label).flatten().numpy() for label in own]
    for count in counts:
        contrast = case.contrast(num_negatives=count)
        shared = case.contrast(num_negatives=count, negatives="shared", shared_rows=count)
        work = {
            "choice": lambda count=count: np.stack([np.random.choice(pool, count, replace=False) for pool in pools]),
            "ours": lambda contrast=contrast: contrast.draw(case.indices),
            "shared": lambda shared=shared: shared.draw_shared(),
        }
        times = harness.take_turns(work, rounds)
        ms = [f"{times.median(name) * 1e3:.3g}" for name in work]
        rows.append([f"{count:,}", ms[0], ms[1], times.ratio("choice", "ours"), ms[2], times.ratio("choice", "shared")])
    yield "## The draw of negatives: a batch, without replacement, beside np.random.choice for each image"
    yield harness.table(["K", "choice ms", "ours ms", "ratio", "shared ms", "ratio"], rows)


def noise_part(case: Case, draws: int, rounds: int) -> Iterator[str]:
    """Noise of the gradient that draws bring, and what a step costs: each image's own K, or rows that all share."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, DIM, generator=generator)
    images = [centres[case.labels] + torch.randn(len(case.labels), DIM, generator=generator) for _ in range(PEERS)]
    case.features = torch.stack(images)[:, case.indices]
    kinds = {f"own, K = {count:,}": {"num_negatives": count} for count in (256, 4096)}
    kinds |= {f"shared, {rows:,} rows": {"negatives": "shared", "shared_rows": rows} for rows in (256, 1024, 4096)}
    kinds["all"] = {"negatives": "all"}
    contrasts = {name: case.contrast(**options).eval() for name, options in kinds.items()}
    start = contrasts["all"]
    with torch.no_grad():
        start.banks.copy_(nnf.normalize(start.embed(torch.stack(images)), dim=-1))
    rows = []
    times = harness.take_turns({name: case.ours(contrast) for name, contrast in contrasts.items()}, rounds)
    for name, contrast in contrasts.items():
        contrast.load_state_dict(start.state_dict())
        truth = gradient(case, case.contrast(num_negatives=contrast.num_negatives, negatives="all"), start)
        noise = []
        for _ in range(draws if name != "all" else 1):
            noise.append(float((gradient(case, contrast) - truth).norm() / truth.norm()))
            contrast.step += 1
        rows.append(
            [name, f"{100 * float(np.sqrt(np.mean(np.square(noise)))):.2f} %", f"{times.median(name) * 1e3:.1f}"]
        )
    yield "## Noise: the heads' gradient beside that of the exact expectation, and a step with its draw"
    yield harness.table(["negatives", "relative noise", "ms"], rows)
    yield (
        f"Root mean square over {draws} draws for one batch; embeddings and banks are of images around {CLASSES} class "
        "centres. Shared rows weigh as K = 256 negatives."
    )


def gradient(case: Case, contrast: MultiViewContrast, start: MultiViewContrast | None = None) -> Tensor:
    """Of the loss, at the heads' weights; with the state of `start`, where it is given. The banks do not move."""
    contrast.eval()
    if start is not None:
        contrast.load_state_dict(start.state_dict())
    contrast.zero_grad()
    case.ours(contrast)()
    return torch.cat([head.weight.grad.flatten() for head in contrast.heads])


def main() -> None:
    from imagenet_banks import imagenet_part  # here: gpu.py imports this module where runs' packages may be missing

    given = harness.arguments(
        str(__doc__).splitlines()[0], counts=[256, 4096, 16384], rows=50_000, batch=64, draws=100, imagenet=False
    )
    parts = [
        *forms_part(Case(given.rows, given.batch), given.counts, given.rounds),
        *draws_part(Case(given.rows, given.batch), given.counts, given.rounds),
        *noise_part(Case(given.rows, given.batch), given.draws, given.rounds),
        *(imagenet_part() if given.imagenet else []),
    ]
    harness.report("The contrastive loss", parts, given.out)


if __name__ == "__main__":
    main()
