"""Embedding heads, memory banks and the draw of negatives around the multi-view contrastive loss."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as nnf

from fewshot_mcl import draws
from fewshot_mcl.errors import UserError
from fewshot_mcl.objectives.base import Setting
from fewshot_mcl.objectives.candidates import Candidates, other_classes
from fewshot_mcl.objectives.closed_form import Normaliser, Positive
from fewshot_mcl.objectives.contrast_plan import ContrastPlan, choose_form
from fewshot_mcl.objectives.multi_view import contrast_pairs, expected
from fewshot_mcl.spread import Shard

Negatives = Literal["other-class", "any", "all", "shared"]
BLOCK = 1 << 20  # numbers of a bank that are drawn at a time


class MultiViewContrast(nn.Module):
    """One linear head and one memory bank a peer; the loss of every ordered pair of peers (paper section 3.2).

    A forward pass in training mode also moves the banks' rows of the batch, after all scores are computed, and counts
    one step. The negatives of a step depend on (seed, step) alone, and both are in the state dict: a resumed run draws
    what the run would have drawn.

    Args:
        setting: needs `labels`: bank row i belongs to the training image i.
        embedding_dim: width of the contrast (paper: 128).
        temperature: of the contrast, tau (paper: 0.1 on CIFAR-100, 0.07 on ImageNet).
        num_negatives: K.
        negatives: "other-class" draws K images of other classes, as published; "any" draws from all images; "all"
            computes the expectation over the draws from the whole bank; "shared" estimates it from the same rows for
            all images of a batch, of which those of another class count, K times their mean.
        shared_rows: how many rows that are. They have less noise than as many negatives spread over the images of a
            batch, and are faster (benchmarks/contrast.py). An image in whose class they all lie has no negatives then.
        replacement: draw with replacement ("yes"), without ("no"), or without where there are enough ("auto", as
            published).
        positive, normaliser: see `multi_view.contrast_pairs`; "fixed" keeps the normalisers of the first batch.
        eps: in both denominators of eq. 8; the published code has it, the paper has not.
        bank_momentum: weight of the old row in an update.
        contrast_feature: "flat" contrasts the feature as it is, "gap" the average over positions of a flattened map (on
            Conv4, 64 numbers instead of 1600).
        bank_init: "uniform" rows of expected norm 1, as published, or "unit" rows of norm 1.
        banks: of several processes, whether each holds all rows ("replicated") or its part of them ("sharded"), which
            takes less memory and more exchange; values are the same.

    Attributes:
        spread: buffers of which this process holds a part.

    Raises:
        UserError: if there are fewer negatives than K and they are to be drawn without replacement, or none at all, or
            a number is out of range.
    """

    banks: Tensor
    step: Tensor
    normalisers: Tensor
    labels: Tensor
    order: Tensor

    def __init__(
        self,
        setting: Setting,
        *,
        embedding_dim: int = 128,
        temperature: float = 0.1,
        num_negatives: int = 256,
        negatives: Negatives = "other-class",
        shared_rows: int = 4096,
        replacement: Literal["auto", "yes", "no"] = "auto",
        positive: Positive = "bank",
        normaliser: Normaliser = "batch",
        eps: float = 1e-7,
        bank_momentum: float = 0.5,
        bank_init: Literal["uniform", "unit"] = "uniform",
        contrast_feature: Literal["flat", "gap"] = "flat",
        banks: Literal["replicated", "sharded"] = "replicated",
    ) -> None:
        super().__init__()
        assert setting.labels is not None, "the contrast needs the labels of the training images"
        if (
            temperature <= 0
            or min(num_negatives, shared_rows, embedding_dim) < 1
            or eps < 0
            or not 0 <= bank_momentum <= 1
        ):
            raise UserError(
                "the contrast needs temperature > 0, num_negatives >= 1, shared_rows >= 1, embedding_dim >= 1, eps >= 0 and "
                f"bank_momentum within [0, 1], not {temperature}, {num_negatives}, {shared_rows}, {embedding_dim}, {eps}, "
                f"{bank_momentum}."
            )
        self.seed, self.temperature, self.eps, self.momentum = setting.seed, temperature, eps, bank_momentum
        self.num_negatives, self.negatives, self.positive, self.normaliser = (
            num_negatives,
            negatives,
            positive,
            normaliser,
        )
        peers, rows = setting.num_peers, len(setting.labels)
        self.shared_rows = min(shared_rows, rows) if negatives == "shared" else None
        self.channels = setting.feature_channels if contrast_feature == "gap" else None
        width = self.channels or setting.feature_dim
        self.heads = nn.ModuleList(nn.Linear(width, embedding_dim) for _ in range(peers))
        self.shard = Shard.mine(rows) if banks == "sharded" else None
        self.spread = {} if self.shard is None else {"banks": self.shard}
        part = slice(0, rows) if self.shard is None else self.shard.part
        initial = draw_banks(peers, rows, embedding_dim, part, draws.generator(setting.seed, "banks"))
        if bank_init == "unit":
            initial /= initial.norm(dim=-1, keepdim=True).clamp_(min=1e-12)  # in place: banks may be most of the memory
        self.register_buffer("banks", initial)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("normalisers", torch.zeros(peers, peers))
        self._index_classes(setting.labels)
        self.replacement = self._choose_replacement(replacement)

    def _index_classes(self, labels: Tensor) -> None:
        """Class ranges over the stable order by label, so that a negative is one draw plus one offset."""
        labels = labels.to(torch.int64)
        sizes = torch.bincount(labels)
        self._sizes, self._starts = (part.to(torch.int32).cpu().numpy() for part in (sizes, sizes.cumsum(0) - sizes))
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", torch.argsort(labels, stable=True).to(torch.int32), persistent=False)

    def _choose_replacement(self, replacement: str) -> bool:
        rows = len(self.labels)
        fewest = rows - (0 if self.negatives == "any" else int(self._sizes.max()))
        if fewest < 1:
            raise UserError("the contrast needs negatives: the training images must have at least two classes.")
        own = self.negatives in ("other-class", "any")
        if replacement == "no" and self.num_negatives > fewest and own:
            raise UserError(
                f"num_negatives = {self.num_negatives}, but an image has only {fewest} negatives to draw without replacement: "
                f"use --set objective.num_negatives={fewest} or fewer, or objective.replacement=auto."
            )
        return replacement == "yes" or (replacement == "auto" and self.num_negatives > fewest)

    def plan(self, batch: int) -> ContrastPlan:
        """How the forward pass of a batch of that size is computed."""
        share = 1.0 if self.shard is None else len(self.shard) / self.shard.count  # of what each process does
        given = math.ceil(self.num_negatives * share) if self.negatives in ("other-class", "any") else None
        shared = self.shared_rows and math.ceil(self.shared_rows * share)
        return choose_form(self.banks, batch, given, shared)

    def embed(self, features: Tensor) -> Tensor:
        """Features (M, B, D') -> unit embeddings (M, B, D)."""
        if self.channels:
            features = features.unflatten(-1, (self.channels, -1)).mean(-1)
        return nnf.normalize(torch.stack([head(f) for head, f in zip(self.heads, features)]), dim=-1, eps=1e-12)

    def forward(self, features: Tensor, indices: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The loss summed over ordered pairs.

        Args:
            features: (M, B, D').
            indices: (B,) the images' indices in the training set.
            negatives: (B, K) indices to use instead of drawing them.
        """
        embeddings = self.embed(features)
        candidates = self._candidates(indices) if negatives is None else negatives
        fixed = self.normalisers if self.normaliser == "fixed" and int(self.step) > 0 else None
        pairs, normalisers = contrast_pairs(
            embeddings, self.banks, indices, candidates, self.temperature, self.eps, positive=self.positive,
            normaliser=self.normaliser, fixed=fixed, shard=self.shard,
        )  # fmt: skip
        if self.training:
            self._advance(embeddings.detach(), indices, normalisers)
        return pairs.sum()

    @torch.no_grad()
    def _advance(self, embeddings: Tensor, indices: Tensor, normalisers: Tensor) -> None:
        # Nothing here waits for the device, so that a step can be captured as a CUDA graph.
        self.normalisers.copy_(torch.where(self.step == 0, normalisers, self.normalisers))
        self.step += 1
        # Of an image that occurs twice the last occurrence counts; an indexed write would leave that to chance.
        ordered, position = torch.sort(indices, stable=True)
        last = position[torch.searchsorted(ordered, indices, right=True) - 1]
        if self.shard is not None:
            held = self.shard.holds(indices)
            indices, last = self.shard.local(indices[held]), last[held]
        moved = torch.lerp(embeddings[:, last].to(self.banks.dtype), self.banks[:, indices], self.momentum)
        self.banks[:, indices] = nnf.normalize(moved, dim=-1, eps=1e-12)

    def _candidates(self, indices: Tensor) -> Tensor | Candidates:
        own, count, dtype = self.labels[indices], self.num_negatives, self.banks.dtype
        if self.negatives == "all":
            usable = len(self.labels) - torch.from_numpy(self._sizes)[own.cpu()].to(own.device)
            labels = self.labels if self.shard is None else self.labels[self.shard.part]
            return expected(self.banks, other_classes(own, labels, dtype), usable, count)
        if self.negatives == "shared":
            rows = self.draw_shared()
            allowed = other_classes(own, self.labels[rows], dtype)
            usable = allowed(slice(None)).sum(1)
            if self.shard is None:
                return expected(self.banks, allowed, usable, count, rows)
            (rows,), (here,) = self.shard.own(rows[None], dtype)
            others = other_classes(own, self.labels[self.shard.part][rows], dtype)
            return expected(self.banks, lambda piece: others(piece) * here[piece], usable, count, rows)
        return self.draw(indices)

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(draws.key(self.seed, "negatives", int(self.step)))

    def draw(self, indices: Tensor) -> Tensor:
        """(B,) image indices -> (B, K) int32 indices of negatives, a function of (seed, step, batch)."""
        own = self.labels[indices].cpu().numpy()
        sizes, starts = self._sizes[own][:, None], self._starts[own][:, None]
        if self.negatives == "any":
            sizes = np.zeros_like(sizes)
        ranks = draw_ranks(len(self.labels) - sizes[:, 0], self.num_negatives, self.replacement, self._generator())
        ranks += sizes * (ranks >= starts)
        positions = torch.from_numpy(ranks).to(self.order.device)
        return self.order.index_select(0, positions.view(-1)).view(positions.shape)

    def draw_shared(self) -> Tensor:
        """(shared_rows,) int32 rows that all images of this step share, every subset equally likely."""
        assert self.shared_rows is not None
        rows = draw_ranks(np.array([len(self.labels)]), self.shared_rows, False, self._generator())[0]
        return torch.from_numpy(rows).to(self.order.device)


def draw_banks(peers: int, rows: int, dim: int, part: slice, generator: torch.Generator) -> Tensor:
    """Rows `part` of (peers, rows, dim) uniform numbers of variance 1 / dim; the others are drawn too, but not kept."""
    bound, step = math.sqrt(3 / dim), max(1, BLOCK // dim)
    banks = torch.empty(peers, part.stop - part.start, dim)
    for bank in banks:
        for start in range(0, rows, step):
            block = torch.empty(min(step, rows - start), dim).uniform_(-bound, bound, generator=generator)
            first, last = (min(max(end, start), start + len(block)) for end in (part.start, part.stop))
            bank[first - part.start : last - part.start] = block[first - start : last - start]
    return banks


def draw_ranks(
    sizes: NDArray[np.integer], count: int, replacement: bool, generator: np.random.Generator
) -> NDArray[np.int32]:
    """(B,) sizes -> (B, count) integers below each row's size; without replacement, every subset of a row is equally likely."""
    if not replacement and count * count > 8 * int(sizes.min()):  # so many repeats that redrawing them takes longer
        each = [generator.choice(size, count, replace=False, shuffle=False) for size in sizes]
        return np.stack(each).astype(np.int32)
    ranks = _uniform(generator, sizes[:, None], (len(sizes), count))
    waiting = np.arange(0 if replacement else len(sizes))
    while len(waiting):
        part = ranks[waiting]
        part.sort(1)
        ranks[waiting] = part
        row, column = np.nonzero(part[:, 1:] == part[:, :-1])
        # Redrawing treats all values alike, so by symmetry every subset stays equally likely.
        ranks[waiting[row], column] = _uniform(generator, sizes[waiting[row]], row.shape)
        waiting = np.unique(waiting[row])
    return ranks


def _uniform(generator: np.random.Generator, sizes: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.int32]:
    return (generator.random(shape) * sizes).astype(np.int32)
