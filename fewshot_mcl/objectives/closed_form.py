"""The multi-view contrastive loss with its gradient in closed form.

For an anchor peer a and the memory bank of a peer b, with scores s = v_a . V_b / temperature, x = exp(s), p = x / Z and
c = K / N:

    L(a, b) = mean over images of  log(1 + (c + eps) / p_positive) + sum over negatives of log(1 + (p + eps) / c)

The normaliser Z is a constant, so d L / d s is -(c + eps) / (p + c + eps) at the positive and p / (p + c + eps) at a
negative. Nothing that was gathered from a bank need be kept for the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewshot_mcl import parallel
from fewshot_mcl.objectives.candidates import Candidates
from fewshot_mcl.objectives.contrast_plan import OTHERWISE, PIECE_BYTES
from fewshot_mcl.spread import Shard

Positive = Literal["bank", "live", "live-grad"]
Normaliser = Literal["batch", "full", "fixed"]


@dataclass(frozen=True)
class Setting:
    """What all pairs of one step have in common."""

    negatives: Candidates
    positives: Tensor
    temperature: float
    eps: float
    positive: Positive
    normaliser: Normaliser
    fixed: Tensor | None  # (M, M) normalisers
    rows: int  # N of a whole bank
    shard: Shard | None = None  # which of them are here

    @cached_property
    def mine(self) -> Tensor | None:
        """(B, 1) which positives this process counts; None for all."""
        return None if self.shard is None else self.shard.holds(self.positives)[:, None]

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes that have rows of a bank."""
        return values if self.shard is None else parallel.added(values)


class _Space:
    """Memory for the scores of one bank's candidates after another's: new large tensors cost more than the arithmetic."""

    def __init__(self, negatives: Candidates, anchors: Tensor) -> None:
        batch, peers, _ = anchors.shape
        self.shapes = [negatives.shape(piece, batch, peers) for piece in negatives.pieces]
        self.keep = negatives.plan.keep
        self._largest = max(map(math.prod, self.shapes))
        self._scores = anchors.new_empty(sum(map(math.prod, self.shapes)) if self.keep else self._largest)
        self._buffers = anchors.new_empty(2, self._largest)

    def scores(self, number: int) -> Tensor:
        """Where the scores (n, A, R) of a piece go."""
        shape = self.shapes[number]
        start = number * self._largest if self.keep else 0  # only the last piece is smaller
        return self._scores[start : start + math.prod(shape)].view(shape)

    def buffers(self, number: int) -> tuple[Tensor, Tensor]:
        """Two more of the piece's size."""
        shape = self.shapes[number]
        first, second = self._buffers[:, : math.prod(shape)]
        return first.view(shape), second.view(shape)


class _Bank:
    """All other peers against one bank: their anchors (B, A, D), the positives' rows (B, D), given normalisers (A,)."""

    def __init__(
        self,
        anchors: Tensor,
        bank: Tensor,
        positive_rows: Tensor,
        setting: Setting,
        space: _Space,
        fixed: Tensor | None,
    ) -> None:
        self.anchors, self.bank, self.rows, self.setting, self.space = anchors, bank, positive_rows, setting, space
        # exp(v . V / T) is taken as 2 to the power of scaled . V: on CPU exp2 is three times as fast
        self.scaled = anchors * (math.log2(math.e) / setting.temperature)
        setting.negatives.prepare(bank)
        self.positive = torch.einsum("bad,bd->ba", self.scaled, positive_rows).exp2_()
        self._known = False  # whether all scores lie in `space`
        self.z = self._normaliser() if fixed is None else fixed[None]  # (1, A) or, for "full", (B, A)

    def _candidates(self, number: int, piece: slice) -> Tensor:
        scores = self.space.scores(number)
        return scores if self._known else self.setting.negatives.scores(piece, self.scaled, scores).exp2_()

    def _normaliser(self) -> Tensor:
        if self.setting.normaliser == "full":
            return self.setting.total(_sum_over_bank(self.scaled, self.bank))
        negatives, sums = self.setting.negatives, [self._counted(self.positive).sum(0)]
        for number, piece in enumerate(negatives.pieces):
            x, weights = self._candidates(number, piece), negatives.weights(piece)
            if weights is not None:
                x = torch.mul(x, weights, out=self.space.buffers(number)[0])
            sums.append(x.sum((0, 2)))
        self._known = self.space.keep
        mean = self.setting.total(torch.stack(sums).sum(0)) / (len(self.rows) * (negatives.count + 1))
        return (mean * self.setting.rows)[None]

    def _counted(self, values: Tensor) -> Tensor:
        """(B, A) of the positives, 0 for those that another process counts."""
        mine = self.setting.mine
        return values if mine is None else values * mine

    @staticmethod
    def _terms(u: Tensor, w: Tensor, out: Tensor) -> Tensor:
        """log(1 + u) to the last digits, for u >= 0, and u / (1 + u) in u. torch.log1p is not vectorised on CPU."""
        torch.add(u, 1, out=w)
        torch.sub(w, 1, out=out)
        torch.sub(u, out, out=out).div_(w)  # what rounding 1 + u took away
        u /= w
        return out.add_(w.log_())

    def losses(self, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses (A,) and the slopes (B, A) at the positive scores; adds d loss / d anchors to `gradient` (B, A, D).

        Where banks are spread, all three are what the rows that are here add to them.
        """
        negatives, eps, batch = self.setting.negatives, self.setting.eps, len(self.rows)
        c = negatives.count / self.setting.rows
        odds = self.z * (c + eps)
        ratio = odds / self.positive
        slope = self._counted(ratio / (1 + ratio) * (-1 / (batch * self.setting.temperature)))
        images = batch if self.setting.mine is None else self.setting.mine.sum()
        # log(1 + (p + eps) / c) is log(1 + eps / c) + log(1 + p / (c + eps))
        sums = [self._counted(torch.log1p(ratio)).sum(0) + images * negatives.count * math.log1p(eps / c)]
        for number, piece in enumerate(negatives.pieces):
            u = self._candidates(number, piece)
            u /= odds[negatives.images(piece)][..., None] if len(odds) > 1 else odds[..., None]
            terms, weights = self._terms(u, *self.space.buffers(number)), negatives.weights(piece)
            sums.append((terms if weights is None else terms.mul_(weights)).sum((0, 2)))
            if gradient is not None:
                negatives.combine(piece, u if weights is None else u.mul_(weights), gradient)
        if gradient is not None:
            gradient *= 1 / (batch * self.setting.temperature)
            gradient += slope[..., None] * self.rows[:, None]
        return torch.stack(sums).sum(0) / batch, slope


def _sum_over_bank(scaled: Tensor, bank: Tensor) -> Tensor:
    """(B, A) sum of 2 ** scores over all rows."""
    flat = scaled.flatten(0, 1)
    step = max(1, PIECE_BYTES.get(bank.device.type, OTHERWISE) // flat[:, 0].nbytes)
    buffer, sums = flat.new_empty(len(flat), step), []
    for rows in bank.split(step):
        scores = torch.mm(flat, rows.T, out=buffer[:, : len(rows)])
        sums.append(scores.exp2_().sum(1))
    return torch.stack(sums).sum(0).view(scaled.shape[:2])


def _place(pairs: Tensor, b: int, values: Tensor) -> None:
    """Write what all other peers have against the bank of b, (A, ...), into (M, M, ...).

    By slices: a list of indices would be copied to the device, which waits for it and cannot be captured as a CUDA graph.
    """
    pairs[:b, b], pairs[b + 1 :, b] = values[:b], values[b:]


class Contrast(torch.autograd.Function):
    """embeddings (M, B, D) -> losses (M, M) and normalisers (M, M); the gradient is worked out in the forward pass."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, banks: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
        peers, batch, dim = embeddings.shape
        losses, normalisers = embeddings.new_zeros(2, peers, peers)
        gradients = embeddings.new_zeros(peers, peers, batch, dim) if ctx.needs_input_grad[0] else None
        slopes = embeddings.new_zeros(peers, peers, batch)
        space = _Space(setting.negatives, embeddings[1:].transpose(0, 1))
        positives = setting.positives if setting.shard is None else setting.shard.local(setting.positives)
        for b, bank in enumerate(banks):
            others = [a for a in range(peers) if a != b]
            anchors = torch.stack([embeddings[a] for a in others], 1)
            rows = bank.index_select(0, positives) if setting.positive == "bank" else embeddings[b]
            fixed = torch.cat([setting.fixed[:b, b], setting.fixed[b + 1 :, b]]) if setting.fixed is not None else None
            pair = _Bank(anchors, bank, rows, setting, space, fixed)
            into = torch.zeros_like(anchors) if gradients is not None else None
            loss, slope = pair.losses(into)
            _place(losses, b, loss)
            _place(slopes, b, slope.T)
            _place(normalisers, b, pair.z.mean(0))
            if gradients is not None and into is not None:
                _place(gradients, b, into.transpose(0, 1))
        for each in (losses, slopes, gradients):
            if each is not None:
                setting.total(each)
        if setting.positive == "live-grad":
            ctx.slopes, ctx.embeddings = slopes, embeddings
        ctx.gradients, ctx.live = gradients, setting.positive == "live-grad"
        ctx.mark_non_differentiable(normalisers)
        return losses, normalisers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        gradient = torch.einsum("xy,xybd->xbd", upstream, ctx.gradients)
        if ctx.live:  # the positive of the pair (a, b) is v_b itself
            gradient += torch.einsum("xy,xyb,xbd->ybd", upstream, ctx.slopes, ctx.embeddings)
        return gradient, None, None
