"""Data pickles (miniImageNet, CIFAR) read without running anything that is in them.

A pickle is a program. This reader knows only the instructions that build plain data; a name that the pickle asks for
becomes an inert token, and the one instruction that calls something looks the token up among the five constructors
below, which are this module's own. NumPy's own never see what the file says: an array is checked here (plain numbers,
as many bytes as its shape needs), then made with `np.frombuffer`.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError

# Instructions that would make or call other objects.
_CALLING = ("PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER")


@dataclass(frozen=True)
class _Token:
    """A name the pickle may ask for, in place of what it names."""

    name: str


class _Dtype:
    """A NumPy number type, by its letter and size; byte order comes later, as state."""

    def __init__(self, code: str) -> None:
        if code[:1] not in ("b", "i", "u", "f") or not code[1:].isdigit():
            raise pickle.UnpicklingError(f"an array of type '{printable(code)[:20]}' is not plain numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array that gets its content as state."""

    def __init__(self) -> None:
        self.value = np.empty(0, np.uint8)

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if isinstance(content, str):  # the bytes of a Python 2 pickle
        content = content.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("an array without plain numbers")
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise pickle.UnpicklingError("an array without a shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise pickle.UnpicklingError(f"an array whose {len(content)} bytes do not fill its shape {shape[:8]}")
    return np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: str) -> _Array:
    array = _Array()
    array.value = _array(content, dtype, shape, order)
    return array


def _scalar(dtype: Any, content: Any) -> int | float | bool:
    number: int | float | bool = _array(content, dtype, (), "C").item()
    return number


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):  # others could inflate
        raise pickle.UnpicklingError(f"text encoded as '{printable(encoding)[:20]}'")
    return text.encode("latin1")


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "_reconstruct": lambda kind, shape, code: _Array(),
    "_frombuffer": _from_buffer,
    "scalar": _scalar,
    "dtype": lambda code, align=False, copy=True: _Dtype(code),
    "encode": _encode,
}
_NAMES = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): "dtype", ("_codecs", "encode"): "encode"}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _NAMES[_core + ".multiarray", "_reconstruct"] = "_reconstruct"
    _NAMES[_core + ".multiarray", "scalar"] = "scalar"
    _NAMES[_core + ".numeric", "_frombuffer"] = "_frombuffer"


class _Bounded:
    """A file from which no more can be asked than it holds: a made-up length allocates nothing."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise pickle.UnpicklingError("the file ends early")
        return self.file.read(count)

    def readinto(self, buffer: bytearray) -> int:
        return self.file.readinto(buffer)  # type: ignore[attr-defined]

    def readline(self) -> bytes:
        return self.file.readline()


class _Reader(pickle._Unpickler):
    """The standard library's reader in Python, whose instructions can be taken away one by one."""

    stack: list[Any]  # of the base class, which does not declare it
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> _Token:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {printable(f'{module}.{name}')[:80]}, which data does not need")
        return _Token(_NAMES[module, name])

    def load_reduce(self) -> None:
        arguments, token = self.stack.pop(), self.stack[-1]
        if not isinstance(token, _Token) or token.name not in _CONSTRUCTORS:
            raise pickle.UnpicklingError("it calls something that is no constructor of plain data")
        self.stack[-1] = _CONSTRUCTORS[token.name](*arguments)

    def load_build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if not isinstance(built, _Dtype | _Array):
            raise pickle.UnpicklingError("it changes an object that is no array")
        built.set_state(state)

    def refuse(self) -> None:
        raise pickle.UnpicklingError("it makes an object that is no plain data")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    for _name in _CALLING:
        dispatch[getattr(pickle, _name)[0]] = refuse


def _plain(value: Any, depth: int = 3) -> Any:
    """`value` with its arrays in place; data has them near the top, so a maze of shared containers is not walked."""
    if isinstance(value, _Array):
        return value.value
    if depth and isinstance(value, dict):
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return type(value)(_plain(item, depth - 1) for item in value)
    return value


def load_pickle(path: Path) -> Any:
    """What a pickle of plain data holds: dict, list, tuple, str, bytes, numbers and NumPy arrays of numbers.

    All protocols are read; text of Python 2 comes as str (latin1). Arrays may be read-only.

    Raises:
        UserError: where the file is damaged, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            return _load(file, path.stat().st_size, printable(path))
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read: {error.strerror}.") from error


def loads_pickle(content: bytes, where: str) -> Any:
    """`load_pickle` of bytes that were read already; `where` is what a message calls them, fit to print."""
    return _load(io.BytesIO(content), len(content), where)


def _load(file: BinaryIO, size: int, where: str) -> Any:
    try:
        return _plain(_Reader(_Bounded(file, size), encoding="latin1").load())
    except OSError:
        raise
    except Exception as error:  # damage shows as nearly every kind of exception
        reason = printable(error if isinstance(error, pickle.UnpicklingError) else f"damaged ({error!r})"[:200])
        raise UserError(
            f"{where} is refused: {reason}. Only pickles of arrays, lists, dicts, text and numbers are read."
        ) from error
