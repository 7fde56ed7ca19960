"""Three ways to get the scores of negatives out of a memory bank. They give equal values; shapes decide which is cheapest."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Candidates(Protocol):
    """Where the negatives' scores come from. `rows` is a slice of the batch, `anchors` (A, n, D)."""

    count: int  # K
    bytes_per_anchor: int

    def scores(self, anchors: Tensor, bank: Tensor, rows: slice) -> Tensor:
        """(A, n, R) inner products with R candidate rows of the bank."""
        ...

    def weights(self, rows: slice) -> Tensor | None:
        """(n, R) how often each candidate counts; None for once each."""
        ...

    def combine(self, gradient: Tensor, bank: Tensor, rows: slice) -> Tensor:
        """(A, n, R) gradient at the scores -> (A, n, D) gradient at the anchors."""
        ...


class Gathered:
    """Given ids, their rows fetched from the bank: best for few negatives."""

    def __init__(self, ids: Tensor, dim: int, itemsize: int) -> None:
        self.ids, self.count = ids, ids.shape[1]
        self.bytes_per_anchor = self.count * dim * itemsize

    def _rows(self, bank: Tensor, rows: slice) -> Tensor:
        ids = self.ids[rows]
        return bank.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)

    def scores(self, anchors: Tensor, bank: Tensor, rows: slice) -> Tensor:
        return torch.einsum("and,nrd->anr", anchors, self._rows(bank, rows))

    def weights(self, rows: slice) -> None:
        return None

    def combine(self, gradient: Tensor, bank: Tensor, rows: slice) -> Tensor:
        return torch.einsum("anr,nrd->and", gradient, self._rows(bank, rows))


class Picked:
    """Given ids, picked from the product with the whole bank: best where the ids are many beside the bank's rows."""

    def __init__(self, ids: Tensor, bank_rows: int, itemsize: int) -> None:
        self.ids, self.count = ids, ids.shape[1]
        self.bytes_per_anchor = (bank_rows + self.count) * itemsize

    def scores(self, anchors: Tensor, bank: Tensor, rows: slice) -> Tensor:
        return (anchors @ bank.T).gather(-1, self.ids[rows].expand(len(anchors), -1, -1))

    def weights(self, rows: slice) -> None:
        return None

    def combine(self, gradient: Tensor, bank: Tensor, rows: slice) -> Tensor:
        dense = gradient.new_zeros(*gradient.shape[:2], len(bank))
        return dense.scatter_add_(-1, self.ids[rows].expand(len(gradient), -1, -1), gradient) @ bank


class Whole:
    """Every row of another class, each counted K / (number of such rows) times: the expectation over the draws of K negatives."""

    def __init__(self, allowed: Tensor, count: int, dtype: torch.dtype) -> None:
        self.allowed, self.count = allowed, count
        self.share = count / allowed.sum(1, keepdim=True).to(dtype)
        self.bytes_per_anchor = allowed.shape[1] * dtype.itemsize

    def scores(self, anchors: Tensor, bank: Tensor, rows: slice) -> Tensor:
        return anchors @ bank.T

    def weights(self, rows: slice) -> Tensor:
        return self.allowed[rows] * self.share[rows]

    def combine(self, gradient: Tensor, bank: Tensor, rows: slice) -> Tensor:
        return gradient @ bank
