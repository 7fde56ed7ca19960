"""Class by class: the figures on the page are those of a slow count, and names are text."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from made_up import FIVE, HOSTILE, Seen, material, slow_answers

from fewshot_mcl.data.names import printable
from fewshot_mcl.report import accuracy, rates


def test_the_figures_are_those_of_a_slow_count() -> None:
    found, right, asked = material(), Counter(), Counter()
    for labels, classes in zip(found.episodes.classes.tolist(), slow_answers(found)):
        for position, (label, answers) in enumerate(zip(labels, classes)):
            asked[label] += len(answers)
            right[label] += sum(answer == position for answer in answers)
    rows = [row for row in Seen(accuracy.section(found)).rows if row[0] != "class"]
    assert {row[0]: (row[1], row[4], row[5]) for row in rows} == {
        printable(name): (f"{100 * right[i] / asked[i]:.1f} %", str(asked[i]), str(asked[i] // 4))
        for i, name in enumerate(FIVE)
    }
    shown = [float(row[1].split()[0]) for row in rows]
    assert shown == sorted(shown)
    for row in rows:
        low, _, high = row[2].split()
        assert float(low) <= float(row[1].split()[0]) <= float(high)


def test_images_are_shown_that_are_missed_most_often() -> None:
    found, right, asked = material(), Counter(), Counter()
    for labels, queries, classes in zip(found.episodes.classes, found.episodes.query.tolist(), slow_answers(found)):
        for position in range(len(labels)):
            for row, answer in zip(queries[position], classes[position]):
                asked[row] += 1
                right[row] += answer == position
    page = Seen(accuracy.section(found))
    worst = page.rows[1][0]
    label = [printable(name) for name in FIVE].index(worst)
    rows = [row for row in range(8 * label, 8 * label + 8) if right[row] < asked[row]]
    expected = sorted(right[row] / asked[row] for row in rows)[: accuracy.PICTURES]
    alts = [str(each["alt"]) for each in page.all("img") if str(each["alt"]).startswith(f"image of {worst}, right ")]
    counts = [re.findall(r"\d+", alt.rpartition("right")[2]) for alt in alts]
    assert [int(found) / int(all_) for found, all_ in counts] == expected


def test_hostile_names_are_text() -> None:
    page = Seen(accuracy.section(material()))
    assert "script" not in [tag for tag, _ in page.tags]
    for name in HOSTILE:
        assert printable(name).split()[0] in page.text


def test_many_classes_unfold_and_unseen_ones_are_named() -> None:
    store = material(tuple(f"class {i:02}" for i in range(30))).store
    labels = torch.arange(29).repeat_interleave(8)
    right = (torch.arange(len(labels)) % 8) > labels // 4
    counts = torch.zeros(len(store)).index_add(0, torch.arange(len(labels)), torch.ones(len(labels)))
    page = Seen(accuracy.render(store, rates.of_images(right, labels, 30), counts, counts, "how", "what", "images"))
    assert len(page.all("details")) == 1
    assert "The other 9 classes" in page.text
    assert "Never asked for: class 29 ." in page.text


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_or_nothing(right: float) -> None:
    found = material()
    classes = accuracy.class_rates(torch.full((40, 3, 4), right), found.episodes.classes, 5)
    ones = torch.ones(40)
    page = Seen(accuracy.render(found.store, classes, ones, ones * right, "how", "what", "episodes"))
    assert (len(page.all("img")) > 0) == (right == 0)
    assert f"From {100 * right:.1f} %" in page.text
