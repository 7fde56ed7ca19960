"""Randomness without hidden state: every draw is a function of (seed, purpose, numbers).

Nothing is carried along from one draw to the next, so resuming a run, or drawing in batches of another size, cannot
change one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

UInts = NDArray[np.uint64]


def key(seed: int, *purpose: str | int) -> int:
    """A 64-bit key of its own for every (seed, purpose...)."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest(), "little")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded by `key(seed, *purpose)`."""
    import torch

    return torch.Generator().manual_seed(key(seed, *purpose) & (2**63 - 1))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Within it torch's global generator, which layers initialise themselves from, is seeded; afterwards it is as before."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, *purpose))
        yield


def _mix(x: UInts) -> UInts:
    """SplitMix's 64-bit finaliser (Steele, Lea, Flood 2014), in place: every output bit depends on all input bits."""
    shifted = np.empty_like(x)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= np.right_shift(x, np.uint64(shift), out=shifted)
        x *= np.uint64(factor)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x


def random_bits(stream: int, rows: UInts, count: int) -> UInts:
    """(R,) row numbers -> (R, count) random 64-bit words; row r's words depend on (stream, r) alone."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    heads = _mix(rows * golden + np.uint64(stream))
    return _mix(heads[:, None] + np.arange(1, count + 1, dtype=np.uint64) * golden)


def distinct(stream: int, rows: UInts, sizes: UInts, count: int, smallest: int, largest: int) -> NDArray[np.int64]:
    """Ordered samples without replacement, one a row.

    Args:
        stream: a `key`.
        rows: (R,) numbers of the rows; a row's sample depends on its number alone.
        sizes: (R,) row r is drawn from range(sizes[r]).
        count: how many to draw in each row.
        smallest, largest: bounds of every size that may occur, in this call or another: they choose the algorithm,
            which must be the same for every batch.

    Returns:
        (R, count) integers, distinct within a row, every ordered sample equally likely.
    """
    if count * (count - 1) > 2 * smallest:  # repeats are likely: sort random keys instead of redrawing
        keys = random_bits(stream, rows, largest)
        keys[np.arange(largest, dtype=np.uint64) >= sizes[:, None]] = np.iinfo(np.uint64).max
        return np.argsort(keys, axis=1)[:, :count].astype(np.int64)
    result = _uniform(random_bits(stream, rows, count), sizes)
    waiting, attempt = np.flatnonzero(_has_repeat(result)), 0
    while len(waiting):
        attempt += 1
        result[waiting] = _uniform(random_bits(key(stream, attempt), rows[waiting], count), sizes[waiting])
        waiting = waiting[_has_repeat(result[waiting])]
    return result


def _uniform(bits: UInts, sizes: UInts) -> NDArray[np.int64]:
    """64 random bits -> an integer below the row's size, in place (multiply and shift; the bias is below size / 2^32)."""
    bits >>= np.uint64(32)
    bits *= sizes[:, None]
    bits >>= np.uint64(32)
    return bits.view(np.int64)


def _has_repeat(samples: NDArray[np.int64]) -> NDArray[np.bool_]:
    ordered = np.sort(samples, axis=1)
    return (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
