"""What is said of a difference: who is better, in whose words, and no more than is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fewshot_mcl.comparison import session, words
from fewshot_mcl.comparison.groups import Group, differences
from fewshot_mcl.comparison.results import Measured, Request
from fewshot_mcl.comparison.session import Comparison
from fewshot_mcl.evaluation.session import Protocol

PROTOCOL = Protocol(5, (1,), 15, 200, 0)


def comparison(**groups: list[float]) -> Comparison:
    """Groups by method, each with the means of its seeds; all find the same episodes hard."""
    hard = np.random.default_rng(0).normal(0, 0.1, 200)
    found, measured = [], {}
    for letter, (name, means) in zip("ABC", groups.items()):
        method, runs = name.replace("_", "-"), {}
        for seed, mean in enumerate(means):
            path = Path(f"{method}{seed}")
            runs[seed] = cast(Any, SimpleNamespace(path=path))
            own = np.random.default_rng(len(measured) + 1).normal(0, 0.03, 200)
            values = {"1-shot": mean + hard - hard.mean() + own - own.mean()}
            measured[path] = Measured(values, (), "", {"data": "d", "classes": 9, "images": 90}, True)
        found.append(Group(letter, words_label(method), method, runs))
    made = Comparison(Request(PROTOCOL, "best"), found, {}, measured, [], [])
    return Comparison(made.request, found, {}, measured, session._pairs(made), [])


def words_label(method: str) -> str:
    return {"baseline": "Baseline"}.get(method, method.upper())


def test_the_better_one_is_named_with_both_intervals() -> None:
    [said] = words.sentences(comparison(baseline=[0.60, 0.61, 0.62], mcl_okd=[0.63, 0.638, 0.652]))
    assert said.startswith(
        "1-shot: MCL-OKD is better than Baseline by 3.0 points (95% 2.7 to 3.3, over episodes; 3 of 3"
    )
    assert "Over seeds it is shown too" in said


def test_it_is_said_where_ours_loses() -> None:
    [said] = words.sentences(comparison(mcl_okd=[0.60, 0.60], baseline=[0.65, 0.66]))
    assert said.startswith("1-shot: MCL-OKD is worse than Baseline by 5.5 points (95% 5.")
    assert "2 of 2 seeds agree" in said


@pytest.mark.parametrize("order", [("dml", "one"), ("one", "dml")])
def test_of_others_the_better_one_is_the_subject(order: tuple[str, str]) -> None:
    means = {"dml": [0.7], "one": [0.6]}
    [said] = words.sentences(comparison(**{name: means[name] for name in order}))
    assert said.startswith("1-shot: DML is better than ONE by 10.0 points (95% 9.")
    assert "Whether networks trained with other seeds would agree is not known (1 of" in said


def test_seeds_that_disagree_are_not_hidden_by_many_episodes() -> None:
    [said] = words.sentences(comparison(baseline=[0.60, 0.64, 0.60], mcl_okd=[0.66, 0.62, 0.61]))
    assert "better" in said
    assert "2 of 3 seeds agree" in said
    assert "Over seeds it is not shown" in said


def test_no_difference_is_no_proof_of_none() -> None:
    [said] = words.sentences(comparison(baseline=[0.6], mcl_okd=[0.6001]))
    assert said.startswith("1-shot: No difference between MCL-OKD and Baseline is shown: +0.01 points (95% -0.")
    assert "no proof that they are equal" in said


def test_all_pairs_are_corrected_together() -> None:
    found = comparison(baseline=[0.6], dml=[0.6065], mcl_okd=[0.6])
    alone = [pair.episodes.t_p for pair in found.pairs]
    assert min(pair.t_holm for pair in found.pairs) == pytest.approx(3 * min(alone))
    assert [f"{p.first.letter}{p.second.letter}" for p in found.pairs] == ["AB", "AC", "BC"]
    assert all(pair.t_holm >= p for pair, p in zip(found.pairs, alone))


def test_significance_is_never_called_importance() -> None:
    text = " ".join(words.lines(comparison(baseline=[0.60], mcl_okd=[0.70])))
    assert "significan" not in text
    assert "important" not in text
    assert "not yet one that matters" in text


def test_tables_fit_eighty_columns() -> None:
    rows = list(words.lines(comparison(baseline=[0.60, 0.61], mcl_okd=[0.70, 0.75])))
    start = next(i for i, row in enumerate(rows) if row.startswith("difference"))
    assert max(map(len, rows[start : start + 3])) <= 80


def test_settings_that_differ() -> None:
    assert differences([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": "x\x1b"}]) == {"b": ["2", "3"], "c": ["-", "x\\x1b"]}
