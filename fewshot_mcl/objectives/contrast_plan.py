"""Which form the contrast takes, from its shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

# Bytes in work at a time. On a CPU what falls out of the cache is slower; elsewhere starting a computation costs more than that.
PIECE_BYTES = {"cpu": 3 << 19}  # of scores
FETCH_BYTES = {"cpu": 1 << 20}  # of rows of a bank
OTHERWISE = 1 << 25
KEEP_BYTES = 1 << 26  # scores are kept between the two passes up to here, and computed twice beyond


@dataclass(frozen=True)
class ContrastPlan:
    """How the contrast of one batch is computed, and why.

    Attributes:
        form: "gather" fetches each image's own negatives; "dense" multiplies all images with the same rows of a bank,
            which count for an image as often as they are its negatives.
        step: images (gather) or rows (dense) of a piece, whose scores are worked on at a time.
        fetch: rows of a bank that are fetched at a time for their scores (gather).
        keep: whether the scores of all pieces are kept between the two passes over them.
        reason: what chose the form.
        bytes: of working memory, beside embeddings, banks and ids.
    """

    form: Literal["gather", "dense"]
    step: int
    fetch: int
    keep: bool
    reason: str
    bytes: int

    def __str__(self) -> str:
        unit = "image" if self.form == "gather" else "bank row"
        twice = "" if self.keep else ", scores computed twice"
        each = f"{self.step:,} {unit}{'s' * (self.step > 1)} at a time"
        return f"{self.form} ({self.reason}), {each}{twice}: {self.bytes / 2**20:.1f} MiB of working memory"


def gathering_costs(anchors: int) -> float:
    """How many rows of a bank A anchors are multiplied with while one is fetched (fitted to A = 1 to 15, CPU)."""
    return 1.5 + 12 / anchors


def choose_form(banks: Tensor, batch: int, given: int | None = None, shared: int | None = None) -> ContrastPlan:
    """The cheaper form for these shapes.

    Args:
        banks: (M, N, D).
        batch: B.
        given: K, where each image has its own negatives.
        shared: how many rows all images share, where they do; all N where neither is given.
    """
    (peers, rows, dim), itemsize, device = banks.shape, banks.itemsize, banks.device.type
    anchors = peers - 1
    factor = gathering_costs(anchors)
    gather = given is not None and given * factor < rows
    if given is not None:
        reason = f"K = {given:,} is {'less than' if gather else 'at least'} 1/{factor:.3g} of {rows:,} rows"
    else:
        reason = f"all {rows:,} rows count" if shared is None else f"{shared:,} shared rows"
    # Scores are an array of units x (anchors * width), and a piece is some of the units.
    units, width = (batch, given or 0) if gather else (shared or rows, batch)
    scores = anchors * width
    step = max(1, min(units, PIECE_BYTES.get(device, OTHERWISE) // (scores * itemsize)))
    fetch = max(1, min(batch * width, FETCH_BYTES.get(device, OTHERWISE) // (dim * itemsize))) if gather else 0
    keep = units * scores * itemsize <= KEEP_BYTES
    numbers = 2 * step * scores + (units if keep else step) * scores  # two buffers, and the scores themselves
    if gather:
        numbers += fetch * dim + step * scores  # rows, and ids by anchor
    else:  # weights, and the shared rows
        numbers += (units if keep or given else step) * batch + (shared or 0) * dim
    numbers += (peers * peers + 3 * anchors) * batch * dim  # gradients, anchors
    return ContrastPlan("gather" if gather else "dense", step, fetch, keep, reason, numbers * itemsize)
