"""tieredImageNet (Ren et al.: 351/97/160 classes of ImageNet, 779,165 images) in whatever form it lies at a root.

Found by looking: the published pickles and what was unpacked from them (`tiered_pickles`); class folders by split, with
lists, or flat; ImageNet's own tree, of which the 608 classes are taken. Images are 84x84. They would take 16 GB: what
does not fit into memory is read from where it lies, or packed first.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from fewshot_mcl.data.folder import FolderSource
from fewshot_mcl.data.mini_imagenet import RankedFiles
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.published_folders import find_published
from fewshot_mcl.data.sources import SPLITS, ImageOptions, Source
from fewshot_mcl.data.store import ImageStore, in_bytes, memory_bytes
from fewshot_mcl.data.tiered_pickles import NPZ, PNG, TieredPickles
from fewshot_mcl.data.verified import VerifiedSource, published_lists
from fewshot_mcl.errors import UserError
from fewshot_mcl.resources import program

IMAGES = {"train": 448_695, "val": 124_261, "test": 206_209}
FOLDERS = ("", "tiered-imagenet", "tiered_imagenet", "tieredImageNet", "tieredimagenet")
ARCHIVES = ("tiered-imagenet.tar", "tiered_imagenet.tar")


class TieredImageNet(VerifiedSource):
    """Files of images are decoded into memory only where they fit; the other forms see to that themselves."""

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        if isinstance(self.inner, FolderSource) and options.decode == "once":
            self._require_memory(self.inner, split, options)
        return super()._load(split, options)

    def _require_memory(self, inner: FolderSource, split: str, options: ImageOptions) -> None:
        """Refuse what would be decoded into a temporary file, and again for every run."""
        images, (size, channels) = sum(map(len, inner.files(split).values())), options.pixels(inner.image_size, 3)
        needed = math.prod((images, channels, size, size))
        if needed > options.memory_share * memory_bytes():
            root = shlex.quote(printable(inner.root))
            raise UserError(
                f"{images:,} images at {size}x{size} need {in_bytes(needed)} of memory: pack them once, `{program()} data "
                f"convert {self.name} --root {root} --out PACKED`, and use --data PACKED; or give a smaller --image-size."
            )


def find_tiered_imagenet(root: Path) -> TieredImageNet:
    """The tieredImageNet at `root`, an existing folder.

    Raises:
        UserError: where none of the known forms is there.
    """
    lists = published_lists("tiered_imagenet")
    for folder in FOLDERS:
        if (root / folder).is_dir() and (found := _find(root / folder, lists)):
            return TieredImageNet(found, "tiered-imagenet", "tieredImageNet", lists, images=IMAGES)
    archive = next((root / name for name in ARCHIVES if (root / name).is_file()), None)
    if archive:
        raise UserError(f"{printable(archive)} is not unpacked: tar -xf it there (12 GB), and give the folder again.")
    raise UserError(
        f"{printable(root)} holds no tieredImageNet: expected {NPZ.format(split='SPLIT')} or {PNG.format(split='SPLIT')} with "
        "SPLIT_labels.pkl for train, val and test; or class folders such as n01530575, by split or as ImageNet's train/."
    )


def _find(root: Path, lists: dict[str, tuple[str, ...]]) -> Source | None:
    known = {split: [root / form.format(split=split) for form in (NPZ, PNG)] for split in SPLITS}
    files = {split: path for split in SPLITS for path in reversed(known[split]) if path.is_file()}
    if files:
        return TieredPickles(root, files)
    ranked = RankedFiles(root)
    source = find_published(root, lists, ranked)
    if source:
        source.notes += ranked.notes()
    return source
