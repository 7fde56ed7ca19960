"""Pairs that are confused: counted where they met, in either direction, against a slow count."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from made_up import FIVE, Seen, material, slow_answers

from fewshot_mcl.data.names import printable
from fewshot_mcl.report import classification, confusion
from fewshot_mcl.report.answers import deployed_answers


def counted(found) -> tuple[Counter, Counter]:
    """(a, b) -> queries of a in episodes that hold b, and those of them that were taken for b."""
    met, taken = Counter(), Counter()
    for labels, classes in zip(found.episodes.classes.tolist(), slow_answers(found)):
        for position, a in enumerate(labels):
            for b in labels:
                met[a, b] += len(classes[position])
            for answer in classes[position]:
                taken[a, labels[answer]] += 1
    return met, taken


def test_pairs_are_those_of_a_slow_count() -> None:
    found = material()
    met, taken = counted(found)
    pairs = confusion.met(deployed_answers(found), found.episodes.classes)
    keys = list(zip(pairs.first.tolist(), pairs.second.tolist()))
    assert keys == sorted((a, b) for a, b in met if a < b)
    for k, (a, b) in enumerate(keys):
        assert float(pairs.forward[k]) == pytest.approx(taken[a, b] / met[a, b])
        assert float(pairs.backward[k]) == pytest.approx(taken[b, a] / met[b, a])
        assert float(pairs.rates.share[k]) == pytest.approx((taken[a, b] + taken[b, a]) / (met[a, b] + met[b, a]))
        assert int(pairs.rates.clusters[k]) == met[a, b] // 4


def test_the_page_shows_them_with_pictures_of_both() -> None:
    found = material()
    met, taken = counted(found)
    page = Seen(confusion.section(found))
    rows = [row for row in page.rows if row[0] != "pair"]
    assert len(rows) == min(confusion.TOP, sum(taken[a, b] + taken[b, a] > 0 for a, b in met if a < b))
    lows = [float(row[3].split()[0]) for row in rows]
    assert lows == sorted(lows, reverse=True)
    shares = {f"{100 * (taken[a, b] + taken[b, a]) / (met[a, b] + met[b, a]):.1f} %": (a, b) for a, b in met if a < b}
    for row in rows:
        a, b = shares[row[2]]
        assert f"{100 * taken[a, b] / met[a, b]:.1f} %" in row[4]
        assert row[5] == str(met[a, b] // 4)
    assert len(page.all("img")) == 2 * confusion.PICTURES * len(rows)
    assert {str(each["alt"]).removeprefix("image of ") for each in page.all("img")} <= {printable(n) for n in FIVE}
    assert "script" not in [tag for tag, _ in page.tags]


def test_a_pair_that_met_once_is_not_the_first_by_luck() -> None:
    found = material()
    classes = torch.tensor([[0, 1], *[[2, 3]] * 12])
    answers = torch.tensor([[[1, 1, 1, 0], [0, 0, 0, 0]], *[[[1, 1, 0, 0], [0, 0, 0, 1]]] * 12])
    pairs, nothing = confusion.met(answers, classes), torch.zeros(0, dtype=torch.int64)
    assert pairs.rates.share.tolist() == [7 / 8, 5 / 8]
    rows = Seen(confusion.render(found.store, pairs, nothing, nothing, "how", "rule", "met")).rows
    assert [row[2] for row in rows[1:]] == ["62.5 %", "87.5 %"]


def test_nothing_confused() -> None:
    found = material()
    right = torch.arange(3)[None, :, None].expand(40, 3, 4)
    pairs = confusion.met(right, found.episodes.classes)
    nothing = torch.zeros(0, dtype=torch.int64)
    page = Seen(confusion.render(found.store, pairs, nothing, nothing, "how", "rule", "met"))
    assert "No query was taken for another class" in page.text


def test_of_images_every_answer_counts_once() -> None:
    store = material().store
    answers = store.labels.clone()
    answers[:3], answers[8], answers[39] = 1, 0, 2  # three of class 0 for 1, one of 1 for 0, one of 4 for 2
    pairs = classification.taken(store, answers)
    assert list(zip(pairs.first.tolist(), pairs.second.tolist())) == [(0, 1), (2, 4)]
    assert pairs.forward.tolist() == [3 / 8, 0]
    assert pairs.backward.tolist() == [1 / 8, 1 / 8]
    assert pairs.rates.share.tolist() == pytest.approx([4 / 16, 1 / 16])
