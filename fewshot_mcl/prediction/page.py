"""Answers as a page: every query beside the support images that are most like it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fewshot_mcl.data.images import BadImage, in_threads
from fewshot_mcl.data.names import printable
from fewshot_mcl.few_shot import FewShot
from fewshot_mcl.pages import write_page
from fewshot_mcl.prediction.answers import Answers
from fewshot_mcl.prediction.photos import thumbnail

QUERY_SIDE, SUPPORT_SIDE = 240, 112  # pixels of the longer side: twice what is shown, for fine screens


def write_answers(
    path: Path, few: FewShot, answers: Answers, lines: Sequence[str], details: Sequence[str], command: Sequence[str]
) -> Path:
    """Write the page of answers about files.

    Args:
        path: of the HTML file.
        few: what answered.
        answers: about files; those that went away since are shown without a picture.
        lines, details: what is said above the answers, and below them.
        command: that makes the page again.
    """
    queries = _pictures([each.path for each in answers.predictions], QUERY_SIDE)
    supports = _pictures(sorted({name for each in answers.predictions for name in each.nearest}), SUPPORT_SIDE)
    counts = Counter(each.label for each in answers.predictions)
    groups = [(name, counts[name]) for name in (*few.classes, None) if counts[name]]
    return write_page(
        path,
        "predictions.html",
        title=f"What {len(answers.predictions)} image{'s' * (len(answers.predictions) != 1)} show",
        command=command,
        few=few,
        answers=answers,
        groups=groups,
        table_rows=[[printable(name), str(count), str(counts[name])] for name, count in zip(few.classes, few.counts)],
        lines=lines,
        details=details,
        queries=queries,
        supports=supports,
        class_of=few.class_of,
    )


def _pictures(names: Sequence[str], side: int) -> dict[str, str]:
    def one(i: int) -> str:
        try:
            return thumbnail(Path(names[i]), side)
        except BadImage:
            return ""

    return dict(zip(names, in_threads(one, len(names), chunk=4)))
