"""miniImageNet as torchmeta keeps it: SPLIT_data.hdf5, in which datasets/CLASS is (N, S, S, 3) uint8. Read by the extra `hdf5`.

The library says where in the file the images of a class lie; they are then mapped. Whatever would lead elsewhere is
refused: links, images kept in other files, filters. torchmeta writes none of it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fewshot_mcl.data.names import printable
from fewshot_mcl.data.rows import Rows, RowsSource, array_reader, stored_rule
from fewshot_mcl.data.sources import SPLITS
from fewshot_mcl.errors import UserError

FILE = "{split}_data.hdf5"
FOLDERS = ("", "miniimagenet")  # the latter is torchmeta's own below its root
Extent = tuple[int, tuple[int, ...]]  # where in the file an array begins, and its shape


class HDF5Source(RowsSource):
    """One file for each split."""

    format = f"torchmeta's HDF5 ({FILE.format(split='SPLIT')})"
    hint = f"Put {FILE.format(split='SPLIT')} beside the others."

    def __init__(self, root: Path, files: dict[str, Path]) -> None:
        self.name = printable(root.resolve().name)
        self._files = files

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self._files)

    def rows(self, split: str) -> Rows:
        path = self._files[split]
        found = extents(path)
        names = tuple(sorted(found))
        images = _Classes([np.memmap(path, np.uint8, "r", *found[name]) for name in names])
        side = images.classes[0].shape[1]

        def where(row: int) -> str:
            label = int(images.labels[row])
            return f"{path.name}[{printable(names[label])}, {row - images.first[label]}]"

        return Rows(
            names, images.labels, array_reader(images), side, 3, where, stored_rule(side), ((path.name, path.stat().st_size),)  # type: ignore[arg-type]
        )  # fmt: skip


class _Classes:
    """The arrays of classes as one, (N, S, S, 3): what of them is asked for is copied."""

    def __init__(self, classes: list[np.ndarray]) -> None:
        self.classes = classes
        sizes = [len(each) for each in classes]
        self.labels = np.repeat(np.arange(len(sizes)), sizes)
        self.first = np.cumsum([0, *sizes[:-1]])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        labels = self.labels[rows]
        return np.stack([self.classes[label][row] for label, row in zip(labels, rows - self.first[labels])])


def extents(path: Path) -> dict[str, Extent]:
    """Where the images of every class lie in a file.

    Raises:
        UserError: where it is no HDF5, or not as torchmeta writes it; where h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{printable(path)} is read by h5py, which cannot be imported ({error}). Install the extra: pip install "
            "'fewshot-mcl[hdf5]'."
        ) from error
    try:
        with h5py.File(path, "r") as file:
            group = _own(file, "datasets", h5py.Group)
            found = {str(name): _extent(_own(group, name, h5py.Dataset), str(name)) for name in group}
        _require_apart(list(found.values()), path.stat().st_size)
    except Exception as error:  # damage shows as nearly every kind of exception
        raise UserError(
            f"{printable(path)} is not as torchmeta writes it ({printable(error)[:200]}): fetch it again."
        ) from error
    return found


def _own(group: Any, name: str, kind: type) -> Any:
    """A member of a group that is itself in the file."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], kind):
        raise ValueError(f"it has no {kind.__name__.lower()} '{printable(name)}' of its own")
    return group[name]


def _extent(dataset: Any, name: str) -> Extent:
    shape: tuple[int, ...] = dataset.shape or ()
    plan = dataset.id.get_create_plist()
    square = len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2] and all(shape)
    if dataset.dtype != np.uint8 or not square:
        raise ValueError(f"'{printable(name)}' is {dataset.dtype} of shape {shape}, not uint8 of (N, side, side, 3)")
    offset = dataset.id.get_offset()
    if plan.get_external_count() or plan.get_nfilters() or offset is None or dataset.file.userblock_size:
        raise ValueError(f"the images of '{printable(name)}' do not lie in it in one piece")
    return offset, shape


def _require_apart(found: list[Extent], size: int) -> None:
    if not found or len({shape[1:] for _, shape in found}) > 1:
        raise ValueError("it has no classes" if not found else "its images are of several sizes")
    bounds = sorted((start, start + math.prod(shape)) for start, shape in found)
    if bounds[-1][1] > size:
        raise ValueError("it is cut short")
    if any(end > start for (_, end), (start, _) in pairwise(bounds)):
        raise ValueError("classes share images")


def find_hdf5(root: Path) -> HDF5Source | None:
    """The files at `root`, or in the folder that torchmeta makes there; None where there are none."""
    for folder in FOLDERS:
        paths = {split: root / folder / FILE.format(split=split) for split in SPLITS}
        if files := {split: path for split, path in paths.items() if path.is_file()}:
            return HDF5Source(root / folder, files)
    return None
