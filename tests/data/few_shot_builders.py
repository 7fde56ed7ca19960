"""Tiny CIFAR-FS, FC100, tieredImageNet, CUB and Omniglot in exactly the forms that circulate: all classes, few images."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from builders import lists, picture, pixels, write_python2
from labelled_builders import archive
from PIL import Image

from fewshot_mcl.data.splits import split_list

SPLITS = ("train", "val", "test")
FINE = sorted(name for split in SPLITS for name in split_list("cifar_fs", split))
COUNT = 3  # images of a class


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def zip_of(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", how) as archive_file:
        for name, content in files.items():
            archive_file.writestr(name, content)
    return path


# CIFAR-100: two images of each class in train, one in test


def cifar_images(name: str) -> np.ndarray:
    """(COUNT, 32, 32, 3) of a class."""
    return np.stack([pixels(10 * FINE.index(name) + k, 32) for k in range(COUNT)])


def cifar_part(part: str) -> tuple[np.ndarray, list[int]]:
    """(N, 32, 32, 3) and fine labels of one of CIFAR-100's files, the classes dealt out in turn."""
    chosen = (0, 1) if part == "train" else (2,)
    images = [cifar_images(name)[k] for k in chosen for name in FINE]
    return np.stack(images), [label for _ in chosen for label in range(100)]


def cifar_100_python(root: Path, names: list[str] = FINE) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        images, labels = cifar_part(part)
        data = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
        write_python2(root / part, {"data": np.ascontiguousarray(data), "fine_labels": labels})
    write_python2(root / "meta", {"fine_label_names": names, "coarse_label_names": ["all"]})
    return root


def cifar_100_binary(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        images, labels = cifar_part(part)
        rows = (bytes((0, label)) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels))
        (root / f"{part}.bin").write_bytes(b"".join(rows))
    (root / "fine_label_names.txt").write_text("\n".join(FINE) + "\n\n")
    return root


def cifar_100_tar(root: Path) -> Path:
    archive(root / "cifar-100-python.tar.gz", cifar_100_python(root / "aside" / "cifar-100-python"))
    return root


def cifar_pickles(root: Path, data: str, first: int | None = None, protocol: int = 2) -> Path:
    """{CIFAR_FS,FC100}_SPLIT.pickle; labels are CIFAR-100's, or count on from `first`."""
    root.mkdir(parents=True, exist_ok=True)
    name = data.replace("-", "_")
    for split in SPLITS:
        names = split_list(name, split)
        images = np.concatenate([cifar_images(each) for each in names])
        numbers = [FINE.index(each) if first is None else first + i for i, each in enumerate(names)]
        content = {"data": images, "labels": [number for number in numbers for _ in range(COUNT)]}
        path = root / f"{name.upper()}_{split}.pickle"
        if protocol == 2:
            write_python2(path, content)
        else:
            path.write_bytes(pickle.dumps(content, protocol))
    return root


def cifar_files(base: str, data: str | None = None) -> dict[str, bytes]:
    """base/CLASS/K.png, or base/SPLIT/CLASS/K.png for the splits of `data`."""
    homes = {each: split for split in SPLITS for each in split_list(data.replace("-", "_"), split)} if data else {}
    return {
        str(PurePosixPath(base, homes.get(name, ""), name, f"{k}.png")): png(image)
        for name in FINE
        for k, image in enumerate(cifar_images(name))
    }


def unpacked(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


# tieredImageNet


def tiered_arrays(split: str, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(N, side, side, 3) RGB and class positions (N,) in the sorted list, the classes dealt out in turn."""
    classes = len(split_list("tiered_imagenet", split))
    labels = np.tile(np.arange(classes), COUNT)
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (len(labels), side, side, 3), dtype=np.uint8), labels.astype(np.int32)


def tiered_words() -> dict[str, str]:
    folder = Path(__file__).parents[2] / "splits"
    return dict(line.split("\t") for line in (folder / "tiered_imagenet_words.txt").read_text().splitlines())


def tiered_labels(root: Path, split: str, worded: bool = True) -> None:
    """SPLIT_labels.pkl; the classes are numbered from the end of the list, as any order will do."""
    names = split_list("tiered_imagenet", split)[::-1]
    _, labels = tiered_arrays(split)
    numbers = (len(names) - 1 - labels).astype(np.int32)
    words = [tiered_words()[name] for name in names]
    content: dict[str, object] = {"label_specific": numbers, "label_general": numbers, "label_specific_str": words}
    if not worded:
        content = {"labels": numbers.tolist()}
    write_python2(root / f"{split}_labels.pkl", content)


def tiered_npz(root: Path, compressed: bool = False, worded: bool = True) -> Path:
    """SPLIT_images.npz, blue first as OpenCV has it."""
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images = np.ascontiguousarray(tiered_arrays(split)[0][..., ::-1])
        (np.savez_compressed if compressed else np.savez)(root / f"{split}_images.npz", images=images)
        tiered_labels(root, split, worded)
    return root


def tiered_png(root: Path, protocol: int = 2) -> Path:
    """SPLIT_images_png.pkl: a list of arrays (bytes, 1), each a PNG."""
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        encoded = [np.frombuffer(png(image), np.uint8)[:, None] for image in tiered_arrays(split)[0]]
        path = root / f"{split}_images_png.pkl"
        if protocol == 2:
            write_python2(path, encoded)
        else:
            path.write_bytes(pickle.dumps(encoded, protocol))
        tiered_labels(root, split)
    return root


def tiered_folders(root: Path, by_split: bool, others: int = 0) -> Path:
    """CLASS/K.png or SPLIT/CLASS/K.png, with folders of other classes."""
    for split in SPLITS:
        names = split_list("tiered_imagenet", split)
        for row, (image, label) in enumerate(zip(*tiered_arrays(split))):
            path = root / (split if by_split else "") / names[label] / f"{row:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
    for k in range(others):
        picture(root / f"n9999999{k}" / "0.png", k)
    return root


# CUB


def birds() -> list[str]:
    return sorted(name for split in SPLITS for name in split_list("cub_feat", split))


def bird_file(name: str, k: int) -> str:
    return f"{name[4:]}_{k:04d}_{int(name[:3])}.jpg"


def cub(root: Path, count: int = COUNT, side: int = 12) -> Path:
    """CUB_200_2011: lists and images/CLASS/*; boxes leave two columns and one row out."""
    root.mkdir(parents=True, exist_ok=True)
    images, labels, boxes = [], [], []
    for i, name in enumerate(birds()):
        for k in range(count):
            number = len(images) + 1
            picture(root / "images" / name / bird_file(name, k), 10 * i + k, side)
            images.append(f"{number} {name}/{bird_file(name, k)}")
            labels.append(f"{number} {i + 1}")
            boxes.append(f"{number} 1.0 0.0 {side - 2:.1f} {side - 1:.1f}")
    classes = [f"{i + 1} {name}" for i, name in enumerate(birds())]
    for file, rows in {
        "images": images,
        "image_class_labels": labels,
        "classes": classes,
        "bounding_boxes": boxes,
    }.items():
        (root / f"{file}.txt").write_text("\n".join(rows) + "\n")
    return root


def cub_csv(root: Path, split_name: str = "feat") -> Path:
    """FEAT's lists over flat images: `filename, label, concept_label`."""
    rows: dict[str, list[str]] = {}
    for split in SPLITS:
        rows[split] = ["filename,label,concept_label"]
        for name in split_list(f"cub_{split_name}", split):
            for k in range(COUNT):
                picture(root / "images" / bird_file(name, k), 10 * birds().index(name) + k, 12)
                rows[split].append(f"{bird_file(name, k)},{name},6")
    return lists(root, **{split: " ".join(each) for split, each in rows.items()})


def cub_tree(root: Path) -> Path:
    for i, name in enumerate(birds()):
        for k in range(COUNT):
            picture(root / "images" / name / bird_file(name, k), 10 * i + k, 12)
    return root


def cub_json(root: Path, kind: str, split_name: str) -> Path:
    """easyfsl's lists of classes, or CloserLookFewShot's of images, both with paths of another machine."""
    cub_tree(root)
    names = {"train": "base", "val": "val", "test": "novel"} if kind == "closer" else {}
    for split in SPLITS:
        classes = list(split_list(f"cub_{split_name.replace('-', '_')}", split))
        content: dict[str, object] = {
            "class_names": classes, "class_roots": [f"./data/CUB/images/{name}" for name in classes],
        }  # fmt: skip
        if kind == "closer":
            files = [f"/elsewhere/CUB/images/{name}/{bird_file(name, k)}" for name in classes for k in range(COUNT)]
            labels = [birds().index(name) for name in classes for _ in range(COUNT)]
            content = {"label_names": birds(), "image_names": files, "image_labels": labels}
        (root / f"{names.get(split, split)}.json").write_text(json.dumps(content))
    return root


# Omniglot


def characters(part: str) -> list[str]:
    """ALPHABET/characterNN of images_background or images_evaluation."""
    splits = ("train", "val") if part == "images_background" else ("test",)
    return sorted(name for split in splits for name in split_list("omniglot_background", split))


@cache
def drawing(name: str, k: int, side: int = 7) -> np.ndarray:
    """(side, side) of black and white."""
    seed = [*name.encode(), k]
    return np.random.default_rng(seed).integers(0, 2, (side, side), dtype=np.uint8) * 255


def omniglot_files(part: str, count: int = COUNT) -> dict[str, bytes]:
    return {
        f"{part}/{name}/{i:04d}_{k + 1:02d}.png": png(drawing(name, k), "1")
        for i, name in enumerate(characters(part))
        for k in range(count)
    }


def omniglot_zips(root: Path, count: int = COUNT) -> Path:
    for part in ("images_background", "images_evaluation"):
        zip_of(root / f"{part}.zip", omniglot_files(part, count), zipfile.ZIP_STORED)
    return root
