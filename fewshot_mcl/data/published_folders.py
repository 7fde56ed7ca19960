"""Class folders of a published few-shot set: by split, with lists beside them, or flat, to be split by the published lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fewshot_mcl.data.class_lists import Finder, split_lists
from fewshot_mcl.data.folder import FolderSource, by_class, find_folder
from fewshot_mcl.data.json_lists import find_json_lists
from fewshot_mcl.data.listing import SPLIT_NAMES, NamedFiles, class_files, class_tree, scan, with_images


def find_published(root: Path, lists: Mapping[str, tuple[str, ...]], find: Finder | None = None) -> FolderSource | None:
    """The class folders at `root`, an existing folder; None where it holds no class that `lists` names.

    Args:
        root: SPLIT/CLASS folders; SPLIT.csv or SPLIT.json over images; or CLASS folders, perhaps all in images/ or, as
            those of ImageNet are, in train/.
        lists: the published class names of each split.
        find: how a file that a list names is found.
    """
    if split_lists(root):
        return find_folder(root, 0, find)
    if source := find_json_lists(root, find or NamedFiles(root)):
        return source
    if any(name in SPLIT_NAMES and scan(root / name)[0] for name in scan(root)[0]) and not _is_imagenet(root, lists):
        return find_folder(root, 0)
    found = with_images(class_files(root / "train" if _is_imagenet(root, lists) else class_tree(root)))
    source = by_class(root, {split: list(names) for split, names in lists.items()}, found)
    if not source.splits:
        return None
    source.note("classes split by the published lists")
    unused = len(found) - sum(len(source.class_names(split)) for split in source.splits)
    if unused:
        source.note(f"{unused} folders of other classes stay unused")
    return source


def _is_imagenet(root: Path, lists: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether train/ is no split of a few-shot set but has classes of every split, as ImageNet's has."""
    found = set(scan(root / "train")[0]) if (root / "train").is_dir() else set()
    return all(found & set(names) for names in lists.values())
