"""Tensors in safetensors files: written straight from memory, read where they lie, never held twice."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fewshot_mcl.errors import DamagedError
from fewshot_mcl.runs import files
from fewshot_mcl.spread import Remote

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
LARGE = 1 << 26  # bytes: tensors beyond this are never held twice
MOST_HEADER = 1 << 24  # bytes: of a hundred thousand tensors
Tensors = dict[str, Tensor]
Written = Mapping[str, Tensor | Remote]


class StoredTensors(dict[str, Tensor]):
    """The tensors of a safetensors file. The large ones stay in the file, mapped: they take memory once they are looked at."""

    def __init__(self, path: Path) -> None:
        mapped = load_file(path)
        # A copy, because even a small view would keep the whole file, which the next checkpoint deletes, on the disk.
        super().__init__({key: value.clone() if value.nbytes < LARGE else value for key, value in mapped.items()})
        self.path = path

    def copy_into(self, target: Tensor, name: str, rows: slice | None = None) -> None:
        """Copy a tensor, or its `rows` in dimension 1, into one of that shape.

        Of a large one a part at a time is mapped: all of it would count as memory.
        """
        if self[name].nbytes < LARGE:
            target.copy_(self[name] if rows is None else self[name][:, rows])
            return
        for block in _blocks(target.shape, LARGE // 4 // target.itemsize):
            with safe_open(self.path, "pt") as file:
                target[block].copy_(file.get_slice(name)[block if rows is None else _moved(block, rows)])


def _moved(block: tuple[slice, ...], rows: slice) -> tuple[slice, ...]:
    """A block of the rows `rows` of dimension 1, in the whole."""
    count = rows.stop - rows.start
    second = block[1] if len(block) > 1 else slice(0, count)
    return block[0], slice(rows.start + second.start, rows.start + min(second.stop, count)), *block[2:]


def _blocks(shape: Sequence[int], numbers: int) -> Iterator[tuple[slice, ...]]:
    """Blocks that together are all of a shape, none of more than so many numbers."""
    row = math.prod(shape[1:])
    step = max(1, numbers // row)
    for start in range(0, shape[0], step):
        for rest in _blocks(shape[1:], numbers) if row > numbers else [()]:
            yield slice(start, start + step), *rest


def read_tensors(path: Path, sha256: str, manifest: str, advice: str) -> StoredTensors:
    """The tensors of a safetensors file that must be the one its manifest names.

    Raises:
        DamagedError: with `advice`, if it is not.
    """
    try:
        found = files.sha256(path)
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}", advice) from error
    except ValueError as error:  # of a name that no file can have
        raise DamagedError(f"{manifest} is damaged: it names no file", advice) from error
    if found != sha256:
        raise DamagedError(f"{path} is damaged or cut short: its SHA-256 is not the one in {manifest}", advice)
    try:
        if header > MOST_HEADER:
            raise SafetensorError(f"a header of {header:,} bytes")
        return StoredTensors(path)
    except SafetensorError as error:
        raise DamagedError(f"{path} is not a valid safetensors file ({error})", advice) from error


def write_tensors(path: Path, tensors: Written) -> str:
    """Write a safetensors file, straight from the tensors' memory (the library makes copies), and give its SHA-256.

    Where some are spread over processes, the others must call `send_tensors`.
    """
    header, end = {}, 0
    for key, value in _in_order(tensors):
        start, end = end, end + math.prod(value.shape) * value.dtype.itemsize
        header[key] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = (_bytes(part) for _, value in _in_order(tensors) for part in _parts(value))
    return files.write_all(path, itertools.chain([len(text).to_bytes(8, "little"), text], content))


def send_tensors(tensors: Written) -> None:
    """Give process 0, which writes these tensors, the parts of them that are here."""
    for _, value in _in_order(tensors):
        if not isinstance(value, Tensor):
            for _ in value.blocks():
                pass


def _in_order(tensors: Written) -> list[tuple[str, Tensor | Remote]]:
    """In that of the file: large numbers first, so that all of them are aligned."""
    return sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)


def _parts(value: Tensor | Remote) -> Iterable[Tensor]:
    return [value] if isinstance(value, Tensor) else value.blocks()


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
