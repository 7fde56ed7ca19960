"""Episodes as pictures: the ones that are named, and what stands below each query."""

from __future__ import annotations

import pytest
import torch
from made_up import FIVE, Seen, material, slow_answers

from fewshot_mcl.data.names import printable
from fewshot_mcl.report import accuracy, confusion, episodes


def test_worst_median_and_best() -> None:
    found = material()
    right = [sum(a == k for k, row in enumerate(each) for a in row) for each in slow_answers(found)]
    page = Seen(episodes.section(found))
    for kind, expected in (("Worst", min(right)), ("Median", sorted(right)[20]), ("Best", max(right))):
        assert f"{kind}: {expected} of 12 right" in page.text
    frames = [str(each["class"]).split()[-1] for each in page.all("img")]
    shown = min(right) + sorted(right)[20] + max(right)
    assert (frames.count("right"), frames.count("wrong")) == (shown, 36 - shown)  # all of so few are shown
    assert "script" not in [tag for tag, _ in page.tags]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_probabilities_and_distances_below_the_queries(metric: str) -> None:
    found = material(metric=metric, scale=7)
    wrong = [sum(a != k for k, row in enumerate(each) for a in row) for each in slow_answers(found)]
    number = wrong.index(max(wrong))
    worst = episodes._episode(found, "Worst", number, torch.zeros(40, dtype=torch.int64))
    features = found.measured[-1].double()
    centres = [features[rows].mean(0) for rows in found.episodes.support[number]]
    names = [FIVE[label] for label in found.episodes.classes[number].tolist()]
    for own, (shown, rows) in enumerate(zip(worst["classes"], found.episodes.query[number])):
        expected = []
        for q in rows.tolist():
            if metric == "cosine":
                lengths = [float(torch.cosine_similarity(features[q], c, dim=0)) for c in centres]
                logits = torch.tensor([7 * x for x in lengths])
            else:
                lengths = [float((features[q] - c).norm()) for c in centres]
                logits = torch.tensor([-(x**2) for x in lengths])
            top, chances = int(logits.argmax()), logits.softmax(0)
            expected.append(
                (names[top], top == own, float(chances[top]), lengths[top], float(chances[own]), lengths[own])
            )
        expected.sort(key=lambda each: each[1])
        keys = ("taken", "right", "chance", "length", "own_chance", "own_length")
        for query, each in zip(shown["queries"], expected, strict=True):
            assert [query[key] for key in keys[:2]] == list(each[:2])
            assert [query[key] for key in keys[2:]] == pytest.approx(each[2:], abs=1e-4)


def test_every_picture_says_what_it_is() -> None:
    page = Seen(episodes.section(material(shots=(2,))))
    names = {printable(name) for name in FIVE}
    for each in page.all("img"):
        alt = str(each["alt"])
        kind, _, name = alt.partition(" taken for ") if " taken for " in alt else alt.partition(" of ")
        assert kind in ("query, right", "query,", "support image")
        assert alt == "query, right" or name in names


def test_large_episodes_are_cut_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "QUERIES", 4)
    monkeypatch.setattr(episodes, "CLASSES", 2)
    page = Seen(episodes.section(material()))
    assert len(page.all("img")) == 3 * 2 * (1 + 2)
    assert "and of each class not all" in page.text
    assert "2 of its 3 classes are shown" in page.text


def test_letters() -> None:
    assert [episodes._letter(k) for k in (0, 25, 26)] == ["A", "Z", "27"]


def test_large_photographs_leave_room_on_the_page() -> None:
    """Noise, which compresses worst, of the side that most benchmarks have."""
    found = material(tuple(f"class {i}" for i in range(12)), shots=(4,), side=84)
    parts = [module.section(found) for module in (episodes, accuracy, confusion)]
    assert sum(len(part) for part in parts) < 3_000_000
