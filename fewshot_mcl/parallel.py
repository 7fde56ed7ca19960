"""Several processes that train one run, as torchrun starts them. With one process everything in here does nothing.

Every process takes its part of a batch through the peers. What they give is gathered, so that each process computes the whole
objective of the whole batch: normalisers, ensembles and banks are those of one process, and so are all draws. So each knows
the gradient at its own outputs without being told, and DistributedDataParallel takes the mean of what comes out at the
parameters, which is the gradient of one process.

Within `over("peers")` it is the peers that are split: every process takes the whole batch through its own, and what they give is
gathered too. What is left to add up are the gradients of the stages that peers of several processes share
(`training.peer_parallel`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fewshot_mcl import job
from fewshot_mcl.errors import UserError
from fewshot_mcl.resources import several

TIMEOUT = timedelta(minutes=10)  # after which a process that hears nothing of another gives up
T = TypeVar("T")
_over = "data"
_waited = 0.0


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def over(what: str) -> Iterator[None]:
    """Within it the processes have parts of the "data", or of the "peers"."""
    global _over
    before, _over = _over, what
    try:
        yield
    finally:
        _over = before


def split_peers() -> bool:
    """Whether each process has some of the peers and every image, not some of the images and every peer."""
    return world() > 1 and _over == "peers"


def parts() -> int:
    """Over how many processes the images are split."""
    return 1 if split_peers() else world()


@contextmanager
def processes() -> Iterator[None]:
    """Work together with the other processes that torchrun has started, if it has: over NCCL where there are GPUs, or gloo."""
    if not several() or dist.is_initialized():
        yield
        return
    if gpu := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    job.join("nccl" if gpu else "gloo", TIMEOUT)
    yield  # after an error the others are not waited for: torchrun ends them
    dist.destroy_process_group()


@contextmanager
def waiting() -> Iterator[None]:
    """Count the time in here, where tensors of other processes are waited for."""
    global _waited
    start = time.monotonic()
    yield
    _waited += time.monotonic() - start


def waited() -> float:
    """Seconds that this process has waited for tensors of others."""
    return _waited


def part(count: int, unit: int = 1) -> slice:
    """Which of `count` images, or things made of them, belong to this process: all where peers are split."""
    return slice(0, count) if split_peers() else share_of(rank(), count, unit)


def share_of(number: int, count: int, unit: int = 1) -> slice:
    """Which of `count` things in a row belong to process `number`, whatever else is split: consecutive ones, in whole units but
    for the last."""
    start, stop = _bounds(count, unit, number)
    return slice(start, stop)


def peers_of(number: int, count: int) -> range:
    """Which of `count` peers belong to process `number` where they are split: process 0 has the last, which is deployed."""
    first, last = _bounds(count, 1, number)
    return range(count - last, count - first)


def _bounds(count: int, unit: int, number: int) -> tuple[int, int]:
    units = -(-count // unit)
    first, last = (min(count, units * (number + i) // world() * unit) for i in (0, 1))
    return first, last


def gather(mine: Tensor, dim: int, count: int, unit: int = 1) -> Tensor:
    """The parts of all processes, one behind the other, with gradient.

    Args:
        mine: this process's `part(count, unit)` of `count` entries in dimension `dim`.
    """
    if parts() == 1:
        return mine
    return torch.cat(_from_each(mine.movedim(dim, 0), count, unit)).movedim(0, dim)


def of_all_peers(mine: Tensor, count: int) -> Tensor:
    """What all of `count` peers give, where `mine` is what this process's own give, peers first; with gradient."""
    return torch.cat(_from_each(mine, count, 1)[::-1])


def _from_each(mine: Tensor, count: int, unit: int) -> list[Tensor]:
    sizes = [stop - start for start, stop in (_bounds(count, unit, number) for number in range(world()))]
    padded = torch.cat([mine, mine.new_zeros(max(sizes) - len(mine), *mine.shape[1:])]).contiguous()
    return [each[:size] for each, size in zip(cast(Tensor, _GatherOutputs.apply(padded)), sizes)]


def of_all_parts(mine: Tensor) -> Tensor:
    """(n, ...) of each process that has a part of the images -> (W, n, ...) of all of them, with gradient."""
    return cast(Tensor, _Gather.apply(mine)) if parts() > 1 else mine[None]


def _all(mine: Tensor) -> Tensor:
    """(n, ...) of each process -> (W, n, ...)."""
    values = [torch.empty_like(mine) for _ in range(world())]
    with waiting():
        dist.all_gather(values, mine)
    return torch.stack(values)


class _GatherOutputs(torch.autograd.Function):
    """(n, ...) of each process -> (W, n, ...), of which every process then computes the same, and so knows all of the gradient.

    DistributedDataParallel takes the mean where a sum over the parts of the images is meant: each gradient is W times as large.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return _all(mine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[rank()] * parts()


class _Gather(torch.autograd.Function):
    """The same where each process makes something else of it: back comes the sum of their gradients of one's own."""

    @staticmethod
    def forward(mine: Tensor) -> Tensor:
        return _all(mine.contiguous())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Nothing need be kept."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient.contiguous())[rank()]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], mine: Tensor) -> tuple[Tensor, int]:
        """Of stacked peers, in one exchange."""
        return cast(Tensor, _Gather.apply(mine)), in_dims[0] + 1


def total(values: Tensor) -> Tensor:
    """Sum over all parts of the images, without gradient; `values` itself becomes it."""
    return added(values) if parts() > 1 else values


def added(values: Tensor) -> Tensor:
    """Sum over all processes, whatever is split over them; `values` itself becomes it."""
    with waiting():
        dist.all_reduce(values)
    return values


def handed_over(values: Tensor, given: list[int], taken: list[int]) -> Tensor:
    """Hand given[r] of `values`, (n, ...), one after another, to each process r; what each hands to this one, taken[r] of it."""
    if world() == 1:
        return values
    values = values.to("cuda" if dist.get_backend() == "nccl" else "cpu").contiguous()
    result = values.new_empty(sum(taken), *values.shape[1:])
    with waiting():
        dist.all_to_all_single(result, values, taken, given)
    return result


def largest(number: int) -> int:
    """Of all processes' numbers."""
    if world() == 1:
        return number
    value = torch.tensor(number, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        dist.barrier()


def told(value: T) -> T:
    """What process 0 says."""
    if world() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return box[0]


def from_all(value: T) -> list[T]:
    """What each process says, by its number."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T]) -> T:
    """Do what every process must do, and fail everywhere where one of them fails.

    Raises:
        UserError: what `work` raised, in the process of the lowest number that had one, of which the others say whose it was.
    """
    result, error = None, None
    try:
        result = work()
    except UserError as raised:
        error = raised
    errors = from_all(str(error) if error else None)
    first = next((r for r, text in enumerate(errors) if text is not None), None)
    if first is not None and errors[0] != errors[first]:
        raise UserError(f"process {first}: {errors[first]}")
    if first is not None and error is None:
        raise UserError(str(errors[first]))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def found(mine: list[str]) -> list[str]:
    """What any process has found."""
    return [each for one in from_all(mine) for each in one]


def same(value: str, what: str) -> None:
    """Raise `UserError` in every process where `value` is not the same in all of them."""
    values = from_all(value)
    if other := [r for r, each in enumerate(values) if each != values[0]]:
        raise UserError(
            f"process {other[0]} has other {what} than process 0: every machine needs the same files. Nothing was changed."
        )
