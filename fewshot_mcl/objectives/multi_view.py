"""The multi-view contrastive loss (paper eqs. 6-8) of given embeddings, banks and negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_mcl.objectives.candidates import Candidates, Dense, Gathered, OfRows, counted, permitted
from fewshot_mcl.objectives.closed_form import Contrast, Normaliser, Positive, Setting
from fewshot_mcl.objectives.contrast_plan import choose_form
from fewshot_mcl.spread import Shard


def given_rows(banks: Tensor, ids: Tensor, shard: Shard | None = None) -> Candidates:
    """Each image's own K rows of every bank, `ids` (B, K); those of `shard` where banks are spread over processes."""
    batch, count = ids.shape
    ids, weights = (ids, None) if shard is None else shard.own(ids, banks.dtype)
    plan = choose_form(banks, batch, given=ids.shape[1])
    if plan.form == "gather":
        return Gathered(plan, ids, weights, count)
    rows = banks.shape[1]
    return Dense(plan, counted(ids, rows, banks.dtype, weights), count, rows)


def expected(banks: Tensor, allowed: OfRows, usable: Tensor, count: int, chosen: Tensor | None = None) -> Candidates:
    """The expectation over draws of `count` rows from the whole of every bank, or from the rows `chosen` (R,).

    Args:
        banks: (M, N, D), or the part of it that is here.
        allowed: which rows are negatives of each image.
        usable: (B,) how many these are in all.
        count: K.
        chosen: rows that all images share.
    """
    shared = None if chosen is None else len(chosen)
    plan = choose_form(banks, len(usable), shared=shared)
    weights = permitted(plan, allowed, usable, count, banks.dtype)
    return Dense(plan, weights, count, shared or banks.shape[1], chosen)


def contrast_pairs(
    embeddings: Tensor,
    banks: Tensor,
    positives: Tensor,
    negatives: Tensor | Candidates | None,
    temperature: float,
    eps: float = 1e-7,
    *,
    positive: Positive = "bank",
    normaliser: Normaliser = "batch",
    fixed: Tensor | None = None,
    allowed: Tensor | None = None,
    count: int | None = None,
    shard: Shard | None = None,
) -> tuple[Tensor, Tensor]:
    """Every ordered pair's loss, and its normaliser.

    Args:
        embeddings: (M, B, D) unit rows, the anchors.
        banks: (M, N, D), constants.
        positives: (B,) bank row of each image.
        negatives: (B, K) bank rows; None for the exact expectation over the rows that `allowed` names; or what
            `given_rows` or `expected` made.
        temperature: of the scores.
        eps: in both denominators.
        positive: "bank" takes the positive from the other peer's bank, as published; "live" its embedding of this batch
            as a constant; "live-grad" the same with gradient.
        normaliser: "batch" is N times the mean over the batch's candidates, one for each pair, as published; "full" the
            sum over the whole bank, one for each anchor, as in the paper's text.
        fixed: (M, M) normalisers to use instead.
        allowed: (B, N) bool, which rows are negatives of each image; with `count`, the K of the expectation.
        shard: which rows `banks` holds, where the rest is in other processes, all of which call this with the same
            embeddings; `negatives` are given as ids, or are already those that are here.

    Returns:
        losses (M, M), [a, b] = L(f_a -> f_b), zero on the diagonal; normalisers (M, M), the mean over anchors where
        each has its own. Everything is computed in at least float32, whatever autocast says: exp(score) overflows in
        half precision.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        banks = banks.to(embeddings.dtype)
        if isinstance(negatives, Tensor):
            negatives = given_rows(banks, negatives, shard)
        elif negatives is None:
            assert allowed is not None
            assert count is not None
            own = allowed  # which a function may rely on
            negatives = expected(banks, lambda piece: own[:, piece], own.sum(1), count)
        rows = banks.shape[1] if shard is None else shard.count
        setting = Setting(negatives, positives, temperature, eps, positive, normaliser, fixed, rows, shard)
        return Contrast.apply(embeddings, banks, setting)


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
