"""What lies in several processes, and all of it for a checkpoint: rows of memory banks, and peers that others have.

Of banks every process scores the whole batch against its own rows, and what it finds is added up: as class centres are
spread in An et al., "Partial FC" (arXiv 2010.05222). Positives belong to the process that has their row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewshot_mcl import parallel
from fewshot_mcl.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Rows `part` of the N = `count` rows of every bank, which are those of this process."""

    part: slice
    count: int

    @classmethod
    def mine(cls, count: int) -> Shard | None:
        """This process's of `count` rows; None where it is alone and has all of them.

        Raises:
            UserError: if there are fewer rows than processes.
        """
        if count < parallel.world():
            raise UserError(
                f"{count} images are fewer than {parallel.world()} processes, so their banks cannot be spread: use "
                "--set objective.banks=replicated."
            )
        return cls(parallel.share_of(parallel.rank(), count), count) if parallel.world() > 1 else None

    def __len__(self) -> int:
        return self.part.stop - self.part.start

    def holds(self, ids: Tensor) -> Tensor:
        """Which of some rows (of any shape) are here."""
        return (ids >= self.part.start) & (ids < self.part.stop)

    def local(self, ids: Tensor) -> Tensor:
        """Where rows lie in the banks of this process; any place for those that are not here."""
        return (ids - self.part.start).clamp_(0, len(self) - 1)

    def own(self, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(B, K) rows -> (B, n) places of those that are here, in a row each, and (B, n) 1 for each of them and 0 behind."""
        held = self.holds(ids)
        counts = held.cumsum(1)
        width = max(1, int(counts[:, -1].max()))
        image, column = held.nonzero(as_tuple=True)
        place = counts[image, column] - 1
        local, weights = ids.new_zeros(len(ids), width), torch.zeros(len(ids), width, dtype=dtype, device=ids.device)
        local[image, place] = ids[image, column] - self.part.start
        weights[image, place] = 1
        return local, weights


@dataclass(frozen=True)
class Spread:
    """A tensor (M, N, ...) of which every process holds the rows of its shard in dimension 1.

    Attributes:
        mine: (M, n, ...) of this process.
        shard: which of the N these are.
    """

    mine: Tensor
    shard: Shard

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.mine.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of it."""
        peers, _, *rest = self.mine.shape
        return (peers, self.shard.count, *rest)

    def blocks(self) -> Iterator[Tensor]:
        """On process 0 all rows, in order, in blocks of one process each. Others send theirs and have no blocks.

        Every process must go through them.
        """
        for rows in self.mine.detach():
            if parallel.rank():
                dist.send(rows.contiguous(), 0)
                continue
            yield rows
            for number in range(1, parallel.world()):
                count = len(range(self.shard.count)[parallel.share_of(number, self.shard.count)])
                block = rows.new_empty(count, *rows.shape[1:])
                dist.recv(block, number)
                yield block


@dataclass(frozen=True)
class Elsewhere:
    """A tensor that process `holder` has, and process 0 has not.

    Attributes:
        mine: the tensor, in that process.
        shape, dtype: of it.
    """

    mine: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    holder: int

    def blocks(self) -> Iterator[Tensor]:
        """On process 0 the tensor, in main memory. Its holder sends it, others do nothing; neither has blocks."""
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        if parallel.rank() == self.holder and self.mine is not None:
            dist.send(self.mine.detach().to(device).contiguous(), 0)
        elif parallel.rank() == 0:
            block = torch.empty(self.shape, dtype=self.dtype, device=device)
            dist.recv(block, self.holder)
            yield block.cpu()


Remote = Spread | Elsewhere


def spread(modules: nn.Module) -> dict[str, Shard]:
    """The buffers of which every process holds a part, by their names in the state dict."""
    return {
        f"{path}.{name}".lstrip("."): shard
        for path, module in modules.named_modules()
        for name, shard in getattr(module, "spread", {}).items()
    }


def whole_state(modules: nn.Module) -> dict[str, Tensor | Remote]:
    """The state dict, in which buffers that are spread are known to be."""
    shards = spread(modules)
    return {
        name: Spread(value, shards[name]) if name in shards else value for name, value in modules.state_dict().items()
    }


def completed(tensors: Mapping[str, Tensor | Remote]) -> dict[str, Tensor | Remote]:
    """`tensors` of this process, with those that process 0 lacks known to be elsewhere, in an order that all agree on.

    Lacking are those that are "meta" tensors there, or have no name. Where peers are not split nothing is.
    """
    if not parallel.split_peers():
        return dict(tensors)
    mine = {n: (tuple(v.shape), v.dtype) for n, v in tensors.items() if not (isinstance(v, Tensor) and v.is_meta)}
    first, *others = parallel.from_all(mine)
    result: dict[str, Tensor | Remote] = {name: value for name, value in tensors.items() if name in first}
    known = set(first)
    for holder, theirs in enumerate(others, 1):
        for name, (shape, dtype) in theirs.items():
            if name not in known:
                value = tensors.get(name)
                result[name] = Elsewhere(value if isinstance(value, Tensor) else None, shape, dtype, holder)
        known.update(theirs)
    return result


@torch.no_grad()
def not_numbers(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those that hold a value that is infinite or not a number, in any process."""
    here = {n: v for n, v in tensors.items() if v.is_floating_point() and v.numel() and not v.is_meta}
    # The extremes tell, and need no second tensor of the size: memory banks may be most of the memory.
    broken = [name for name, value in here.items() if not torch.stack(torch.aminmax(value)).isfinite().all()]
    everywhere = set(parallel.found(broken))
    return [name for name in tensors if name in everywhere]
