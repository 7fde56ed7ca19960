"""The published class lists (`splits/NAME_SPLIT.txt`)."""

from __future__ import annotations

from fewshot_mcl.errors import unknown
from fewshot_mcl.resources import resource_dir


def split_list(name: str, split: str) -> tuple[str, ...]:
    """The class names of one split of a published list, sorted: `split_list("mini_imagenet", "val")`.

    Raises:
        UserError: where no such list is bundled.
    """
    folder = resource_dir("splits")
    path = folder / f"{name}_{split}.txt"
    if not path.is_file():
        raise unknown("class list", f"{name}_{split}", (file.stem for file in folder.glob("*.txt")))
    return tuple(sorted(path.read_text(encoding="utf-8").splitlines()))
