"""Curves: what metrics.csv says is what is drawn and told."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_up import Seen

from fewshot_mcl.errors import UserError
from fewshot_mcl.pages.charts import chart, new_figure
from fewshot_mcl.report import curves

ROWS = """episode,lr,ce,total,peer0,peer1,val peer 0,val peer 0 ci95,val peer 1,val peer 1 ci95,val ensemble,val ensemble ci95
1,0.002,3.5,4.5,1.25,2.25,,,,,,
2,0.001,2.5,3.25,1.0,1.5,0.5,0.02,0.4,0.03,0.55,0.01
3,0.0005,nan,2.25,0.75,0.5,0.625,0.02,0.45,0.025,0.65,0.015
"""


def run(folder: Path, text: str | None) -> Any:
    if text is not None:
        (folder / "metrics.csv").write_text(text)
    return SimpleNamespace(path=folder, config=SimpleNamespace(unit="episode"))


def test_columns(tmp_path: Path) -> None:
    found = curves.metrics(run(tmp_path, ROWS + "4,0.0001,9"))  # the last line is being written
    assert found["episode"] == [1, 2, 3]
    assert found["val peer 1"] == [None, 0.4, 0.45]
    assert math.isnan(found["ce"][2] or 0)


@pytest.mark.parametrize("text", [None, "", "episode,lr,ce\n"])
def test_nothing_to_say(text: str | None, tmp_path: Path) -> None:
    assert curves.render(run(tmp_path, text), None, "") == ""


@pytest.mark.parametrize("text", ["episode,ce\n1,x\n", "episode,ce\n1\n", "episode,ce\n,1\n", "episode,ce\n1,\xff\n"])
def test_damage_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        curves.metrics(run(tmp_path, text))


def test_every_curve_is_drawn_and_told(tmp_path: Path) -> None:
    page = curves.render(run(tmp_path, ROWS), 2, "on five episodes")
    seen = Seen(page)
    for words in (
        "peer 0 50.0 ± 2.0 at episode 2; peer 1 40.0 ± 3.0 at episode 2; ensemble 55.0 ± 1.0 at episode 2",
        "Bands are 95% intervals of ensemble and peer 1", "Loss term ce. 3.5 at episode 1",
        "Total loss. 4.5 at episode 1, 2.25 at 3",
        "peer 0: 1.25 at episode 1, 0.75 at 3; peer 1: 2.25 at episode 1, 0.5 at 3", "0.002 at episode 1, 0.0005 at 3",
    ):  # fmt: skip
        assert words in seen.text
    assert len(seen.all("svg")) == len([each for each in seen.all("svg") if each.get("aria-label")]) == 5
    ids = [value for _, attributes in seen.tags if (value := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert "on five episodes" in seen.text


def test_lines_of_one_colour_differ_by_their_dashes() -> None:
    looks = [curves.style(number) for number in range(35)]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 35


def test_hostile_columns_are_text(tmp_path: Path) -> None:
    seen = Seen(curves.render(run(tmp_path, "episode,lr,<script>$x$ \x1b[1m\n1,1,2\n2,1,3\n"), None, ""))
    assert "script" not in [tag for tag, _ in seen.tags]
    assert "Loss term <script>$x$ \\x1b[1m" in seen.text


def test_long_runs_stay_small(tmp_path: Path) -> None:
    rows = "".join(f"{i},0.1,{math.sin(i) + 2}\n" for i in range(1, 20001))
    assert len(curves.render(run(tmp_path, "episode,lr,ce\n" + rows), None, "")) < 200_000


def test_words_of_a_chart_may_have_any_colour() -> None:
    figure, axes = new_figure()
    for colour in (np.array([0.0, 0.4, 0.7, 1.0]), (0.0, 0.4, 0.7), "black"):
        axes.annotate("here", (0, 0), color=colour)
    text = chart(figure, "Title", "words")
    assert text.count("currentColor") > 3
    assert "fill: #0066b2" in text
