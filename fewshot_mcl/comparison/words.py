"""A comparison in words, as lines for a terminal, and as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fewshot_mcl.comparison.groups import Group
from fewshot_mcl.comparison.results import IMAGES
from fewshot_mcl.comparison.session import Comparison, Pair
from fewshot_mcl.comparison.statistics import LEVEL, Difference
from fewshot_mcl.evaluation.statistics import Result

OURS = "mcl-okd"  # is the subject of its sentences, whether it wins or loses
RISK = 1 - LEVEL
EPISODES = "episodes: these trained networks, on other episodes of these classes"
SEEDS = "seeds: networks trained anew, on these episodes"
IMAGES_SPREAD = "images: these trained networks, on other images like these"


def heading(found: Comparison) -> str:
    """What was measured, on what."""
    content, p = next(iter(found.measured.values())).content, found.request.protocol
    data = f"{content['data']}, {p.split if p else 'test'} split, {content['classes']} classes, {content['images']:,} images"
    if p is None:
        which = "last epoch" if found.request.checkpoint == "last" else "best checkpoint by validation"
        return f"all on the same test images: {data}; top-1 accuracy of the deployed peer, {which}"
    shots = " and ".join(f"{shot}-shot" for shot in p.shots)
    which = "best checkpoint by validation" if found.request.checkpoint == "best" else "last checkpoint"
    return (
        f"all on the same {p.episodes:,} episodes: {data}; {p.way}-way, {shots}, {p.query} queries a class, episode seed "
        f"{p.seed}; deployed peer, {which}"
    )


def explanation(found: Comparison) -> list[str]:
    """What each figure covers."""
    over = EPISODES if found.few_shot else IMAGES_SPREAD
    tests = "p by paired t and by Wilcoxon's signed ranks (differences of zero left out)"
    lines = [
        f"Intervals are of 95%. Over {over}. Over {SEEDS}. The two are never put into one.",
        f"{tests}, over {unit(found)}, corrected by Holm for {len(found.pairs)} comparison(s); intervals are not.",
    ]
    if not found.few_shot:
        lines.append("McNemar's exact test is of two networks, image by image, corrected by Holm for all such tests.")
    lines.append("A difference that is shown is not yet one that matters: its size says that.")
    return lines


def unit(found: Comparison) -> str:
    """What is drawn: episodes or images."""
    return "episodes" if found.few_shot else "images"


def interval(low: float, high: float) -> str:
    """Two ends in points, with signs."""
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def p_value(p: float) -> str:
    """To three digits."""
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def accuracy_rows(found: Comparison) -> list[list[str]]:
    """One row a measure and group: letter and name, measure, accuracy and interval, seeds, deviation over seeds."""
    rows = []
    for measure in found.measures:
        for group in found.groups:
            result, spread = summary(found, group, measure)
            over = f"{len(group.seeds)}: {100 * spread:.2f}" if spread is not None else f"{len(group.seeds)}: -"
            value = f"{100 * result.mean:.2f} ± {100 * result.ci95:.2f}"
            rows.append([f"{group.letter}  {group.name}", measure, value, over])
    return rows


def summary(found: Comparison, group: Group, measure: str) -> tuple[Result, float | None]:
    """Mean of a group's seeds on each episode or image, and the deviation of the seeds' means (None of one seed)."""
    import torch

    by_seed = np.array(list(found.accuracies(group, measure).values()))
    spread = float(by_seed.mean(1).std(ddof=1)) if len(by_seed) > 1 else None
    return Result(torch.from_numpy(by_seed.mean(0))), spread


def difference_rows(found: Comparison) -> list[list[str]]:
    """One row a pair and measure: pair, points, interval over episodes, both p, interval over seeds."""
    return [
        [
            f"{pair.first.letter} - {pair.second.letter}, {pair.measure}", f"{100 * pair.episodes.mean:+.2f}",
            interval(pair.episodes.low, pair.episodes.high), p_value(pair.t_holm), p_value(pair.wilcoxon_holm),
            interval(pair.seeds.low, pair.seeds.high) if pair.seeds else "-",
        ]
        for pair in found.pairs
    ]  # fmt: skip


def sentences(found: Comparison) -> list[str]:
    """One for each pair and measure."""
    if not found.pairs:
        [group] = found.groups
        spreads = [(measure, summary(found, group, measure)[1] or 0.0) for measure in found.measures]
        each = ", ".join(f"{100 * spread:.2f} points ({measure})" for measure, spread in spreads)
        return [
            f"All {len(group.seeds)} runs are {group.name} and differ in nothing but their seed: there are no two settings to "
            f"compare. The deviation of their means over seeds is {each}."
        ]
    return [sentence(pair, found) for pair in found.pairs]


def sentence(pair: Pair, found: Comparison) -> str:
    """What may be said of a pair in plain words."""
    ours_last = pair.second.method == OURS and pair.first.method != OURS
    worse = pair.episodes.mean < 0 and pair.first.method != OURS
    turned = ours_last or (worse and pair.second.method != OURS)
    first, second = (pair.second, pair.first) if turned else (pair.first, pair.second)
    sign = -1 if turned else 1
    mean = sign * pair.episodes.mean
    where = "" if pair.measure == IMAGES else f"{pair.measure}: "
    if pair.t_holm >= RISK:
        return f"{where}{_not_shown(pair, first, second, sign, found)}"
    size = _ends(abs(mean), *_turned(pair.episodes, 1 if pair.episodes.mean > 0 else -1))
    word = "better" if mean > 0 else "worse"
    doubt = ""
    if pair.wilcoxon_holm >= RISK:
        doubt = f" Wilcoxon's signed ranks do not show it (p {p_value(pair.wilcoxon_holm)})."
    return (
        f"{where}{first.name} is {word} than {second.name} by {size[0]} points (95% {size[1]} to {size[2]}, over "
        f"{unit(found)}{_agreement(pair, sign * mean)}).{doubt}{_over_seeds(pair)}"
    )


def _not_shown(pair: Pair, first: Group, second: Group, sign: int, found: Comparison) -> str:
    low, high = _turned(pair.episodes, sign)
    alone = ""
    if low > 0 or high < 0:
        alone = f", which alone would leave zero out, but not among {len(found.pairs)} comparisons (p {p_value(pair.t_holm)})"
    return (
        f"No difference between {first.name} and {second.name} is shown: {100 * sign * pair.episodes.mean:+.2f} points (95% "
        f"{interval(low, high)}, over {unit(found)}{alone}). That is no proof that they are equal."
    )


def _ends(*values: float) -> list[str]:
    """Points with so many digits that the first does not read as none."""
    digits = 1 if abs(values[0]) >= 0.005 else 2
    return [f"{100 * value:.{digits}f}" for value in values]


def _turned(difference: Difference, sign: int) -> tuple[float, float]:
    return (difference.low, difference.high) if sign > 0 else (-difference.high, -difference.low)


def _agreement(pair: Pair, mean: float) -> str:
    """How many of the seeds that both have say the same as their mean."""
    if len(pair.by_seed) < 2:
        return ""
    agree = sum(difference * mean > 0 for difference in pair.by_seed.values())
    return f"; {agree} of {len(pair.by_seed)} seeds agree"


def _over_seeds(pair: Pair) -> str:
    if pair.seeds is None:
        few = " and ".join(f"{len(g.seeds)} of {g.name}" for g in (pair.first, pair.second))
        return f" Whether networks trained with other seeds would agree is not known ({few})."
    low, high = _turned(pair.seeds, 1 if pair.episodes.mean > 0 else -1)
    if low <= 0 <= high:
        return f" Over seeds it is not shown (95% {interval(low, high)}): networks trained anew might not agree."
    ends = f"95% {100 * low:.1f} to {100 * high:.1f}"
    return f" Over seeds it is shown too ({ends})."


def lines(found: Comparison) -> Iterator[str]:
    """The whole comparison for a terminal."""
    yield f"{heading(found)}."
    for group in found.groups:
        runs = ", ".join(str(run.path) for run in group.runs.values())
        yield f"  {group.letter}  {group.name}; seed{'s' * (len(group.seeds) > 1)} {_listed(group.seeds)}: {runs}"
    if found.differing:
        yield f"they differ in {difference_list(found)}"
    yield from (f"note: {note}" for note in found.notes)
    yield ""
    yield f"accuracy in % ± 95% interval over {unit(found)}; number of seeds: deviation over them"
    yield from aligned(["", "", "accuracy", "seeds"], accuracy_rows(found))
    if found.pairs:
        yield ""
        yield f"difference in points, with 95% intervals over {unit(found)} and over seeds"
        yield from aligned(["", "points", f"over {unit(found)}", "p t", "p W", "over seeds"], difference_rows(found))
        for pair in found.pairs:
            yield from (
                f"  {pair.first.letter} - {pair.second.letter}, {e.seed}: McNemar p {p_value(e.holm)}"
                for e in pair.exact
            )
        yield from explanation(found)
    yield ""
    yield from sentences(found)


def difference_list(found: Comparison) -> str:
    """The settings that differ, with every group's value."""
    shown = [f"{name} ({', '.join(values)})" for name, values in found.differing.items() if "-" not in values]
    hidden = len(found.differing) - len(shown)
    more = [f"{hidden} options that not all of them have"] if hidden else []
    return ", ".join([*shown, *more])


def aligned(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A table in which the first column stands to the left and all others to the right, in as few columns as it takes."""
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    for row in (columns, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        yield "  " + "  ".join(cells).rstrip()


def _listed(values: list[int]) -> str:
    return " ".join(map(str, values))


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything that `lines` says, and every figure unrounded. Accuracies and differences are fractions."""
    p, first = found.request.protocol, next(iter(found.measured.values())).content
    protocol = (
        {"way": p.way, "shots": list(p.shots), "query": p.query, "episodes": p.episodes, "seed": p.seed} if p else {}
    )
    return {
        "task": "few-shot" if found.few_shot else "classify", "data": first["data"], "classes": first["classes"],
        "images": first["images"], "split": p.split if p else "test", **protocol, "checkpoint": found.request.checkpoint,
        "network": "deployed", "unit": "fraction", "over": unit(found), "heading": heading(found),
        "groups": [_group(found, group) for group in found.groups], "differing": found.differing,
        "pairs": [_pair(pair, found) for pair in found.pairs], "sentences": sentences(found), "notes": found.notes,
        "explanation": explanation(found),
    }  # fmt: skip


def _group(found: Comparison, group: Group) -> dict[str, Any]:
    results = []
    for measure in found.measures:
        result, spread = summary(found, group, measure)
        results.append({"measure": measure, "mean": result.mean, "ci95": result.ci95, "deviation_over_seeds": spread})
    runs = [
        {
            "run": str(run.path), "seed": seed, "evaluation": found.measured[run.path].content["file"],
            "reused": found.measured[run.path].reused,
            "means": {m: float(values.mean()) for m, values in found.measured[run.path].accuracies.items()},
        }
        for seed, run in group.runs.items()
    ]  # fmt: skip
    return {"letter": group.letter, "name": group.name, "method": group.method, "runs": runs, "results": results}


def _pair(pair: Pair, found: Comparison) -> dict[str, Any]:
    over, seeds = pair.episodes, pair.seeds
    return {
        "first": pair.first.letter, "second": pair.second.letter, "measure": pair.measure, "mean": over.mean,
        f"over_{unit(found)}": {
            "low": over.low, "high": over.high, "count": over.count, "t_p": over.t_p, "t_p_holm": pair.t_holm,
            "wilcoxon_p": over.wilcoxon_p, "wilcoxon_p_holm": pair.wilcoxon_holm,
        },
        "over_seeds": seeds and {"mean": seeds.mean, "low": seeds.low, "high": seeds.high, "t_p": seeds.t_p},
        "by_seed": {str(seed): difference for seed, difference in pair.by_seed.items()},
        "mcnemar": [{"of": each.seed, "p": each.p, "p_holm": each.holm} for each in pair.exact],
        "sentence": sentence(pair, found),
    }  # fmt: skip
