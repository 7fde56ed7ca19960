from __future__ import annotations

import shutil

import pytest
from builders import class_folders, lists, mini_d, mini_e, picture, split_folders, wnids

from fewshot_mcl.data.check import check
from fewshot_mcl.data.sources import ImageOptions


def checked(path):
    return check(str(path), None, ImageOptions())


def test_a_sound_folder(tmp_path):
    split_folders(tmp_path, train="a b c", val="d e")
    picture(tmp_path / "train" / "a" / "wide.png", 77, 20)
    report = checked(tmp_path)
    assert report.ok
    train, val = report.splits
    assert (train.split, train.classes, train.images, train.smallest, train.largest) == ("train", 3, 10, 3, 4)
    assert train.sizes == "8x8 to 20x20"
    assert (val.images, val.sizes) == (6, "8x8")
    assert any("fewer than 20 images" in note for note in report.notes)
    text = report.lines()
    assert "train: 3 classes, 10 images (3 to 4 a class), 8x8 to 20x20" in text[1]
    assert text[-1].strip() == "no problem found"


def test_the_embedded_set_is_sound():
    report = checked("glyphs")
    assert report.ok
    assert [(each.classes, each.images) for each in report.splits] == [(227, 4540), (97, 1940), (128, 2560)]


def test_every_problem_is_listed_not_only_the_first(tmp_path):
    split_folders(tmp_path, train="a b", val="c d", test="e f b")
    for k in range(3):
        (tmp_path / "train" / "a" / f"{k}.png").write_bytes(b"")
    (tmp_path / "test" / "f" / "0.png").write_text("no image")
    picture(tmp_path / "val" / "tiny" / "0.png", 999)
    shutil.copy(tmp_path / "val" / "c" / "0.png", tmp_path / "val" / "c" / "again.png")
    shutil.copy(tmp_path / "val" / "c" / "1.png", tmp_path / "test" / "e" / "leak.png")
    report = checked(tmp_path)
    assert not report.ok
    assert report.problems["files and classes"] == ["class 'b' is in both train and test: splits share no class"]
    assert len(report.problems["bad images"]) == 4
    assert "train/a/0.png (empty file)" in report.problems["bad images"]
    assert report.problems["tiny classes"] == [
        "train: class 'a' has 0 usable images; an episode takes two or more",
        "val: class 'tiny' has 1 usable image; an episode takes two or more",
    ]
    assert "val: 1 image(s) occur twice: val/c/0.png = val/c/again.png" in report.notes
    assert report.problems["same image in two splits"] == ["val val/c/1.png = test test/e/leak.png"]


def test_wrong_lists_are_listed_in_full(tmp_path):
    class_folders(tmp_path, "abcd")
    report = checked(lists(tmp_path, train="a x y a", val="c z"))
    assert len(report.problems["files and classes"]) == 4
    assert [each.split for each in report.splits] == ["train", "val"]


def test_long_lists_of_problems_are_cut_when_shown(tmp_path):
    class_folders(tmp_path / "train", ["a", "b"], count=30)
    for path in (tmp_path / "train" / "a").iterdir():
        path.write_bytes(b"")
    report = checked(tmp_path)
    assert len(report.problems["bad images"]) == 30
    lines = [line.strip() for line in report.lines()]
    assert "bad images: 30" in lines
    assert "... and 10 more" in lines
    assert sum("(empty file)" in line for line in lines) == 20


@pytest.mark.parametrize("build", [lambda root: mini_d(root, by_split=True, count=2), mini_e])
def test_what_is_wrong_with_a_mini_imagenet_is_named(tmp_path, build):
    build(tmp_path / "mini")
    report = check("mini-imagenet", tmp_path / "mini", ImageOptions())
    assert list(report.problems) == ["image counts"]
    assert len(report.problems["image counts"]) == 100
    assert f"train: class '{wnids('train')[0]}' has 2 usable images, not 600" in report.problems["image counts"]


def test_missing_classes_of_a_mini_imagenet(tmp_path):
    mini_d(tmp_path, by_split=True, count=2)
    shutil.rmtree(tmp_path / "val" / wnids("val")[0])
    report = check("mini-imagenet", tmp_path, ImageOptions())
    assert report.problems["classes"] == [f"val lacks 1 of 16 classes: {wnids('val')[0]}"]
    assert len(report.splits) == 3


def test_a_damaged_file_does_not_end_the_check(tmp_path):
    mini_e(tmp_path)
    (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(b"no pickle")
    report = checked(tmp_path)
    assert [each.split for each in report.splits] == ["train", "test"]
    assert "cache-val.pkl is refused" in report.problems["files and classes"][0]


def test_nothing_there(tmp_path):
    report = checked(tmp_path / "gone\x1b")
    assert not report.ok
    assert "does not exist" in report.problems["cannot be opened"][0]
    assert all(line.isprintable() for line in report.lines())
