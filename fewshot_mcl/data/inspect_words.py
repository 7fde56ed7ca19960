"""What `data inspect` found, in words and for a program."""

from __future__ import annotations

from typing import Any

from fewshot_mcl.data.check import LISTED
from fewshot_mcl.data.inspect import SHOTS, Counts, Inspection, Twins
from fewshot_mcl.data.names import first_few, printable

COMMANDS = {"few-shot": "train", "classify": "classify"}


def lines(found: Inspection) -> list[str]:
    """The inspection as text, without its table of counts."""
    text = [f"{found.name}: {found.format}, as `{COMMANDS[found.task]}` opens it"]
    text += [f"  note: {note}" for note in found.notes]
    text += [f"  {line}" for line in appearance(found)]
    for kind, problems in found.problems.items():
        text += [f"  {kind}: {len(problems)}", *(f"    {problem}" for problem in problems[:LISTED])]
        text += [f"    ... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return text + [f"  {line}" for line in duplicates(found)]


def appearance(found: Inspection) -> list[str]:
    """Sizes and kinds of images in words."""
    if not found.pictures:
        return ["no usable image"]
    sides, total = found.sides, len(found.pictures)
    common = [f"{width}x{height} ({count:,})" for (width, height), count in found.sizes.most_common()]
    quarter, middle, three = (sides[total * part // 4] for part in (1, 2, 3))
    words = f"all {common[0].split()[0]}"
    if len(common) > 1:
        words = (
            f"shorter side {sides[0]} to {sides[-1]} pixels, median {middle}, half of them {quarter} to {three}; most often "
            f"{first_few(common)}"
        )
    return [f"sizes: {words}", f"kinds: {', '.join(f'{kind} {count:,}' for kind, count in found.kinds.most_common())}"]


def duplicates(found: Inspection) -> list[str]:
    """Same and similar images in words; across splits first, and loudly."""
    text = []
    for exact, word in ((True, "the same"), (False, "nearly the same")):
        own = [each for each in found.twins if each.exact == exact]
        for leak, where in ((True, "IN SEVERAL SPLITS, so that the test gives itself away"), (False, "within a split")):
            part = [each for each in own if each.leak == leak]
            if part:
                text.append(f"{word} image {where}: {len(part)} group(s)")
                text += [f"  {_with_doubt(each)}" for each in part[: LISTED if leak else 5]]
                text += (
                    [f"  ... and {len(part) - (LISTED if leak else 5)} more"]
                    if len(part) > (LISTED if leak else 5)
                    else []
                )
    return text or ["no image twice, nor two that look the same"]


def _with_doubt(twins: Twins) -> str:
    return f"{twins} (of several classes)" if twins.contradiction and not twins.leak else str(twins)


def content(found: Inspection) -> dict[str, Any]:
    """All of it, fit for JSON."""
    return {
        "data": found.name, "format": found.format, "task": found.task, "notes": list(found.notes), "problems": found.problems,
        "splits": [_split(each) for each in found.counts],
        "sizes": [{"width": w, "height": h, "images": count} for (w, h), count in found.sizes.most_common()],
        "kinds": dict(found.kinds.most_common()),
        "duplicates": [
            {
                "exact": each.exact, "in_several_splits": each.leak, "of_several_classes": each.contradiction,
                "images": [
                    {"split": one.split, "class": printable(one.label), "name": one.name} for one in each.pictures
                ],
            }
            for each in found.twins
        ],
    }  # fmt: skip


def _split(counts: Counts) -> dict[str, Any]:
    return {
        "split": counts.split,
        "classes": {printable(name): count for name, count in counts.by_class.items()},
        "images": sum(counts.by_class.values()),
        "largest_query": {str(shot): counts.largest_query(shot) for shot in SHOTS},
    }
