"""Two ways to get the scores of negatives out of a memory bank, a piece at a time. They give equal values; shapes decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as nnf

from fewshot_mcl.objectives.contrast_plan import ContrastPlan

# A slice of R rows -> (B, n): how often each is a negative of each image, or, 1 or 0, whether it may be one.
OfRows = Callable[[slice], Tensor]


class Candidates(Protocol):
    """Where the negatives' scores come from, in pieces. The anchors (B, A, D) are the images as the A other peers see them."""

    plan: ContrastPlan
    count: int  # K
    pieces: list[slice]

    def images(self, piece: slice) -> slice:
        """The images that a piece is about."""
        ...

    def shape(self, piece: slice, batch: int, anchors: int) -> tuple[int, int, int]:
        """(n, A, R): n images, R candidates."""
        ...

    def prepare(self, bank: Tensor) -> None:
        """What follows is about this bank."""
        ...

    def scores(self, piece: slice, anchors: Tensor, out: Tensor) -> Tensor:
        """Write the inner products (n, A, R)."""
        ...

    def weights(self, piece: slice) -> Tensor | None:
        """(n, 1, R) how often each candidate counts; None for once each."""
        ...

    def combine(self, piece: slice, gradient: Tensor, into: Tensor) -> None:
        """Add what a gradient (n, A, R) at the scores is at the anchors, (B, A, D)."""
        ...


def _pieces(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


class Gathered:
    """Given ids (B, K), their rows fetched from the bank: best for few negatives. A piece is of images.

    Bags are sums of rows, and on a CPU they are read ahead: twice as fast as `index_select` and a product. For scores, which
    are no sums, rows are fetched as bags of one, as many as stay in the cache.

    Args:
        plan: of this form.
        ids: (B, K') of the rows.
        weights: (B, K') how often each counts; None for once each.
        count: K, where that is not K' because other rows are in other processes.
    """

    def __init__(
        self, plan: ContrastPlan, ids: Tensor, weights: Tensor | None = None, count: int | None = None
    ) -> None:
        self.plan, self.ids, self.count, self._weights = plan, ids.to(torch.int32), count or ids.shape[1], weights
        self.pieces = _pieces(len(ids), plan.step)

    def images(self, piece: slice) -> slice:
        return piece

    def shape(self, piece: slice, batch: int, anchors: int) -> tuple[int, int, int]:
        return piece.stop - piece.start, anchors, self.ids.shape[1]

    def prepare(self, bank: Tensor) -> None:
        self._bank = bank

    def scores(self, piece: slice, anchors: Tensor, out: Tensor) -> Tensor:
        ids, anchors = self.ids[piece], anchors[piece]
        count = ids.shape[1]
        width = min(count, self.plan.fetch)
        for images in _pieces(len(ids), self.plan.fetch // width):
            for chosen in _pieces(count, width):
                block = ids[images, chosen]
                rows = nnf.embedding_bag(block.reshape(-1, 1), self._bank, mode="sum").view(*block.shape, -1)
                torch.bmm(anchors[images], rows.transpose(1, 2), out=out[images, :, chosen])
        return out

    def weights(self, piece: slice) -> Tensor | None:
        return None if self._weights is None else self._weights[piece, None]

    def combine(self, piece: slice, gradient: Tensor, into: Tensor) -> None:
        ids = self.ids[piece, None].expand(gradient.shape).flatten(0, 1)
        sums = nnf.embedding_bag(ids, self._bank, mode="sum", per_sample_weights=gradient.flatten(0, 1))
        into[piece] += sums.view(into[piece].shape)


class Dense:
    """Rows that all images share, multiplied with all of them: best where the negatives are many. A piece is of rows.

    Args:
        plan: of this form.
        weights: how often each row counts as a negative of each image.
        count: K.
        rows: R of them.
        chosen: (R,) which rows of a bank these are; None for all.
    """

    def __init__(
        self,
        plan: ContrastPlan,
        weights: OfRows,
        count: int,
        rows: int,
        chosen: Tensor | None = None,
    ) -> None:
        self.plan, self._weights, self.count, self._chosen = plan, weights, count, chosen
        self.pieces = _pieces(rows, plan.step)

    def images(self, piece: slice) -> slice:
        return slice(None)

    def shape(self, piece: slice, batch: int, anchors: int) -> tuple[int, int, int]:
        return batch, anchors, piece.stop - piece.start

    def prepare(self, bank: Tensor) -> None:
        self._bank = bank if self._chosen is None else bank.index_select(0, self._chosen)

    def scores(self, piece: slice, anchors: Tensor, out: Tensor) -> Tensor:
        torch.mm(anchors.flatten(0, 1), self._bank[piece].T, out=out.flatten(0, 1))
        return out

    def weights(self, piece: slice) -> Tensor:
        return self._weights(piece)[:, None]

    def combine(self, piece: slice, gradient: Tensor, into: Tensor) -> None:
        into.flatten(0, 1).addmm_(gradient.flatten(0, 1), self._bank[piece])


def counted(ids: Tensor, rows: int, dtype: torch.dtype, weights: Tensor | None = None) -> OfRows:
    """Weights of given ids (B, K): how often each row is among them, where each counts `weights` (B, K) times or once."""
    counts = torch.zeros(len(ids), rows, dtype=dtype, device=ids.device)
    counts.scatter_add_(1, ids.long(), counts.new_ones(()).expand(ids.shape) if weights is None else weights)
    return lambda piece: counts[:, piece]


def permitted(plan: ContrastPlan, allowed: OfRows, usable: Tensor, count: int, dtype: torch.dtype) -> OfRows:
    """Weights of the expectation over draws of K rows from those that `allowed` names, `usable` (B,) for each image."""
    share = (count / usable.clamp(min=1).to(dtype))[:, None]
    if not plan.keep:
        return lambda piece: allowed(piece) * share
    weights = allowed(slice(None)) * share
    return lambda piece: weights[:, piece]


def other_classes(own: Tensor, labels: Tensor, dtype: torch.dtype) -> OfRows:
    """Names the rows whose label (R,) is not the image's own (B,)."""
    # Compared as numbers of the type that the answer has: ten times as fast as a comparison that is then converted.
    mine = own.to(dtype)[:, None]

    def allowed(piece: slice) -> Tensor:
        others = labels[piece].to(dtype)
        return torch.ne(mine, others, out=mine.new_empty(len(mine), len(others)))

    return allowed
