"""Data pickles (miniImageNet, CIFAR) read without running anything that is in them.

A pickle is a program. This reader knows only the instructions that build plain data; a name that the pickle asks for
becomes an inert token, and the one instruction that calls something looks the token up among the five constructors
below, which are this module's own. NumPy's own never see what the file says: an array is checked here (plain numbers,
as many bytes as its shape needs), then made with `np.frombuffer`.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError

# Instructions that would make or call other objects, or sets, in which data is not kept.
_REFUSED = (
    "PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "EMPTY_SET",
    "ADDITEMS", "FROZENSET",
)  # fmt: skip
MOST_INSTRUCTIONS = 1 << 22  # the largest set of one array takes a tenth; each may make an object of some sixty bytes
SPARSE = 128  # bytes of a file that allow one more: a list of half a million small arrays takes ten million
MAPPED = 1 << 10  # bytes of a text or an array that stay in the file, where it is mapped
MOST_SIDES, LONGEST_SIDE = 32, 1 << 48  # of an array
DEPTH = 3  # of containers: data has its arrays near the top
_KEYS = (str, bytes, int, float, type(None))  # whose hash takes no walk through what they hold


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
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray | memoryview):
        raise pickle.UnpicklingError("an array without plain numbers")
    if not isinstance(shape, tuple) or len(shape) > MOST_SIDES or not all(map(_is_side, shape)):
        raise pickle.UnpicklingError("an array without a shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise pickle.UnpicklingError(f"an array whose {len(content)} bytes do not fill its shape {shape[:8]}")
    return np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= LONGEST_SIDE


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


class _Mapped(_Bounded):
    """Such a file, mapped into memory: what is long is read as a view of it, which takes no memory of its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, size)
        self.view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def read(self, count: int) -> Any:
        if count < MAPPED:
            return super().read(count)
        start = self.file.tell()
        if count > self.size - start:
            raise pickle.UnpicklingError("the file ends early")
        self.file.seek(start + count)
        return self.view[start : start + count]


class _Counted(dict[int, Callable[..., None]]):
    """Instructions, of which no more can be looked up than a file of data needs."""

    left = MOST_INSTRUCTIONS

    def __getitem__(self, key: int) -> Callable[..., None]:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError("it has more instructions than its size allows")
        return super().__getitem__(key)


class _Reader(pickle._Unpickler):
    """The standard library's reader in Python, whose instructions can be taken away one by one."""

    stack: list[Any]  # of the base class, which does not declare it
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readinto: Callable[[bytearray], int]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: _Bounded) -> None:
        super().__init__(file, encoding="latin1")
        self.dispatch = counted = _Counted(self.dispatch)  # type: ignore[misc]  # counted anew for each file
        counted.left = max(counted.left, file.size // SPARSE)
        self.size = file.size

    def find_class(self, module: str, name: str) -> _Token:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {printable(f'{module}.{name}')[:80]}, which data does not need")
        return _Token(_NAMES[module, name])

    def _decode_string(self, value: Any) -> Any:
        """Text of Python 2; a long one of a mapped file is the content of an array, and stays what it is."""
        return value if isinstance(value, memoryview) else value.decode("latin1")

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

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})
        self._set(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())  # type: ignore[attr-defined]

    def _set(self, items: list[Any]) -> None:
        """Put keys and values, in turns, into the dict on the stack."""
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, _KEYS) for key in items[::2]):
            raise pickle.UnpicklingError("it sets something else than the text or numbers of a dict")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        if length > self.size:
            raise pickle.UnpicklingError("the file ends early")
        array = bytearray(length)
        self.readinto(array)
        self.append(array)

    def refuse(self) -> None:
        raise pickle.UnpicklingError("it makes an object that is no plain data")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    for _name in _REFUSED:
        dispatch[getattr(pickle, _name)[0]] = refuse


def _plain(value: Any, depth: int, known: dict[tuple[int, int], Any]) -> Any:
    """`value` with its arrays in place, to a depth; what is shared is walked once, and is in `known` after that."""
    if isinstance(value, _Array):
        return value.value
    if not depth or not isinstance(value, dict | list | tuple):
        return value
    key = id(value), depth
    if key not in known:
        if isinstance(value, dict):
            known[key] = {name: _plain(item, depth - 1, known) for name, item in value.items()}
        else:
            known[key] = type(value)(_plain(item, depth - 1, known) for item in value)
    return known[key]


def load_pickle(path: Path, mapped: bool = False) -> Any:
    """What a pickle of plain data holds: dict, list, tuple, str, bytes, numbers and NumPy arrays of numbers.

    All protocols are read; text of Python 2 comes as str (latin1). Arrays may be read-only.

    Args:
        path: the file.
        mapped: leave arrays and long bytes in the file, mapped into memory (as far as the protocol has them there in one
            piece: up to 3, and from 4 on those of 64 KiB); bytes, and text of Python 2, are then memoryviews.

    Raises:
        UserError: where the file is damaged, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _load(_Mapped(file, size) if mapped and size else _Bounded(file, size), printable(path))
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read: {error.strerror}.") from error


def loads_pickle(content: bytes, where: str) -> Any:
    """`load_pickle` of bytes that were read already; `where` is what a message calls them, fit to print."""
    return _load(_Bounded(io.BytesIO(content), len(content)), where)


def _load(file: _Bounded, where: str) -> Any:
    try:
        return _plain(_Reader(file).load(), DEPTH, {})
    except OSError:
        raise
    except Exception as error:  # damage shows as nearly every kind of exception
        reason = printable(error if isinstance(error, pickle.UnpicklingError) else f"damaged ({error!r})"[:200])
        raise UserError(
            f"{where} is refused: {reason}. Only pickles of arrays, lists, dicts, text and numbers are read."
        ) from error
