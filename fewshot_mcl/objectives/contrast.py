"""Embedding heads, memory banks and the draw of negatives around the multi-view contrastive loss."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from fewshot_mcl import draws
from fewshot_mcl.errors import UserError
from fewshot_mcl.objectives.base import Setting
from fewshot_mcl.objectives.closed_form import Normaliser, Positive
from fewshot_mcl.objectives.multi_view import contrast_pairs

Negatives = Literal["other-class", "any", "all"]


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
            computes the
            expectation over the draws from the whole bank.
        replacement: draw with replacement ("yes"), without ("no"), or without where there are enough ("auto", as
            published).
        positive, normaliser: see `multi_view.contrast_pairs`; "fixed" keeps the normalisers of the first batch.
        eps: in both denominators of eq. 8; the published code has it, the paper has not.
        bank_momentum: weight of the old row in an update.
        contrast_feature: "flat" contrasts the feature as it is, "gap" the average over positions of a flattened map (on
            Conv4, 64 numbers instead of 1600).
        bank_init: "uniform" rows of expected norm 1, as published, or "unit" rows of norm 1.

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
        replacement: Literal["auto", "yes", "no"] = "auto",
        positive: Positive = "bank",
        normaliser: Normaliser = "batch",
        eps: float = 1e-7,
        bank_momentum: float = 0.5,
        bank_init: Literal["uniform", "unit"] = "uniform",
        contrast_feature: Literal["flat", "gap"] = "flat",
    ) -> None:
        super().__init__()
        assert setting.labels is not None, "the contrast needs the labels of the training images"
        if temperature <= 0 or num_negatives < 1 or embedding_dim < 1 or eps < 0 or not 0 <= bank_momentum <= 1:
            raise UserError(
                "the contrast needs temperature > 0, num_negatives >= 1, embedding_dim >= 1, eps >= 0 and bank_momentum within "
                f"[0, 1], not {temperature}, {num_negatives}, {embedding_dim}, {eps}, {bank_momentum}."
            )
        self.seed, self.temperature, self.eps, self.momentum = setting.seed, temperature, eps, bank_momentum
        self.num_negatives, self.negatives, self.positive, self.normaliser = (
            num_negatives,
            negatives,
            positive,
            normaliser,
        )
        peers, rows = setting.num_peers, len(setting.labels)
        self.channels = setting.feature_channels if contrast_feature == "gap" else None
        width = self.channels or setting.feature_dim
        self.heads = nn.ModuleList(nn.Linear(width, embedding_dim) for _ in range(peers))
        bound = math.sqrt(3 / embedding_dim)
        banks = torch.empty(peers, rows, embedding_dim).uniform_(
            -bound, bound, generator=draws.generator(setting.seed, "banks")
        )
        self.register_buffer("banks", nnf.normalize(banks, dim=-1) if bank_init == "unit" else banks)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("normalisers", torch.zeros(peers, peers))
        self._index_classes(setting.labels)
        self.replacement = self._choose_replacement(replacement)

    def _index_classes(self, labels: Tensor) -> None:
        """Class ranges over the stable order by label, so that a negative is one draw plus one offset."""
        labels = labels.to(torch.int64)
        sizes = torch.bincount(labels)
        for name, value in {
            "labels": labels,
            "order": torch.argsort(labels, stable=True),
            "class_sizes": sizes,
            "class_starts": sizes.cumsum(0) - sizes,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def _choose_replacement(self, replacement: str) -> bool:
        rows = len(self.labels)
        fewest = rows - (0 if self.negatives == "any" else int(self.get_buffer("class_sizes").max()))
        if fewest < 1:
            raise UserError("the contrast needs negatives: the training images must have at least two classes.")
        if replacement == "no" and self.num_negatives > fewest and self.negatives != "all":
            raise UserError(
                f"num_negatives = {self.num_negatives}, but an image has only {fewest} negatives to draw without replacement: "
                f"use --set objective.num_negatives={fewest} or fewer, or objective.replacement=auto."
            )
        return replacement == "yes" or (replacement == "auto" and self.num_negatives > fewest)

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
        allowed = None
        if self.negatives == "all" and negatives is None:
            allowed = self.labels[indices][:, None] != self.labels
        elif negatives is None:
            negatives = self.draw(indices)
        fixed = self.normalisers if self.normaliser == "fixed" and int(self.step) > 0 else None
        pairs, normalisers = contrast_pairs(
            embeddings, self.banks, indices, negatives, self.temperature, self.eps, positive=self.positive,
            normaliser=self.normaliser, fixed=fixed, allowed=allowed, count=self.num_negatives,
        )  # fmt: skip
        if self.training:
            self._advance(embeddings.detach(), indices, normalisers)
        return pairs.sum()

    @torch.no_grad()
    def _advance(self, embeddings: Tensor, indices: Tensor, normalisers: Tensor) -> None:
        if int(self.step) == 0:
            self.normalisers.copy_(normalisers)
        self.step += 1
        # Of an image that occurs twice the last occurrence counts; an indexed write would leave that to chance.
        ordered, position = torch.sort(indices, stable=True)
        last = torch.ones_like(ordered, dtype=torch.bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        rows, chosen = ordered[last], position[last]
        moved = torch.lerp(embeddings[:, chosen].to(self.banks.dtype), self.banks[:, rows], self.momentum)
        self.banks[:, rows] = nnf.normalize(moved, dim=-1, eps=1e-12)

    def draw(self, indices: Tensor) -> Tensor:
        """(B,) image indices -> (B, K) indices of negatives, a function of (seed, step, batch)."""
        generator = draws.generator(self.seed, "negatives", int(self.step))
        labels = self.labels[indices].cpu()
        sizes, starts = self.get_buffer("class_sizes").cpu()[labels], self.get_buffer("class_starts").cpu()[labels]
        if self.negatives == "any":
            sizes = torch.zeros_like(sizes)
        others = (len(self.labels) - sizes)[:, None]
        ranks = draw_ranks(others, self.num_negatives, self.replacement, generator)
        positions = ranks + sizes[:, None] * (ranks >= starts[:, None])
        return self.order[positions.to(self.order.device)]


def draw_ranks(sizes: Tensor, count: int, replacement: bool, generator: torch.Generator) -> Tensor:
    """(B, 1) sizes -> (B, count) integers below each row's size; without replacement, every subset of a row is equally likely."""
    batch, largest = len(sizes), int(sizes.max())
    if not replacement and 2 * count > largest:
        keys = torch.rand(batch, largest, generator=generator)
        keys[torch.arange(largest) >= sizes] = 2
        return keys.topk(count, dim=1, largest=False).indices
    ranks = _uniform(sizes, count, generator)
    while not replacement:
        ranks = ranks.sort(1).values
        repeated = torch.zeros_like(ranks, dtype=torch.bool)
        repeated[:, 1:] = ranks[:, 1:] == ranks[:, :-1]
        if not repeated.any():
            break
        # Redrawing treats all values alike, so by symmetry every subset stays equally likely.
        ranks = torch.where(repeated, _uniform(sizes, count, generator), ranks)
    return ranks


def _uniform(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2**31, (len(sizes), count), generator=generator) * sizes >> 31
