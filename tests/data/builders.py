"""Tiny data in exactly the forms that circulate."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from fewshot_mcl.data.splits import split_list

SPLITS = ("train", "val", "test")


def pixels(seed: int, side: int = 8, height: int | None = None) -> np.ndarray:
    """(height, side, 3) random uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height or side, side, 3), dtype=np.uint8)


def picture(path: Path, seed: int = 0, side: int = 8) -> Path:
    """A PNG with `pixels(seed, side)`, whatever the suffix: decoding goes by content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, side)).save(path, format="PNG")
    return path


def class_folders(root: Path, names: list[str] | tuple[str, ...], count: int = 3, side: int = 8, seed: int = 0) -> Path:
    """root/NAME/K.png; every image differs from every other under one seed."""
    for i, name in enumerate(names):
        for k in range(count):
            picture(root / name / f"{k}.png", seed + 1000 * i + k, side)
    return root


def split_folders(root: Path, **names: str) -> Path:
    """root/SPLIT/NAME/K.png for splits given as "a b c"."""
    for i, (split, each) in enumerate(names.items()):
        class_folders(root / split, each.split(), seed=100_000 * i)
    return root


def lists(root: Path, **rows: str) -> Path:
    """SPLIT.csv with the lines given, separated by spaces."""
    for split, text in rows.items():
        (root / f"{split}.csv").write_text("\n".join(text.split(" ")) + "\n", encoding="utf-8")
    return root


def wnids(split: str) -> tuple[str, ...]:
    return split_list("mini_imagenet", split)


def _each_class() -> list[tuple[str, int, str]]:
    return [(split, i, name) for split in SPLITS for i, name in enumerate(wnids(split))]


def _seed(split: str, i: int, k: int) -> int:
    return 10_000 * SPLITS.index(split) + 100 * i + k


def mini_a(root: Path, count: int = 2) -> Path:
    """Format A: lists `filename,label`, all images in images/."""
    rows: dict[str, list[str]] = {split: ["filename,label"] for split in SPLITS}
    for split, i, name in _each_class():
        for k in range(count):
            picture(root / "images" / f"{name}{k + 1:08d}.jpg", _seed(split, i, k))
            rows[split].append(f"{name}{k + 1:08d}.jpg,{name}")
    return lists(root, **{split: " ".join(each) for split, each in rows.items()})


def mini_b(root: Path, count: int = 2) -> Path:
    """Format B: lists `class_name,image_name` over a class tree, which holds more than is listed."""
    rows: dict[str, list[str]] = {split: ["class_name,image_name"] for split in SPLITS}
    for split, i, name in _each_class():
        for k in range(count + 1):
            picture(root / name / f"{name}_{7 * k + 3}.JPEG", _seed(split, i, k))
            if k < count:
                rows[split].append(f"{name},{name}_{7 * k + 3}.JPEG")
    return lists(root, **{split: " ".join(each) for split, each in rows.items()})


def mini_c(root: Path) -> Path:
    """Format C: lists of A over an ILSVRC tree; of four files (numbers 9, 30, 100, 200) those of rank 1 and 3."""
    rows: dict[str, list[str]] = {split: ["filename,label"] for split in SPLITS}
    for split, i, name in _each_class():
        for k, number in enumerate((9, 30, 100, 200)):
            picture(root / "images" / name / f"{name}_{number}.JPEG", _seed(split, i, k))
        rows[split] += [f"{name}{rank:08d}.jpg,{name}" for rank in (1, 3)]
    return lists(root, **{split: " ".join(each) for split, each in rows.items()})


def mini_d(root: Path, by_split: bool, count: int = 2) -> Path:
    """Format D: a class tree, flat or by split."""
    for split, i, name in _each_class():
        for k in range(count):
            picture((root / split if by_split else root) / name / f"{k}.jpg", _seed(split, i, k))
    return root


def mini_arrays(split: str, count: int = 2, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(N, side, side, 3) and class positions (N,), the classes dealt out in turn."""
    labels = np.tile(np.arange(len(wnids(split))), count)
    return np.stack([pixels(_seed(split, i, n), side) for n, i in enumerate(labels.tolist())]), labels


def mini_e(root: Path, middle: str = "val", side: int = 8) -> Path:
    """Format E: mini-imagenet-cache-SPLIT.pkl, classes in an order of their own."""
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images, labels = mini_arrays(split, side=side)
        classes = {wnids(split)[i]: np.flatnonzero(labels == i).tolist() for i in reversed(range(len(wnids(split))))}
        name = middle if split == "val" else split
        content = {"image_data": images, "class_dict": classes}
        (root / f"mini-imagenet-cache-{name}.pkl").write_bytes(pickle.dumps(content, 4))
    return root


def mini_h(root: Path, side: int = 8, folder: str = "miniimagenet") -> Path:
    """Format H: torchmeta's SPLIT_data.hdf5 with SPLIT_labels.json, made of E's content as its code makes them."""
    import h5py

    (root / folder).mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images, labels = mini_arrays(split, side=side)
        with h5py.File(root / folder / f"{split}_data.hdf5", "w") as file:
            group = file.create_group("datasets")
            for i in reversed(range(len(wnids(split)))):
                group.create_dataset(wnids(split)[i], data=images[np.flatnonzero(labels == i)])
        (root / folder / f"{split}_labels.json").write_text(json.dumps(sorted(wnids(split))))
    return root


def mini_g(root: Path, side: int = 8, protocol: int = 2) -> Path:
    """Format G: the five pickles of Python 2, two of which are no few-shot split."""
    root.mkdir(parents=True, exist_ok=True)
    parts = {"train_phase_train": "train", "val": "val", "test": "test"}
    first = {"train": 0, "val": 64, "test": 80}
    for name, split in parts.items():
        images, labels = mini_arrays(split, side=side)
        write_python2(_mini_g_file(root, name), {"data": images, "labels": (labels + first[split]).tolist()}, protocol)
    for name in ("train_phase_val", "train_phase_test"):
        write_python2(_mini_g_file(root, name), {"data": pixels(1)[None], "labels": [0]}, protocol)
    return root


def _mini_g_file(root: Path, name: str) -> Path:
    return root / f"miniImageNet_category_split_{name}.pickle"


def write_python2(path: Path, value: object, protocol: int = 2) -> None:
    """`value` as Python 2 and NumPy 1 pickled it: text is bytes, arrays come from numpy.core.multiarray."""
    head = b"\x80\x02" if protocol == 2 else b""
    path.write_bytes(head + b"".join(_python2(value, protocol == 2)) + b".")


def _python2(value: object, binary: bool) -> list[bytes]:
    def inner(item: object) -> list[bytes]:
        return _python2(item, binary)

    if value is None:
        return [b"N"]
    if isinstance(value, bool):
        return [b"\x88" if value else b"\x89"] if binary else [b"I01\n" if value else b"I00\n"]
    if isinstance(value, int):
        return [b"J" + struct.pack("<i", value)] if binary else [f"I{value}\n".encode()]
    if isinstance(value, str | bytes):
        text = value.encode("latin1") if isinstance(value, str) else value
        if binary:
            return [b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text)), text]
        return [b"S" + repr(text)[1:].encode() + b"\n"]
    if isinstance(value, tuple):
        return [b"(", *(part for item in value for part in inner(item)), b"t"]
    if isinstance(value, list):
        return [b"](" if binary else b"(l", *_listed(value, inner, binary), b"e" if binary else b""]
    if isinstance(value, dict):
        setting = [inner(key) + inner(item) + ([] if binary else [b"s"]) for key, item in value.items()]
        return [b"}(" if binary else b"(d", *(part for each in setting for part in each), b"u" if binary else b""]
    if isinstance(value, np.dtype):
        made = [b"cnumpy\ndtype\n", *inner((value.str[1:], 0, 1)), b"R"]
        return [*made, *inner((3, value.str[0], None, None, None, -1, -1, 0)), b"b"]
    if isinstance(value, np.ndarray):
        empty = [b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n", *inner((0,)), *inner("b"), b"tR"]
        return [*empty, *inner((1, value.shape, value.dtype, False, value.tobytes())), b"b"]
    raise TypeError(type(value))


def _listed(value: list, inner: object, binary: bool) -> list[bytes]:
    return [part for item in value for part in (*inner(item), *([] if binary else [b"a"]))]  # type: ignore[operator]
