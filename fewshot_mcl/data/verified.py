"""A published few-shot set, held to its published class lists (`splits/`), whatever form its files have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fewshot_mcl.data.names import first_few, printable
from fewshot_mcl.data.rows import RowsSource
from fewshot_mcl.data.sources import SPLITS, ImageOptions, Source
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.data.store import Chunk, ImageStore
from fewshot_mcl.errors import UserError


class VerifiedSource(Source):
    """Another source, of which a split opens only where its classes are the published ones.

    Args:
        inner: the files as they lie there.
        name: of the set in result lines, with its split's name where it has several.
        title: what messages call it.
        lists: the class names of each split.
        images_per_class: images that every class has, where all have as many; others are noted.
        images: images that each split has in all, where that is known.
    """

    def __init__(
        self,
        inner: Source,
        name: str,
        title: str,
        lists: Mapping[str, tuple[str, ...]],
        images_per_class: int | None = None,
        images: Mapping[str, int] | None = None,
    ) -> None:
        self.inner, self.name, self.title = inner, name, title
        self.lists, self.images_per_class, self.images = lists, images_per_class, images or {}
        self.format, self.hint = inner.format, inner.hint
        self.notes, self.problems = inner.notes, inner.problems
        self.advice = "Mend the files, or give the folder itself as data."

    @property
    def splits(self) -> tuple[str, ...]:
        return self.inner.splits

    def class_names(self, split: str) -> tuple[str, ...]:
        return self.inner.class_names(split)

    def class_problems(self, split: str) -> list[str]:
        """What is wrong with the classes of a split: those it lacks, and those it should not have."""
        listed, found = set(self.lists[split]), set(self.class_names(split))
        if isinstance(self.inner, RowsSource) and self.inner.numbered(split):
            differ = len(found) != len(listed)
            return [f"{split} has {len(found)} classes, not {len(listed)}"] if differ else []
        problems = []
        if listed - found:
            problems.append(f"{split} lacks {len(listed - found)} of {len(listed)} classes: {_names(listed - found)}")
        if found - listed:
            problems.append(f"{split} has {len(found - listed)} classes not its own: {_names(found - listed)}")
        return problems

    def total_problem(self, split: str, images: int) -> str | None:
        """What is wrong with how many images a split has in all, if anything is."""
        right = self.images.get(split, images)
        return None if images == right else f"{split}: {images:,} images, not the {right:,} of {self.title}"

    def _require_classes(self, split: str) -> None:
        problems = self.class_problems(split)
        if problems:
            raise UserError(f"this is not {self.title}: {'; '.join(problems)}. {self.advice}")

    def _load(self, split: str, options: ImageOptions) -> ImageStore:
        self._require_classes(split)
        store = self.inner.load(split, options)
        store.source = self.name
        for text in (*self.inner.notes, *self._count_notes(store)):
            self.note(text)
        return store

    def _chunks(self, split: str, options: ImageOptions, start: int) -> Iterator[Chunk]:
        self._require_classes(split)
        yield from self.inner.chunks(split, options, start)

    def _count_notes(self, store: ImageStore) -> list[str]:
        """Lines on classes, and on a split, of other than the published number of images."""
        right, total = self.images_per_class, self.total_problem(store.split, len(store))
        notes = [total] if total else []
        sizes = zip(store.class_names, store.class_sizes.tolist())
        off = [f"{printable(name)} {size}" for name, size in sizes if right not in (None, size)]
        if off:
            few = first_few(off)
            notes.append(f"{store.split}: {len(off)} of {store.num_classes} classes have not {right} images: {few}")
        return notes


def published_lists(name: str) -> dict[str, tuple[str, ...]]:
    """The class names of every split of a published list."""
    return {split: split_list(name, split) for split in SPLITS}


def _names(names: set[str]) -> str:
    return first_few([printable(name) for name in sorted(names)])
