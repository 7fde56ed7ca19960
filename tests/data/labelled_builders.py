"""Tiny sets for classification in exactly the forms that are published: CIFAR-100 and Fashion-MNIST."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from builders import write_python2

from fewshot_mcl.data.sources import ImageOptions, Source

FINE = ["whale", "apple", "bear"]  # in no order, as number is all that counts
COARSE = ["sea", "land"]
FINE_LABELS = {"train": [2, 0, 1, 0, 2, 1, 1], "test": [1, 2, 0, 0]}
CLOTHES = {"train": [9, 0, 3, 0, 9, 5], "test": [1, 9, 2]}
IDX = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")}
IDX["test"] = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def cifar_pixels(split: str) -> np.ndarray:
    """(N, 3, 32, 32) random uint8."""
    return _random(split, (len(FINE_LABELS[split]), 3, 32, 32))


def clothes_pixels(split: str) -> np.ndarray:
    """(N, 28, 28) random uint8."""
    return _random(split, (len(CLOTHES[split]), 28, 28))


def _random(split: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(split)).integers(0, 256, shape, dtype=np.uint8)


def batch(split: str) -> dict[str, object]:
    """What a python batch holds."""
    labels = FINE_LABELS[split]
    return {
        "filenames": [f"{FINE[label]}_s_{row:06d}.png" for row, label in enumerate(labels)],
        "batch_label": f"{split}ing batch 1 of 1",
        "fine_labels": labels,
        "coarse_labels": [label // 2 for label in labels],
        "data": cifar_pixels(split).reshape(-1, 3072),
    }


META = {"fine_label_names": FINE, "coarse_label_names": COARSE}


def cifar_expected(split: str) -> tuple[np.ndarray, list[str]]:
    """Images (N, 3, 32, 32) sorted by class, and where each comes from."""
    order = np.argsort(FINE_LABELS[split], kind="stable")
    return cifar_pixels(split)[order], [f"{split}[{row}]" for row in order]


def holds_cifar(source: Source) -> None:
    """Asserts that both splits are the tiny set's, sorted by class."""
    for split in ("train", "test"):
        store, (images, ids) = source.load(split, ImageOptions()), cifar_expected(split)
        assert np.array_equal(store.images.numpy(), images)
        assert store.labels.tolist() == sorted(FINE_LABELS[split])
        assert list(store.ids) == ids
        assert list(store.class_names) == list(source.class_names(split)) == FINE
        assert (store.split, store.source, store.resize) == (split, "cifar100", "as stored")


def cifar_python(folder: Path, protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"train": batch("train"), "test": batch("test"), "meta": META}.items():
        write_python2(folder / name, content, protocol)
    return folder


def cifar_binary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, labels in FINE_LABELS.items():
        rows = (bytes((label // 2, label)) + image.tobytes() for label, image in zip(labels, cifar_pixels(split)))
        (folder / f"{split}.bin").write_bytes(b"".join(rows))
    (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n\n")  # the published file ends so
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    return folder


def archive(path: Path, folder: Path) -> Path:
    """A tar of `folder` under its own name, gzipped where `path` says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        tar.add(folder, folder.name)
    return path


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """A tar of hand-made headers and contents, whatever the headers announce."""
    parts = (
        info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE) for info, content in members
    )
    content = b"".join(parts) + bytes(2 * tarfile.BLOCKSIZE)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def idx(values: np.ndarray) -> bytes:
    """An IDX file of uint8."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def fashion(folder: Path, zipped: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in IDX.items():
        put(folder / images, idx(clothes_pixels(split)), zipped)
        put(folder / labels, idx(np.array(CLOTHES[split], np.uint8)), zipped)
    return folder


def put(path: Path, content: bytes, zipped: bool) -> None:
    """`content` as a file, gzipped under the name with .gz."""
    if zipped:
        buffer = io.BytesIO()
        with gzip.GzipFile(path.name, "wb", fileobj=buffer, mtime=0) as file:
            file.write(content)
        path, content = Path(f"{path}.gz"), buffer.getvalue()
    path.write_bytes(content)
