"""From run directories to what may be said of their differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fewshot_mcl.comparison.groups import Group, find_groups, open_runs, require_same_training
from fewshot_mcl.comparison.results import Measured, Request, measure
from fewshot_mcl.comparison.statistics import Difference, holm, mcnemar, over_seeds, paired
from fewshot_mcl.errors import UserError
from fewshot_mcl.runs import Run


@dataclass(frozen=True)
class Exact:
    """McNemar's exact test of one training seed."""

    seed: str
    p: float
    holm: float = 1.0


@dataclass(frozen=True)
class Pair:
    """Two groups, by one measure.

    Attributes:
        episodes: their difference over episodes (or images), each group's accuracy there being the mean of its seeds.
        seeds: over training seeds; None where a side has fewer than two.
        by_seed: the difference of means of each seed that both have.
        t_holm, wilcoxon_holm: p values over episodes, corrected for all pairs of the comparison.
        exact: of runs that classify, by seed.
    """

    first: Group
    second: Group
    measure: str
    episodes: Difference
    seeds: Difference | None
    by_seed: dict[int, float]
    t_holm: float = 1.0
    wilcoxon_holm: float = 1.0
    exact: tuple[Exact, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All that was found.

    Attributes:
        differing: the settings that are not the same for all groups, with each group's value.
        measured: by run directory.
        pairs: of groups, by measure; empty where all runs are of one group.
    """

    request: Request
    groups: list[Group]
    differing: dict[str, list[str]]
    measured: dict[Path, Measured]
    pairs: list[Pair]
    notes: list[str]

    @property
    def few_shot(self) -> bool:
        return self.request.protocol is not None

    @property
    def measures(self) -> list[str]:
        return list(next(iter(self.measured.values())).accuracies)

    def accuracies(self, group: Group, measure: str) -> dict[int, np.ndarray]:
        """By seed: (n,), one an episode or image."""
        return {seed: self.measured[run.path].accuracies[measure] for seed, run in group.runs.items()}


def compare(
    paths: Sequence[Path],
    request: Callable[[str], Request],
    other_training: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare runs on the same episodes or images.

    Args:
        paths: of run directories.
        request: how runs of a task ("few-shot", "classify") are measured.
        other_training: compare even runs that were trained on different images; the notes say so first.
        say: is told what is being evaluated.

    Raises:
        UserError: where there is nothing to compare, or it would not be fair.
    """
    runs = open_runs(paths)
    notes = require_same_training(runs, other_training)
    asked = request(runs[0].config.task)
    groups, differing = find_groups(runs)
    measured = _measure_all(runs, asked, other_training, say)
    found = Comparison(asked, groups, differing, measured, [], [])
    if asked.protocol and asked.protocol.split == "val":
        notes.append("on validation classes, by which checkpoints were chosen: figures are better than of new classes")
    every = [
        *notes,
        *(note for m in measured.values() for note in m.content["notes"]),
        *(n for r in runs for n in r.notes),
    ]
    return replace(found, pairs=_pairs(found), notes=list(dict.fromkeys(every)))


def _measure_all(
    runs: list[Run], request: Request, other_training: bool, say: Callable[[str], None]
) -> dict[Path, Measured]:
    """Every run on the same episodes or images; what was saved is used where it all agrees."""
    found: dict[Path, Measured] = {}
    for fresh in (False, True):
        for i, run in enumerate(runs):
            if fresh or run.path not in found:
                found[run.path] = measure(run, request, fresh)
                if not found[run.path].reused:
                    say(f"evaluated {run.path} ({i + 1} of {len(runs)})")
        odd = _odd_one(list(found.values()), other_training)
        if odd is None:
            return found
        other = runs[odd].path
        if not any(each.reused for each in found.values()):
            break
    first = runs[0].path
    raise UserError(
        f"{first} and {other} are tested on different images or episodes ({_images(found[first])}; {_images(found[other])}): "
        "their figures cannot be paired. Name one data source for all: --data D."
    )


def _odd_one(found: list[Measured], other_training: bool) -> int | None:
    """The place of the first that cannot be paired with number 0."""
    first = found[0]
    for i, each in enumerate(found):
        resized = other_training and each.content["image_size"] != first.content["image_size"]
        if each.same != first.same or not (resized or each.fingerprint == first.fingerprint):
            return i
    return None


def _images(measured: Measured) -> str:
    c = measured.content
    return f"{c['data']}, {c['classes']} classes, {c['images']:,} images of {c['image_size']} pixels"


def _pairs(found: Comparison) -> list[Pair]:
    pairs = [
        _pair(found, first, second, measure)
        for measure in found.measures
        for first, second in itertools.combinations(found.groups, 2)
    ]
    t = holm([pair.episodes.t_p for pair in pairs])
    wilcoxon = holm([pair.episodes.wilcoxon_p or 0.0 for pair in pairs])
    exact = iter(holm([each.p for pair in pairs for each in pair.exact]))
    return [
        replace(
            pair, t_holm=t[i], wilcoxon_holm=wilcoxon[i], exact=tuple(replace(e, holm=next(exact)) for e in pair.exact)
        )
        for i, pair in enumerate(pairs)
    ]


def _pair(found: Comparison, first: Group, second: Group, measure: str) -> Pair:
    a, b = found.accuracies(first, measure), found.accuracies(second, measure)
    means_a, means_b = ({seed: float(values.mean()) for seed, values in side.items()} for side in (a, b))
    common = [seed for seed in a if seed in b]
    exact: list[Exact] = []
    if not found.few_shot:
        exact = [Exact(f"seed {seed}", mcnemar(a[seed], b[seed])) for seed in common]
        if not exact and len(a) == len(b) == 1:
            [(seed_a, only_a)], [(seed_b, only_b)] = a.items(), b.items()
            exact = [Exact(f"seeds {seed_a} and {seed_b}", mcnemar(only_a, only_b))]
    over = paired(np.mean(list(a.values()), axis=0), np.mean(list(b.values()), axis=0))
    by_seed = {seed: means_a[seed] - means_b[seed] for seed in common}
    return Pair(first, second, measure, over, over_seeds(means_a, means_b), by_seed, exact=tuple(exact))
