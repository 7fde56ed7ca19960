"""One array of numbers in an .npz, read without taking memory for it and without unpickling."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fewshot_mcl.data.names import printable
from fewshot_mcl.data.store import MEMORY_SHARE, allocate_images
from fewshot_mcl.errors import UserError

LOCAL_HEADER = 30  # bytes of it before a name, whose length and that of what follows stand at 26
PIECE = 1 << 24


def open_images(path: Path, key: str, memory_share: float = MEMORY_SHARE) -> np.ndarray:
    """The uint8 array (N, S, S, 3) `key` of an .npz.

    As `np.savez` writes it, it is mapped where it lies; what `np.savez_compressed` wrote is unpacked once, over an
    unnamed temporary file where it would take more than `memory_share` of the memory.

    Raises:
        UserError: where the file is damaged, lacks the array, or holds another kind of array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{key}.npy" not in names:
                raise ValueError(f"it has no array '{key}', but {', '.join(map(printable, names[:3])) or 'nothing'}")
            info = archive.getinfo(f"{key}.npy")
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                return _mapped(path, info)
            with archive.open(info) as file:
                return _unpacked(file, info.file_size, memory_share)  # type: ignore[arg-type]  # it reads as a file does
    except Exception as error:  # damage shows as nearly every kind of exception
        raise UserError(f"{printable(path)} is damaged ({printable(error)[:200]}): fetch it again.") from error


def _shape(file: BinaryIO, size: int) -> tuple[tuple[int, int, int, int], int]:
    """What the header of an array of `size` bytes says of its shape, and how long the header is."""
    if file.read(8) != np.lib.format.magic(1, 0):  # later versions let a header be as long as it says
        raise ValueError("its array is of no version that np.savez writes")
    (length,) = struct.unpack("<H", file.read(2))
    head = 10 + length
    header = io.BytesIO(struct.pack("<H", length) + file.read(length))
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not all(shape):
        raise ValueError(f"its images are {dtype} of shape {shape}, not uint8 of shape (N, side, side, 3)")
    if math.prod(shape) != size - head:
        raise ValueError(f"its images of shape {shape} are cut short, or followed by something else")
    return shape, head


def _mapped(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(LOCAL_HEADER)
        start = info.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", local[26:30]))
        file.seek(start)
        shape, head = _shape(file, info.file_size)
    if start + info.file_size > path.stat().st_size:
        raise ValueError("it is cut short")
    return np.memmap(path, np.uint8, "r", start + head, shape)


def _unpacked(file: BinaryIO, size: int, memory_share: float) -> np.ndarray:
    shape, _ = _shape(file, size)
    images = allocate_images(shape, memory_share)
    flat, start = images.reshape(-1), 0
    while part := file.read(PIECE):
        flat[start : start + len(part)] = np.frombuffer(part, np.uint8)
        start += len(part)
    if start != len(flat):
        raise ValueError("it is cut short")
    return images
