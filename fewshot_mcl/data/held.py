"""Training images that several processes hold together: each reads its part once, keeps it in memory, and hands it out."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from fewshot_mcl import parallel
from fewshot_mcl.data.store import CHUNK, ImageStore, in_bytes, memory_bytes
from fewshot_mcl.errors import UserError


class HeldStore(ImageStore):
    """A store whose batches come out of the memories of all processes. Process r of W has the r-th of W parts of the chunks.

    `gather` gives what it gives of `store`, and every process must call it as often as the others, whatever rows it wants.
    All else is read from `store`.

    Raises:
        UserError: where the parts of the processes on this machine do not fit into its memory.
    """

    def __init__(self, store: ImageStore) -> None:
        super().__init__(
            store.images, store.labels, store.class_names, split=store.split, source=store.source, resize=store.resize,
            ids=store.ids, fingerprint=store.fingerprint,
        )  # fmt: skip
        parts = [parallel.share_of(number, len(store), CHUNK) for number in range(parallel.world())]
        self._starts = torch.tensor([*(part.start for part in parts), len(store)])
        first, stop = parts[parallel.rank()].start, parts[parallel.rank()].stop
        self._require_memory()
        self.held = torch.empty(stop - first, *self.shape, dtype=torch.uint8)
        for start in range(first, stop, CHUNK):  # one after another, as slow storage likes it
            end = min(start + CHUNK, stop)
            self.held[start - first : end - first] = store.images[start:end]

    def _require_memory(self) -> None:
        """Of this machine, for those of its processes."""
        here = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), parallel.world())
        largest = int(self._starts.diff().max()) * self.shape[0] * self.shape[1] * self.shape[2]
        if here * largest > memory_bytes():
            raise UserError(
                f"images = sharded needs {in_bytes(here * largest)} for the {here} processes of this machine, which has "
                f"{in_bytes(memory_bytes())}: use more machines, or --set images=whole."
            )

    def gather(self, rows: Tensor) -> Tensor:
        """Images of (B,) row numbers, as (B, C, H, W) uint8."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows must lie in [0, {len(self)})")
        world = parallel.world()
        holder = torch.searchsorted(self._starts, rows, right=True) - 1
        order = torch.argsort(holder, stable=True)
        wanted = torch.bincount(holder, minlength=world)
        asked = parallel.handed_over(wanted, [1] * world, [1] * world).cpu()  # how many each wants of this process
        theirs = parallel.handed_over(rows[order], wanted.tolist(), asked.tolist()).cpu()
        mine = self.held[theirs - self._starts[parallel.rank()]]
        found = parallel.handed_over(mine, asked.tolist(), wanted.tolist())
        return torch.empty_like(found).index_copy_(0, order.to(found.device), found)
