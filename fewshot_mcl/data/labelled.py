"""Data for classification: training and test images of the same classes.

A new source of this kind is one file with a subclass of `Source`, and one line in `find_labelled`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewshot_mcl import draws
from fewshot_mcl.data.folder import FolderSource
from fewshot_mcl.data.glyphs import GlyphSource
from fewshot_mcl.data.listing import SPLIT_NAMES, Classes, class_files, class_tree, scan, take_split, with_images
from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.packed import PackedSource, is_packed
from fewshot_mcl.data.sources import FEW_SHOT, USUAL_SPLIT, ImageOptions, Source, existing_folder, find_few_shot
from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.errors import UserError, unknown

TEST_SHARE = 0.25  # of each class, where data comes without a test split
NEEDS_ROOT = ("cifar100", "fashion-mnist", "imagenet", *FEW_SHOT)


def open_labelled(data: str, root: Path | None, options: ImageOptions, download: bool = False) -> Source:
    """The source named `data`, with splits "train", "test" and perhaps "val" of the same classes.

    Args:
        data: "glyphs"; one of `NEEDS_ROOT` (files under `root`); or the path of a folder.
        root: see `data`.
        options: `split_seed` splits a folder that comes without a test split.
        download: fetch cifar100 or fashion-mnist where `root` lacks them.

    Raises:
        UserError: where nothing is found, what is found cannot be used, or its splits have other classes.
    """
    source = find_labelled(data, root, options, download)
    if source.problems:
        raise UserError(f"{source.name}: {first_few(list(source.problems), 1)}. `data check` lists every problem.")
    for split in ("train", "test"):
        source.require(split)
    for problem in class_problems(source):
        raise UserError(
            f"{problem}: classification tests new images of the classes it was trained on. For new classes: fewshot-mcl train."
        )
    return source


def class_problems(source: Source) -> list[str]:
    """What its splits do not have in common."""
    first, *others = source.splits
    classes, problems = set(source.class_names(first)), []
    for split in others:
        if odd := sorted(classes ^ set(source.class_names(split))):
            few = first_few([printable(name) for name in odd])
            problems.append(f"{source.name}: {len(odd)} classes are not in both {first} and {split} ({few})")
    return problems


def find_labelled(data: str, root: Path | None, options: ImageOptions, download: bool = False) -> Source:
    """`open_labelled` without its checks of what was found."""
    if data == "glyphs":
        return WithinClasses(GlyphSource(), options.split_seed)
    if data in NEEDS_ROOT:
        if root is None:
            raise UserError(f"{data} needs the folder its files lie in: give it with --root DIR.")
        return _find_named(data, root, options, download)
    if not Path(data).exists() and len(Path(data).parts) == 1:
        raise unknown("data source or folder", printable(data), ("glyphs", *NEEDS_ROOT, "the path of a folder"))
    path = existing_folder(Path(data))
    return PackedSource(path) if is_packed(path) else find_classes(path, options.split_seed)


def _find_named(data: str, root: Path, options: ImageOptions, download: bool) -> Source:
    if is_packed(root):
        packed = PackedSource(root)
        if packed.name not in (data, USUAL_SPLIT.get(data)):
            raise UserError(f"{printable(root)} is a packed store of {packed.name}, not of {data}: give --data {root}.")
        return packed
    if data == "cifar100":
        from fewshot_mcl.data.cifar import find_cifar100

        return find_cifar100(root, download)
    if data == "fashion-mnist":
        from fewshot_mcl.data.fashion_mnist import find_fashion_mnist

        return find_fashion_mnist(root, download)
    if data == "imagenet":
        from fewshot_mcl.data.imagenet import find_imagenet

        return find_imagenet(existing_folder(root), options)
    return WithinClasses(find_few_shot(data, root, options), options.split_seed)


def find_classes(root: Path, seed: int) -> FolderSource:
    """The folder at `root`: train/CLASS with test/CLASS and perhaps val/CLASS, or CLASS folders, a quarter of each for test.

    Raises:
        UserError: where it is neither.
    """
    named: dict[str, Path] = {}
    for name in scan(root)[0]:
        if name in SPLIT_NAMES and scan(root / name)[0]:
            take_split(named, root / name)
    if "train" in named:
        if "test" not in named and "val" in named:
            named["test"] = named.pop("val")
        files = {split: with_images(class_files(folder)) for split, folder in named.items()}
        source = _folder(root, "split folders (SPLIT/CLASS/image)", files)
        if "test" in named and named["test"].name != "test":
            source.note(f"no test/ folder: {named['test'].name}/ is the test split, validation is held out of train/")
        return source
    classes = with_images(class_files(class_tree(root)))
    if len(classes) < 2:
        raise UserError(
            f"{printable(root)} holds {len(classes)} class folders with images: expected CLASS/image files for two classes or "
            "more, or train/CLASS/ and test/CLASS/."
        )
    source = _folder(root, "class folders (CLASS/image)", _by_image(classes, seed))
    source.note(f"a quarter of each class is the test split, by seed {seed} (no split was given)")
    return source


def _folder(root: Path, kind: str, files: dict[str, Classes]) -> FolderSource:
    source = FolderSource(root, kind, files)
    source.hint = (
        "Put images of the same classes into PATH/{split}/CLASS/, or leave all in CLASS/ folders to have them divided."
    )
    if source.name in ("glyphs", *NEEDS_ROOT):  # it is somebody's folder, not the set whose treatment goes by that name
        source.name = f"folder {source.name}"
    return source


def _by_image(classes: Classes, seed: int) -> dict[str, Classes]:
    files: dict[str, Classes] = {"train": {}, "test": {}}
    for name, paths in classes.items():
        if len(paths) < 2:
            raise UserError(f"class '{printable(name)}' has one image: training and test take one each. Add images.")
        train, test = divide(len(paths), TEST_SHARE, seed, "test", name)
        files["train"][name], files["test"][name] = ([paths[i] for i in rows.tolist()] for rows in (train, test))
    return files


def divide(count: int, share: float, seed: int, *purpose: str, most: int | None = None) -> tuple[Tensor, Tensor]:
    """`range(count)`, or `most` of it, in two ordered parts drawn by `seed`; the second has about `share`, one at least.

    The first is left one too, where there are two.
    """
    order = torch.randperm(count, generator=draws.generator(seed, "divide", *purpose))[:most]
    part = max(1, min(round(share * len(order)), len(order) - 1)) if share else 0
    return order[part:].sort().values, order[:part].sort().values


def hold_out(store: ImageStore, share: float, seed: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to validate on: `share` of each class, one image at least; none where `share` is 0.

    Args:
        most: images of each class that are used at all, drawn by `seed`; None uses all.

    Raises:
        UserError: where a class has but one image to divide.
    """
    train, val, start = [], [], 0
    for name, size in zip(store.class_names, store.class_sizes.tolist()):
        rest, held_out = divide(size, share, seed, "val", name, most=most)
        if len(held_out) and not len(rest):
            more = "add images" if size == 1 else "use more of them, --set images_per_class=2"
            raise UserError(
                f"class '{printable(name)}' has one training image, and validation takes one of each class: {more}, or train "
                "without validation, --set val_share=0."
            )
        train.append(rest + start)
        val.append(held_out + start)
        start += size
    return torch.cat(train), torch.cat(val)


class WithinClasses(Source):
    """The training classes of a few-shot source, a quarter of each class's images for test.

    Its validation and test classes stay unseen, so that what is learned here can be tried on them.
    """

    hint = ""

    def __init__(self, inner: Source, seed: int) -> None:
        self.inner, self.seed = inner, seed
        self.name, self.format = inner.name, inner.format
        self.notes = (
            *inner.notes,
            f"training classes of {inner.name} only; a quarter of each for test, by seed {seed}",
        )

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def class_names(self, split: str) -> tuple[str, ...]:
        self.require(split)
        return self.inner.class_names("train")

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        whole = self.inner.load("train", options)
        rows = hold_out(whole, TEST_SHARE, self.seed)[split == "test"]
        return ImageStore(
            whole.images[rows], whole.labels[rows], whole.class_names, split=split, source=self.name, resize=whole.resize,
            ids=[whole.ids[i] for i in rows.tolist()],
        )  # fmt: skip
