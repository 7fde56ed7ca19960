"""The multi-view contrastive loss (paper eqs. 6-8) with its gradient in closed form.

For an anchor peer a and the memory bank of a peer b, with scores s = v_a . V_b / temperature, x = exp(s), p = x / Z and
c = K / N:

    L(a, b) = mean over images of  log(1 + (c + eps) / p_positive) + sum over negatives of log(1 + (p + eps) / c)

The normaliser Z is a constant, so d L / d s is -(c + eps) / (p + c + eps) at the positive and p / (p + c + eps) at a
negative. Nothing that was gathered from a bank need be kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewshot_mcl.objectives.candidates import Candidates, Gathered, Picked, Whole

Positive = Literal["bank", "live", "live-grad"]
Normaliser = Literal["batch", "full", "fixed"]
CHUNK_BYTES = 1 << 25  # working memory for one chunk of images: larger chunks fall out of the cache and are slower


@dataclass(frozen=True)
class _Setting:
    """What all pairs of one step have in common."""

    negatives: Candidates
    positives: Tensor
    temperature: float
    eps: float
    positive: Positive
    normaliser: Normaliser
    fixed: Tensor | None  # (M, M) normalisers


def _exp(scores: Tensor, setting: _Setting) -> Tensor:
    return scores.div_(setting.temperature).exp_()


def _normaliser(
    setting: _Setting, anchors: Tensor, positive: Tensor, bank: Tensor, candidates: Iterable[tuple[slice, Tensor]]
) -> Tensor:
    """Z of every anchor peer against one bank: (A, 1) or, for "full", (A, B). `candidates` are exp(score) of chunks of images."""
    if setting.normaliser == "full":
        step = max(1, CHUNK_BYTES // (bank[:, 0].nbytes * len(anchors)))
        return torch.cat([_exp(part @ bank.T, setting).sum(-1) for part in anchors.split(step, 1)], 1)
    total = positive.sum(1)
    for rows, x in candidates:
        weights = setting.negatives.weights(rows)
        total = total + (x.sum((1, 2)) if weights is None else torch.einsum("anr,nr->a", x, weights))
    return (total * (len(bank) / (positive.shape[1] * (setting.negatives.count + 1))))[:, None]


def _log1p(u: Tensor) -> Tensor:
    """log(1 + u) to the last digits for u >= 0; overwrites u. torch.log1p, not vectorised on CPU, takes ten times as long."""
    w = u + 1
    lost = u.sub_(w - 1).div_(w)  # what rounding 1 + u took away
    return w.log_().add_(lost)


def _against_bank(
    anchors: Tensor,
    bank: Tensor,
    positive_rows: Tensor,
    setting: _Setting,
    fixed: Tensor | None,
    gradient: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (A,) of A anchor peers against one bank, the slopes (A, B) at the positive scores, and Z.

    Writes d loss / d anchors into `gradient` (A, B, D) where it is given.
    """
    negatives, batch = setting.negatives, anchors.shape[1]
    c, scale = negatives.count / len(bank), 1 / batch
    step = max(1, CHUNK_BYTES // (negatives.bytes_per_anchor * len(anchors)))
    chunks = [slice(start, start + step) for start in range(0, batch, step)]

    def candidates(rows: slice) -> Tensor:
        return _exp(negatives.scores(anchors[:, rows], bank, rows), setting)

    positive = _exp(torch.einsum("abd,bd->ab", anchors, positive_rows), setting)
    kept = candidates(chunks[0]) if len(chunks) == 1 else None  # otherwise they are computed again for each pass
    each = ((rows, candidates(rows)) for rows in chunks) if kept is None else [(chunks[0], kept)]
    z = _normaliser(setting, anchors, positive, bank, each) if fixed is None else fixed[:, None]
    p = positive / z
    loss = torch.log1p((c + setting.eps) / p).sum(1)
    slope = (c + setting.eps) / (p + (c + setting.eps)) * (-scale / setting.temperature)
    for rows in chunks:
        weights = negatives.weights(rows)
        p = candidates(rows) if kept is None else kept
        p /= z[:, rows, None] if z.shape[1] > 1 else z[:, :, None]
        terms = _log1p((p + setting.eps).div_(c))
        loss += terms.sum((1, 2)) if weights is None else torch.einsum("anr,nr->a", terms, weights)
        if gradient is not None:
            p /= torch.add(p, c + setting.eps, out=terms)
            p = p if weights is None else p.mul_(weights)
            gradient[:, rows] = negatives.combine(p, bank, rows)
    if gradient is not None:
        gradient *= scale / setting.temperature
        gradient += slope[..., None] * positive_rows
    return loss * scale, slope, z


class _Contrast(torch.autograd.Function):
    """embeddings (M, B, D) -> losses (M, M) and normalisers (M, M); the gradient is worked out in the forward pass."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, banks: Tensor, setting: _Setting) -> tuple[Tensor, Tensor]:
        peers, batch, dim = embeddings.shape
        losses, normalisers = embeddings.new_zeros(2, peers, peers)
        gradients = embeddings.new_zeros(peers, peers, batch, dim) if ctx.needs_input_grad[0] else None
        slopes = embeddings.new_zeros(peers, peers, batch)
        for b, bank in enumerate(banks):
            others = [a for a in range(peers) if a != b]
            rows = bank[setting.positives] if setting.positive == "bank" else embeddings[b]
            into = torch.empty_like(embeddings[others]) if gradients is not None else None
            fixed = setting.fixed[others, b] if setting.fixed is not None else None
            loss, slope, z = _against_bank(embeddings[others], bank, rows, setting, fixed, into)
            losses[others, b], slopes[others, b], normalisers[others, b] = loss, slope, z.mean(1)
            if gradients is not None and into is not None:
                gradients[others, b] = into
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


def _given(embeddings: Tensor, banks: Tensor, ids: Tensor) -> Candidates:
    """Gather few ids; for many (a twelfth of the bank's rows, measured) one matrix product with the whole bank is cheaper."""
    itemsize, (_, rows, dim) = banks.element_size(), banks.shape
    if ids.shape[1] * 12 < rows:
        return Gathered(ids, dim, itemsize)
    return Picked(ids, rows, itemsize)


def contrast_pairs(
    embeddings: Tensor,
    banks: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    temperature: float,
    eps: float = 1e-7,
    *,
    positive: Positive = "bank",
    normaliser: Normaliser = "batch",
    fixed: Tensor | None = None,
    allowed: Tensor | None = None,
    count: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Every ordered pair's loss, and its normaliser.

    Args:
        embeddings: (M, B, D) unit rows, the anchors.
        banks: (M, N, D), constants.
        positives: (B,) bank row of each image.
        negatives: (B, K) bank rows; None for the exact expectation over the rows that `allowed` names.
        temperature: of the scores.
        eps: in both denominators.
        positive: "bank" takes the positive from the other peer's bank, as published; "live" its embedding of this batch
            as a
            constant; "live-grad" the same with gradient.
        normaliser: "batch" is N times the mean over the batch's candidates, one for each pair, as published; "full" the
            sum over the
            whole bank, one for each anchor, as in the paper's text.
        fixed: (M, M) normalisers to use instead.
        allowed: (B, N) bool, which rows are negatives of each image; with `count`, the K of the expectation.

    Returns:
        losses (M, M), [a, b] = L(f_a -> f_b), zero on the diagonal; normalisers (M, M), the mean over anchors where
        each has its own. Everything is computed in at least float32, whatever autocast says: exp(score) overflows in
        half precision.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        banks = banks.to(embeddings.dtype)
        if negatives is not None:
            candidates = _given(embeddings, banks, negatives)
        else:
            assert allowed is not None
            assert count is not None
            candidates = Whole(allowed, count, banks.dtype)
        setting = _Setting(candidates, positives, temperature, eps, positive, normaliser, fixed)
        return _Contrast.apply(embeddings, banks, setting)


def multi_view_contrast(
    embeddings: Tensor,
    banks: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float,
    eps: float = 1e-7,
    return_pairs: bool = False,
) -> Tensor:
    """Eq. 8 with given negatives, as published: the sum over all ordered pairs of peers.

    Args:
        embeddings: (M, B, D) unit rows.
        banks: (M, N, D).
        positives: (B,) bank rows of the images.
        negatives: (B, K) bank rows.
        temperature, eps: as in `contrast_pairs`.
        return_pairs: give (M, M) losses, [a, b] = L(f_a -> f_b), instead of their sum.
    """
    pairs, _ = contrast_pairs(embeddings, banks, positives, negatives, temperature, eps)
    return pairs if return_pairs else pairs.sum()


def multi_view_contrast_exact(
    embeddings: Tensor,
    banks: Tensor,
    positives: Tensor,
    allowed: Tensor,
    count: int,
    temperature: float,
    eps: float = 1e-7,
    return_pairs: bool = False,
) -> Tensor:
    """Eq. 8 with its expectation over negatives computed from the whole bank: no sampling noise.

    Args:
        allowed: (B, N) bool, which bank rows are negatives of each image.
        count: K, the number of draws whose expectation this is.

    The rest, and the result, as in `multi_view_contrast`.
    """
    pairs, _ = contrast_pairs(embeddings, banks, positives, None, temperature, eps, allowed=allowed, count=count)
    return pairs if return_pairs else pairs.sum()
