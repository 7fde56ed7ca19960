"""Which form the contrast takes, from its shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PIECE_BYTES = 1 << 20  # of bank rows in work at a time: larger pieces fall out of the cache and are slower
KEEP_BYTES = 1 << 26  # scores are kept between the two passes up to here, and computed twice beyond


@dataclass(frozen=True)
class ContrastPlan:
    """How the contrast of one batch is computed, and why.

    Attributes:
        form: "gather" fetches each image's own negatives; "dense" multiplies all images with the same rows of a bank,
            which count for an image as often as they are its negatives.
        step: images (gather) or rows (dense) of a piece.
        pieces: how many there are.
        keep: whether the scores of all pieces are kept between the two passes over them.
        reason: what chose the form.
        bytes: of working memory, beside embeddings, banks and ids.
    """

    form: Literal["gather", "dense"]
    step: int
    pieces: int
    keep: bool
    reason: str
    bytes: int

    def __str__(self) -> str:
        unit = "image" if self.form == "gather" else "bank row"
        twice = "" if self.keep else ", scores computed twice"
        each = f"{self.step:,} {unit}{'s' * (self.step > 1)} at a time"
        return f"{self.form} ({self.reason}), {each}{twice}: {self.bytes / 2**20:.1f} MiB of working memory"


def gathering_costs(anchors: int) -> float:
    """How many rows A anchors could be multiplied with while each one's own row is fetched, twice, and multiplied (measured)."""
    return 2 + 20 / anchors


def choose_form(
    shape: Sequence[int], batch: int, itemsize: int, given: int | None = None, shared: int | None = None
) -> ContrastPlan:
    """The cheaper form for these shapes.

    Args:
        shape: (M, N, D) of the banks.
        batch: B.
        itemsize: bytes of a number.
        given: K, where each image has its own negatives.
        shared: how many rows all images share, where they do; all N where neither is given.
    """
    peers, rows, dim = shape
    anchors = peers - 1
    factor = gathering_costs(anchors)
    form: Literal["gather", "dense"] = "dense"
    if given is None:
        reason = f"all {rows:,} rows count" if shared is None else f"{shared:,} shared rows"
    elif given * factor < rows:
        form, reason = "gather", f"K = {given:,} is less than 1/{factor:.3g} of {rows:,} rows"
    else:
        reason = f"K = {given:,} is at least 1/{factor:.3g} of {rows:,} rows"
    units, width, fetched = (
        (batch, given or 0, dim * (given or 0)) if form == "gather" else (shared or rows, batch, dim)
    )
    step = max(1, min(units, PIECE_BYTES // (fetched * itemsize)))
    scores = anchors * width
    keep = units * scores * itemsize <= KEEP_BYTES
    numbers = 2 * step * scores + (units if keep else step) * scores  # two buffers, and the scores themselves
    if form == "gather":
        numbers += step * fetched
    else:  # weights, and the shared rows
        numbers += (units if keep or given else step) * batch + (shared or 0) * dim
    numbers += (peers * peers + 3 * anchors) * batch * dim  # gradients, anchors
    return ContrastPlan(form, step, -(-units // step), keep, reason, numbers * itemsize)
