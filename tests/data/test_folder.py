from __future__ import annotations

import os

import numpy as np
import pytest
from builders import class_folders, lists, picture, pixels, split_folders
from hypothesis import given
from hypothesis import strategies as st

from fewshot_mcl.data import sources
from fewshot_mcl.data.folder import split_classes
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import UserError

EIGHT = ImageOptions(image_size=8)


def opened(path, options=EIGHT):
    return open_source(str(path), options=options)


def test_split_folders(tmp_path):
    split_folders(tmp_path / "birds", train="b a c", val="d e", test="f g")
    source = opened(tmp_path / "birds")
    assert source.name == "birds"
    assert source.splits == ("train", "val", "test")
    assert source.class_names("train") == ("a", "b", "c")
    store = source.load("train", EIGHT)
    assert store.class_names == ("a", "b", "c")
    assert store.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert store.ids[0] == "train/a/0.png"
    assert (store.split, store.source) == ("train", "birds")
    assert np.array_equal(store.images[3].permute(1, 2, 0), pixels(0))  # b was written first
    assert source.notes == ()


def test_images_are_84_by_84_rgb_unless_asked_otherwise(tmp_path):
    split_folders(tmp_path, train="a b")
    assert opened(tmp_path).load("train", ImageOptions()).shape == (3, 84, 84)
    assert opened(tmp_path).load("train", ImageOptions(image_size=20, color="grey")).shape == (1, 20, 20)
    with pytest.raises(UserError, match="size of 0"):
        opened(tmp_path).load("train", ImageOptions(image_size=0))


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_val(tmp_path, name):
    split_folders(tmp_path, train="a b", **{name: "c d"})
    assert opened(tmp_path).class_names("val") == ("c", "d")


def test_two_vals_are_an_error(tmp_path):
    split_folders(tmp_path, train="a b", val="c", valid="d")
    with pytest.raises(UserError, match="both val and valid"):
        opened(tmp_path)


def test_a_split_that_is_not_there_says_how_to_add_it(tmp_path):
    source = opened(split_folders(tmp_path, train="a b", test="c d"))
    assert source.splits == ("train", "test")
    with pytest.raises(UserError, match=r"no val split \(found: train, test\).*val/CLASS/.*val\.csv"):
        source.load("val", EIGHT)
    with pytest.raises(UserError, match="Did you mean 'val'"):
        source.load("vall", EIGHT)


def test_a_folder_for_testing_only(tmp_path):
    assert opened(split_folders(tmp_path, test="c d")).splits == ("test",)


def test_hidden_files_other_files_and_deeper_folders_are_ignored(tmp_path):
    split_folders(tmp_path, train="a b")
    for name in (".hidden.png", "._a.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "train" / "a" / name).touch()
    picture(tmp_path / "train" / "a" / "deeper" / "x.png")
    (tmp_path / ".git").mkdir()
    (tmp_path / "train" / "nothing").mkdir()
    source = opened(tmp_path)
    assert len(source.load("train", EIGHT)) == 6
    assert any("train/nothing" in note for note in source.notes)


def test_suffixes_in_any_case(tmp_path):
    for name in ("1.JPG", "2.JPEG", "3.Png", "4.tiff", "5.WebP", "6.bmp", "7.gif"):
        picture(tmp_path / "train" / "a" / name)
    picture(tmp_path / "train" / "b" / "1.png")
    assert opened(tmp_path).load("train", EIGHT).class_sizes.tolist() == [7, 1]


def test_links_are_followed_once_and_loops_end(tmp_path):
    class_folders(tmp_path / "elsewhere", ["x"])
    split_folders(tmp_path / "data", train="a b")
    train = tmp_path / "data" / "train"
    (train / "linked").symlink_to(tmp_path / "elsewhere" / "x")
    (train / "loop").symlink_to(train)
    (train / "self").symlink_to(train / "self")
    (train / "a" / "up").symlink_to(tmp_path / "data")
    assert opened(tmp_path / "data").class_names("train") == ("a", "b", "linked")


def test_a_pipe_among_the_images_is_not_opened(tmp_path):
    split_folders(tmp_path, train="a b")
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    assert len(opened(tmp_path).load("train", EIGHT)) == 6


def test_a_broken_link_is_a_bad_image(tmp_path):
    split_folders(tmp_path, train="a b")
    (tmp_path / "train" / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"1 of 7 images.*gone\.png"):
        opened(tmp_path).load("train", EIGHT)


def test_lists_of_classes(tmp_path):
    class_folders(tmp_path, "abcdefg")
    source = opened(lists(tmp_path, train="b a", val="c d", test="e f"))
    assert source.class_names("train") == ("a", "b")
    assert source.class_names("test") == ("e", "f")
    assert source.notes == ("1 folders are in no list and stay unused: g",)
    assert source.load("val", EIGHT).ids[0] == "c/0.png"


def test_lists_of_classes_with_header_and_columns(tmp_path):
    class_folders(tmp_path, ["Ant bear", "b", "c", "d"])
    (tmp_path / "train.csv").write_text('\ufeffclass,group\n"Ant bear",x\n\nb,y\n', encoding="utf-8")
    (tmp_path / "test.csv").write_text("class,group\r\nc,x\r\n d ,y\r\n")
    source = opened(tmp_path)
    assert source.class_names("train") == ("Ant bear", "b")
    assert source.class_names("test") == ("c", "d")
    assert any("'class' taken as a header" in note for note in source.notes)


def test_a_misspelt_first_class_is_not_taken_for_a_header(tmp_path):
    class_folders(tmp_path, "abcdef")
    lists(tmp_path, train="class a b", val="class c", test="ee f")
    with pytest.raises(UserError, match=r"line 1: '(ee|class)' is no class folder, nor the header"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["images/{file}", "images/{label}/{file}", "{label}/{file}", "{file}"])
def test_lists_of_images_in_every_place(tmp_path, place):
    rows = []
    for i, label in enumerate("ab"):
        for k in range(3):
            picture(tmp_path / place.format(label=label, file=f"{label}{k}.png"), 10 * i + k)
            rows.append(f"{label}{k}.png,{label}")
    lists(tmp_path, train=" ".join(["filename,label", *rows[:2], *rows[3:]]))
    store = opened(tmp_path).load("train", EIGHT)
    assert store.class_sizes.tolist() == [2, 3]  # only what is listed
    assert np.array_equal(store.images[0].permute(1, 2, 0), pixels(0))
    assert store.ids[0] == place.format(label="a", file="a0.png")


def test_lists_by_class_and_image_name(tmp_path):
    class_folders(tmp_path, "ab")
    lists(tmp_path, train="class_name,image_name b,2.png a,0.png a,1.png")
    assert opened(tmp_path).load("train", EIGHT).ids == ("a/0.png", "a/1.png", "b/2.png")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname.png", "gone.png"])
def test_a_list_names_files_of_its_own_folder_only(tmp_path, name):
    picture(tmp_path / "secret.png")
    class_folders(tmp_path / "data", "ab")
    lists(tmp_path / "data", train=f"filename,label 0.png,a {name},a")
    with pytest.raises(UserError, match=r"train\.csv, line 3: no file '.*\.png' is there"):
        opened(tmp_path / "data")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": "a b zebra"}, r"train\.csv, line 3: class 'zebra' has no folder with images"),
        ({"train": "a b a"}, r"line 3: class 'a' is listed twice"),
        ({"train": "a b", "test": "b c"}, "class 'b' is in both train and test"),
        ({"train": "filename,label 0.png,a 0.png,a"}, r"line 3: file '0\.png' is listed twice"),
        ({"train": "filename,label 0.png"}, "line 2: a class and a file name are needed"),
        ({"train": ""}, r"train\.csv is empty"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, rows, message):
    class_folders(tmp_path, "abcd")
    with pytest.raises(UserError, match=message):
        opened(lists(tmp_path, **rows))


def test_a_lone_unknown_first_line_is_a_header_and_noted(tmp_path):
    class_folders(tmp_path, "abcd")
    source = opened(lists(tmp_path, train="a b", val="zebra c"))
    assert source.class_names("val") == ("c",)
    assert "val.csv, line 1: 'zebra' taken as a header" in source.notes


def test_a_list_that_is_no_text(tmp_path):
    class_folders(tmp_path, "abcd")
    (tmp_path / "train.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UserError, match="UTF-8"):
        opened(tmp_path)


def test_class_folders_alone_are_split_by_seed(tmp_path):
    class_folders(tmp_path, [f"c{i:02d}" for i in range(20)], count=1)
    source = opened(tmp_path)
    assert [len(source.class_names(split)) for split in source.splits] == [12, 4, 4]
    assert "classes split 12/4/4 by seed 0 (no split was given)" in source.notes
    assert opened(tmp_path).class_names("test") == source.class_names("test")
    other = opened(tmp_path, ImageOptions(split_seed=1))
    assert other.class_names("test") != source.class_names("test")


def test_a_class_may_be_called_train(tmp_path):
    class_folders(tmp_path, ["bus", "train", "car", "tram"])
    source = opened(lists(tmp_path, train="bus train", val="car tram"))
    assert source.class_names("train") == ("bus", "train")


def test_class_folders_in_images(tmp_path):
    class_folders(tmp_path / "images", "abcdefgh", count=1)
    assert len(opened(tmp_path).class_names("train")) == 4


@given(st.sets(st.text(min_size=1), min_size=6, max_size=60), st.integers(0, 99))
def test_the_split_is_a_partition(names, seed):
    parts = split_classes(sorted(names), seed)
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert min(len(part) for part in parts.values()) >= 2
    assert len(parts["train"]) >= len(parts["test"]) == len(parts["val"])


def test_too_few_classes_to_split(tmp_path):
    class_folders(tmp_path, "abcde", count=1)
    with pytest.raises(UserError, match=r"5 class folders .* too few .* train/, val/ and test/ yourself"):
        opened(tmp_path)


def test_paths_that_hold_nothing(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path / "gone")
    with pytest.raises(UserError, match="Did you mean 'glyphs'"):
        open_source("glyps")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        opened(tmp_path / "empty")
    picture(tmp_path / "flat" / "a.png")
    with pytest.raises(UserError, match="holds images but no class folders"):
        opened(tmp_path / "flat")
    class_folders(tmp_path / "outer" / "inner", "ab")
    with pytest.raises(UserError, match=r"outer/inner has: give that path"):
        opened(tmp_path / "outer")


def test_split_folders_that_do_not_fit(tmp_path):
    split_folders(tmp_path / "shared", train="a b", test="b c")
    with pytest.raises(UserError, match="class 'b' is in both train and test"):
        opened(tmp_path / "shared")
    split_folders(tmp_path / "bare", train="a b")
    picture(tmp_path / "bare" / "val" / "0.png")
    with pytest.raises(UserError, match="val split has no class folder with images"):
        opened(tmp_path / "bare")


def test_bad_images_are_refused_or_skipped_with_a_note(tmp_path):
    split_folders(tmp_path, train="a b")
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"")
    source = opened(tmp_path)
    with pytest.raises(UserError, match=r"1 of 6 images.*0\.png \(empty file\)"):
        source.load("train", EIGHT)
    skipping = ImageOptions(image_size=8, on_bad_image="skip")
    store = source.load("train", skipping)
    assert store.class_sizes.tolist() == [2, 3]
    assert store.ids[0] == "train/a/1.png"
    assert len([note for note in source.notes if "1 of 6 images skipped" in note and "0.png" in note]) == 1
    for k in (1, 2):
        (tmp_path / "train" / "a" / f"{k}.png").write_bytes(b"")
    with pytest.raises(UserError, match="class 'a' of train has no usable image"):
        source.load("train", skipping)


def test_names_cannot_command_the_terminal(tmp_path):
    evil = "a\n\x1b[2Jb"
    class_folders(tmp_path / "data" / "train", [evil, "c"])
    (tmp_path / "data" / "train" / evil / "x\x1b[31m.png").touch()
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "data").load("train", EIGHT)
    assert str(caught.value).isprintable()
    assert "x\\x1b[31m.png" in str(caught.value)


def test_training_never_opens_the_test_split(tmp_path):
    split_folders(tmp_path, train="a b", test="c d")
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"ruined")
    source = opened(tmp_path)
    with sources.training_only():
        assert len(opened(tmp_path).load("train", EIGHT)) == 6
        with pytest.raises(sources.ForbiddenSplitError):
            source.load("test", EIGHT)
    with pytest.raises(UserError, match="6 of 6 images"):
        source.load("test", EIGHT)
