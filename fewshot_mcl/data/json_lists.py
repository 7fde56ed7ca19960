"""Lists in JSON beside a folder of images, in two forms.

easyfsl's `SPLIT.json` has "class_names" and "class_roots". CloserLookFewShot's has "image_names", "image_labels" and
"label_names"; there train is called base, and test novel (from memory: no such file was at hand). The paths in both are
of the machine they were written on: what counts is the last folder, which is the class, and the file name.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from fewshot_mcl.data.class_lists import Finder
from fewshot_mcl.data.folder import FolderSource
from fewshot_mcl.data.listing import SPLIT_NAMES, Classes, class_files, class_tree
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.sources import SPLITS
from fewshot_mcl.errors import UserError

NAMES = {"base": "train", "novel": "test", **SPLIT_NAMES}  # of a list, and its split
MOST_BYTES = 1 << 26  # of a list


def find_json_lists(root: Path, find: Finder) -> FolderSource | None:
    """The images that the JSON lists at `root` name; None where there are no such lists.

    Raises:
        UserError: where a list is no JSON, has neither form, or there are two for one split.
    """
    paths: dict[str, Path] = {}
    for name, split in NAMES.items():
        path = root / f"{name}.json"
        if path.is_file() and split in paths:
            raise UserError(f"{printable(root)} holds both {paths[split].name} and {path.name}: keep one of them.")
        if path.is_file():
            paths[split] = path
    if not paths:
        return None
    problems: list[str] = []
    folders = class_files(class_tree(root))
    files = {split: _files(paths[split], folders, find, problems) for split in SPLITS if split in paths}
    source = FolderSource(root, "lists in JSON (SPLIT.json)", files)
    source.problems = tuple(problems)
    return source


def _files(path: Path, folders: Classes, find: Finder, problems: list[str]) -> Classes:
    """The image files of every class of a list; what is wrong with it goes to `problems`."""
    content = _read(path)
    if "class_roots" in content:
        names = [PurePosixPath(folder).name for folder in content["class_roots"]]
        problems += [
            f"{path.name}: class '{printable(name)}' has no folder with images"
            for name in names
            if not folders.get(name)
        ]
        return {name: folders[name] for name in names if folders.get(name)}
    files: Classes = {}
    for name in dict.fromkeys(map(PurePosixPath, content["image_names"])):
        image = find(name.parent.name, name.name)
        if image is None:
            problems.append(f"{path.name}: no file '{printable(name.parent.name)}/{printable(name.name)}' is there")
        else:
            files.setdefault(name.parent.name, []).append(image)
    return files


def _read(path: Path) -> dict[str, list[str]]:
    """The lists of text in a JSON file, one of which names what is in the split."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)} is no readable JSON file ({printable(error)[:100]}).") from error
    items = content.items() if isinstance(content, dict) else ()
    texts = {k: v for k, v in items if isinstance(v, list) and all(isinstance(each, str) for each in v)}
    if not {"class_roots", "image_names"} & texts.keys():
        raise UserError(
            f"{printable(path)} lists no images: expected class_names with class_roots, or image_names with image_labels."
        )
    return texts
