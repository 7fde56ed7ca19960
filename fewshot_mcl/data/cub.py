"""CUB (Caltech-UCSD Birds 200-2011: 200 classes, 11,788 photos), split in one of the three ways that go by that name.

"closer-look" (100/50/50 by class number; the usual one), "meta-dataset" (140/30/30) and "feat" (100/50/50, another draw)
share few test classes: figures of different splits cannot be compared, and the split's name is part of the source's.

Found by looking: the published folder (`images.txt`, `image_class_labels.txt`, `classes.txt`, `images/`), whose lists are
held against each other and against the files; lists in csv or JSON; class folders, by split or flat. Images are 84x84.

FEAT's protocol crops every photo to its bounding box: "feat" does, by `bounding_boxes.txt`, where the published folder is
given; images that come with lists of their own are taken to be cropped already, as FEAT's reader takes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fewshot_mcl.data.bird_lists import Birds, read_birds
from fewshot_mcl.data.folder import CHANNELS, IMAGE_SIZE, FolderSource
from fewshot_mcl.data.images import BadImage, Resize, fit, in_threads, read_image, resize_rule, to_array
from fewshot_mcl.data.listing import NamedFiles
from fewshot_mcl.data.names import printable
from fewshot_mcl.data.published_folders import find_published
from fewshot_mcl.data.rows import Rows, RowsSource
from fewshot_mcl.data.sources import SPLITS, Source
from fewshot_mcl.data.verified import VerifiedSource, published_lists
from fewshot_mcl.errors import UserError

SPLIT_OF = {"cub": "closer-look", **{f"cub-{name}": name for name in ("closer-look", "meta-dataset", "feat")}}
FOLDERS = ("", "CUB_200_2011", "CUB_200_2011/CUB_200_2011", "CUB", "cub")
ARCHIVES = ("CUB_200_2011.tgz", "CUB_200_2011.tar.gz")
CROPPED = "feat"  # the split whose protocol crops to bounding boxes


class CroppedBirds(RowsSource):
    """The published folder, each photo cropped to its bounding box before anything else is done to it."""

    format = "CUB_200_2011 (images.txt, bounding_boxes.txt)"
    hint = "Give the published folder as a whole."

    def __init__(self, birds: Birds, lists: dict[str, tuple[str, ...]]) -> None:
        self.birds, self.name = birds, printable(birds.root.resolve().name)
        self.classes = {split: [name for name in lists[split] if name in birds.classes] for split in SPLITS}
        self.problems = birds.problems
        self.note("photos are cropped to their bounding boxes, as FEAT's protocol says")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if self.classes[split])

    def class_names(self, split: str) -> tuple[str, ...]:
        self.require(split)
        return tuple(self.classes[split])

    def rows(self, split: str) -> Rows:
        names = self.class_names(split)
        paths = [path for name in names for path in self.birds.classes[name]]
        labels = np.repeat(np.arange(len(names)), [len(self.birds.classes[name]) for name in names])

        def read(rows: np.ndarray, size: int, channels: int, resize: Resize) -> np.ndarray:
            images = np.empty((len(rows), channels, size, size), np.uint8)

            def fill(i: int) -> str | None:
                path = paths[rows[i]]
                try:
                    images[i] = to_array(fit(_cropped(path, self.birds.boxes[path]), size, resize), channels)
                except BadImage as error:
                    return f"{printable(path)} ({error})"
                return None

            bad = [each for each in in_threads(fill, len(rows), 16) if each is not None]
            if bad:
                raise UserError(f"{len(bad)} of {len(rows)} images cannot be used: {bad[0]}. Mend or fetch them again.")
            return images

        def rule(size: int, resize: Resize) -> str:
            return f"bounding box, then {resize_rule(size, resize)}"

        files = (("bounding_boxes.txt", (self.birds.root / "bounding_boxes.txt").stat().st_size), (split, len(paths)))
        root = self.birds.root
        return Rows(
            names, labels, read, IMAGE_SIZE, CHANNELS, lambda row: str(paths[row].relative_to(root)), rule, files
        )


def _cropped(path: Path, box: tuple[float, float, float, float]) -> Image.Image:
    image = read_image(path)
    left, top, right, bottom = (round(side) for side in box)
    if not (0 <= left < right <= image.width + 1 and 0 <= top < bottom <= image.height + 1):
        raise BadImage(
            f"its bounding box {left},{top} to {right},{bottom} lies outside {image.width}x{image.height} pixels"
        )
    return image.crop((left, top, min(right, image.width), min(bottom, image.height)))


def find_cub(data: str, root: Path) -> VerifiedSource:
    """The CUB at `root`, an existing folder, split as its name (`SPLIT_OF`) says.

    Raises:
        UserError: where none of the known forms is there, or a list cannot be read.
    """
    name = SPLIT_OF[data]
    lists = published_lists(f"cub_{name.replace('-', '_')}")
    for folder in FOLDERS:
        if (root / folder).is_dir() and (found := _find(root / folder, name, lists)):
            source = VerifiedSource(found, f"cub-{name}", f"CUB in the split '{name}'", lists)
            source.advice = _other_split(found, name) or source.advice
            return source
    archive = next((root / each for each in ARCHIVES if (root / each).is_file()), None)
    if archive:
        raise UserError(f"{printable(archive)} is not unpacked: tar -xzf it there, and give the folder again.")
    raise UserError(
        f"{printable(root)} holds no CUB: expected CUB_200_2011 with images.txt, image_class_labels.txt, classes.txt and "
        "images/; SPLIT.csv or SPLIT.json with images/; or class folders such as 001.Black_footed_Albatross."
    )


def _find(root: Path, name: str, lists: dict[str, tuple[str, ...]]) -> Source | None:
    if not (root / "images.txt").is_file():
        source = find_published(root, lists, NamedFiles(root))
        if source and name == CROPPED:
            source.note("images are used as they are: FEAT's protocol takes photos cropped to their bounding boxes")
        return source
    birds = read_birds(root, name == CROPPED)
    if name == CROPPED:
        return CroppedBirds(birds, lists)
    parts = {split: {each: birds.classes[each] for each in lists[split] if each in birds.classes} for split in SPLITS}
    source = FolderSource(root, "CUB_200_2011 (images.txt)", {split: part for split, part in parts.items() if part})
    source.problems = birds.problems
    return source


def _other_split(found: Source, name: str) -> str | None:
    """What to do where the files are split, but in one of the other ways."""
    for other in sorted(set(SPLIT_OF.values()) - {name}):
        lists = published_lists(f"cub_{other.replace('-', '_')}")
        if found.splits and all(set(found.class_names(split)) == set(lists[split]) for split in found.splits):
            return f"These are split as '{other}' is: use --data cub-{other}."
    return None
