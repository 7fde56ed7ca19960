"""The page of `data inspect`: what was found, a few images of every class, and what looks the same side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from fewshot_mcl.data.inspect import SHOTS, Inspection, Picture, Twins
from fewshot_mcl.data.inspect_words import appearance, duplicates
from fewshot_mcl.data.names import printable
from fewshot_mcl.pages.page import picture, write_page
from fewshot_mcl.suggestion import Suggestion

A_CLASS, MOST_CLASSES, MOST_TWINS, MOST_SIDE_BY_SIDE = 5, 120, 40, 6
SIDE, LARGER = 56, 96  # CSS pixels


def write(found: Inspection, suggestion: Suggestion, path: Path, command: list[str]) -> Path:
    """Write the page; `command` makes it again.

    Raises:
        UserError: where something else lies at `path`.
    """
    by_class: dict[tuple[str, str], list[Picture]] = {(c.split, name): [] for c in found.counts for name in c.by_class}
    for each in found.pictures:
        by_class[each.split, each.label].append(each)
    sheet = [
        (split, printable(label), len(own), [_shown(each, SIDE) for each in _spread(own)])
        for split, label, own in _first_of_each_split(by_class)
    ]
    by_kind = [[each for each in found.twins if each.exact == exact] for exact in (True, False)]
    shown = [each for twins in by_kind for each in twins[:MOST_TWINS]]
    return write_page(
        path, "inspect.html", title=f"Images of {printable(found.name)}", command=command, found=found, suggestion=suggestion,
        counts=count_rows(found), possible=possible_rows(found), shots=SHOTS, appearance=appearance(found),
        duplicates=duplicates(found), twins=[_side_by_side(each) for each in shown],
        more_twins=len(found.twins) - len(shown), sheet=sheet, more_classes=len(by_class) - len(sheet),
    )  # fmt: skip


def count_rows(found: Inspection) -> list[list[str]]:
    """A row a split: classes, images, and how many a class has."""
    return [
        [
            each.split, f"{len(each.by_class):,}", f"{sum(each.sizes):,}", f"{each.smallest:,}", f"{each.median:,g}",
            f"{max(each.sizes):,}", str(len(each.few)),
        ]
        for each in found.counts
    ]  # fmt: skip


def possible_rows(found: Inspection) -> list[list[str]]:
    """A row a split: the most classes of an episode, and the most queries for some shots."""
    return [
        [each.split, str(len(each.by_class)), *(str(each.largest_query(shot) or "-") for shot in SHOTS)]
        for each in found.counts
    ]


def _first_of_each_split(by_class: dict[tuple[str, str], list[Picture]]) -> Iterable[tuple[str, str, list[Picture]]]:
    """Classes to show: all, or as many of each split."""
    splits = dict.fromkeys(split for split, _ in by_class)
    for split in splits:
        own = [(label, pictures) for (home, label), pictures in by_class.items() if home == split]
        yield from ((split, label, pictures) for label, pictures in own[: MOST_CLASSES // len(splits)])


def _spread(pictures: list[Picture]) -> list[Picture]:
    """A few, from the first to the last."""
    if len(pictures) <= A_CLASS:
        return pictures
    return [pictures[i * (len(pictures) - 1) // (A_CLASS - 1)] for i in range(A_CLASS)]


def _shown(each: Picture, side: int) -> Markup:
    return picture(each.pixels(2 * side), f"{each.split}, {each.label}: {each.name}", side)


def _side_by_side(twins: Twins) -> tuple[str, bool, list[tuple[Markup, str]], int]:
    """What they are, whether they leak, some of them with their names, and how many more there are."""
    shown = [(_shown(each, LARGER), f"{each.split}: {each.name}") for each in twins.pictures[:MOST_SIDE_BY_SIDE]]
    words = "the same" if twins.exact else "nearly the same"
    words += ", in several splits" if twins.leak else ", of several classes" if twins.contradiction else ""
    return words, twins.leak, shown, len(twins.pictures) - len(shown)
