"""`FewShot`: three lines of Python, on folders and on pixels."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "prediction"))

from stand_in import KINDS, packaged, queries, save, stripes, support

import fewshot_mcl
from fewshot_mcl import FewShot, few_shot
from fewshot_mcl.errors import UserError

__all__ = ["packaged", "queries", "support"]  # fixtures
pytestmark = pytest.mark.usefixtures("packaged")


def test_every_public_name_has_an_example_and_it_runs() -> None:
    found = [test for test in doctest.DocTestFinder().find(few_shot, globs={}) if test.examples]
    methods = {name for name in vars(FewShot) if not name.startswith("_") and callable(getattr(FewShot, name))}
    assert {test.name.rpartition(".")[2] for test in found} >= {"FewShot"} | methods
    for test in found:
        assert doctest.DocTestRunner().run(test).failed == 0


def test_a_folder_fitted_and_asked(support: Path, queries: Path) -> None:
    few = FewShot().fit(support)
    assert (few.classes, few.counts) == (("checks", "columns", "rows"), (3, 2, 4))
    paths = sorted(queries.rglob("*.png"))
    answers = few.predict(paths)
    assert [answer.path for answer in answers] == [str(path) for path in paths]
    assert [answer.best for answer in answers] == [path.name.partition("-")[0] for path in paths]
    for answer in answers:
        assert few.class_of[answer.nearest[0]] == answer.best
    assert few.leave_one_out is not None
    assert few.leave_one_out.total == 9


def test_pixels_are_what_files_of_them_are(support: Path, tmp_path: Path) -> None:
    kinds = [kind for kind in KINDS for _ in range(3)]
    pixels = [stripes(kind, i % 3) for i, kind in enumerate(kinds)]
    for i, kind in enumerate(kinds):
        save(tmp_path / "saved" / kind / f"{i}.png", kind, i % 3)
    queries = [stripes(kind, 50) for kind in KINDS]
    ours = FewShot().fit(pixels, kinds).predict(queries)
    theirs = FewShot().fit(tmp_path / "saved").predict([save(tmp_path / f"{k}.png", k, 50) for k in KINDS])
    for one, other in zip(ours, theirs):
        assert (one.label, one.best, one.second) == (other.label, other.best, other.second)
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_the_order_of_examples_does_not_matter(tmp_path: Path) -> None:
    kinds = ["rows", "columns", "rows", "checks"]
    pixels = [stripes(kind, i) for i, kind in enumerate(kinds)]
    asked = [stripes("checks", 9)]
    one = FewShot().fit(pixels, kinds).predict(asked)[0]
    other = FewShot().fit(pixels[::-1], kinds[::-1]).predict(asked)[0]
    assert (one.best, one.second) == (other.best, other.second)
    assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_evaluate_counts_what_is_right_and_what_is_refused(support: Path, tmp_path: Path) -> None:
    few = FewShot(false_accept=0.3).fit(support)
    kinds = [kind for kind in KINDS for _ in range(4)] + ["grey"] * 5
    images = [
        stripes(kind, 70 + i) if kind in KINDS else np.full((30, 30), 9 * i, np.uint8) for i, kind in enumerate(kinds)
    ]
    found, answers = few.evaluate(images, kinds), few.predict(images)
    known, foreign = list(zip(kinds, answers))[:12], answers[12:]
    assert (found.accuracy.count, found.accuracy.total) == (sum(k == a.best for k, a in known), 12)
    assert found.false_rejects is not None
    assert found.false_accepts is not None
    assert found.false_rejects.count == sum(a.label is None for _, a in known)
    assert (found.false_accepts.count, found.false_accepts.total) == (sum(a.label is not None for a in foreign), 5)
    assert {name: share.total for name, share in found.by_class.items()} == dict.fromkeys(KINDS, 4)
    assert sum(share.count for share in found.by_class.values()) == found.accuracy.count
    low, high = found.accuracy.interval
    assert 0 <= low <= found.accuracy.value <= high <= 1


def test_evaluate_reads_a_folder_and_names_what_it_cannot(support: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        save(tmp_path / "asked" / kind / "a.png", kind, 90)
    (tmp_path / "asked" / "rows" / "b.png").write_text("no image")
    found = FewShot().fit(support).evaluate(tmp_path / "asked")
    assert found.accuracy.total == 3
    assert len(found.skipped) == 1
    assert "b.png" in found.skipped[0]
    assert found.false_accepts is None


def test_colour_is_warned_of_where_the_network_knows_only_characters(support: Path) -> None:
    grey = [np.full((9, 9), value, np.uint8) for value in (0, 200)]
    assert any("rendered characters" in note for note in FewShot().fit(grey, "ab").notes)
    assert not any("rendered characters" in note for note in FewShot("glyphs").fit(grey, "ab").notes)
    assert any("rendered characters" in note for note in FewShot("glyphs").fit(support).notes)


def test_what_is_wrong_is_said(support: Path, tmp_path: Path) -> None:
    image = stripes("rows", 0)
    with pytest.raises(UserError, match="fit first"):
        FewShot().predict([image])
    with pytest.raises(UserError, match="fit first"):
        FewShot().evaluate([image], ["a"])
    for labels in (None, ["a"], ["a", "b", "c"]):
        with pytest.raises(UserError, match="one label for each"):
            FewShot().fit([image, image], labels)
    with pytest.raises(UserError, match="two classes or more"):
        FewShot().fit([image, image], ["a", "a"])
    for wrong in (image.astype(float), image[..., :2], np.zeros((0, 4), np.uint8), "gone.png"):
        with pytest.raises(UserError, match="1 of 3 images cannot be used"):
            FewShot().fit([image, wrong, image], ["a", "a", "b"])
    few = FewShot().fit(support)
    with pytest.raises(UserError, match=r"1 of 2 images cannot be used: gone\.png"):
        few.predict([image, "gone.png"])
    with pytest.raises(UserError, match="of a class that was fitted"):
        few.evaluate([image], ["zebra"])
    assert few.predict([]) == []


def test_the_package_has_it() -> None:
    assert fewshot_mcl.FewShot is FewShot
    assert "FewShot" in fewshot_mcl.__all__
