from __future__ import annotations

import shutil

import numpy as np
import pytest
from builders import lists, pixels
from few_shot_builders import COUNT, SPLITS, birds, cub, cub_csv, cub_json, cub_tree
from PIL import Image

from fewshot_mcl.data import check
from fewshot_mcl.data.packed import PackedSource, write_packed
from fewshot_mcl.data.sources import ForbiddenSplitError, ImageOptions, open_source, training_only
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.errors import UserError

TWELVE = ImageOptions(image_size=12)
SIZES = {"closer-look": [100, 50, 50], "meta-dataset": [140, 30, 30], "feat": [100, 50, 50]}


def by_split(root):
    """SPLIT/CLASS/image of the split "meta-dataset"."""
    cub_tree(root / "aside")
    for split in SPLITS:
        (root / split).mkdir()
        for name in split_list("cub_meta_dataset", split):
            shutil.move(root / "aside" / "images" / name, root / split / name)
    shutil.rmtree(root / "aside")
    return root


FORMS = {  # and the split that each is read in
    "published": (lambda root: cub(root / "CUB_200_2011"), "closer-look"),
    "published, meta-dataset": (cub, "meta-dataset"),
    "csv": (cub_csv, "feat"),
    "easyfsl": (lambda root: cub_json(root, "easyfsl", "meta-dataset"), "meta-dataset"),
    "CloserLook": (lambda root: cub_json(root, "closer", "closer-look"), "closer-look"),
    "flat": (cub_tree, "feat"),
    "by split": (by_split, "meta-dataset"),
}


def holds(source, split, split_name):
    store = source.load(split, TWELVE)
    assert (store.source, store.split) == (f"cub-{split_name}", split)
    names = split_list(f"cub_{split_name.replace('-', '_')}", split)
    assert store.class_names == source.class_names(split) == names
    assert store.class_sizes.tolist() == [COUNT] * len(names)
    for label in (0, len(names) - 1):
        found = store.images[store.labels == label].permute(0, 2, 3, 1).numpy()
        number = birds().index(names[label])
        assert np.array_equal(found, np.stack([pixels(10 * number + k, 12) for k in range(COUNT)]))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tmp_path, form):
    build, split_name = FORMS[form]
    build(tmp_path)
    source = open_source(f"cub-{split_name}", tmp_path)
    assert (source.name, source.splits) == (f"cub-{split_name}", SPLITS)
    for split in SPLITS:
        holds(source, split, split_name)


def test_the_usual_split_is_closer_look_and_says_so(tmp_path):
    source = open_source("cub", cub(tmp_path))
    holds(source, "test", "closer-look")
    for i, name in enumerate(birds()):  # by class number, counted from 0
        split = ("train", "val", "train", "test")[i % 4]
        assert name in source.class_names(split)


def test_the_three_splits_are_three():
    tests = []
    for split_name, sizes in SIZES.items():
        names = {split: split_list(f"cub_{split_name.replace('-', '_')}", split) for split in SPLITS}
        assert [len(names[split]) for split in SPLITS] == sizes
        assert sorted(name for each in names.values() for name in each) == birds()
        tests.append(set(names["test"]))
    assert sorted(len(a & b) for a, b in ((tests[0], tests[1]), (tests[0], tests[2]), (tests[1], tests[2]))) == [
        7,
        12,
        12,
    ]


def test_only_feat_crops_to_bounding_boxes(tmp_path):
    source = open_source("cub-feat", cub(tmp_path, side=22))
    assert any("cropped to their bounding boxes" in note for note in source.notes)
    store = source.load("val", ImageOptions(image_size=20, resize="squash"))
    assert store.resize.startswith("bounding box, then ")
    whole = pixels(10 * birds().index(store.class_names[0]), 22)
    cropped = Image.fromarray(whole[0:21, 1:21]).resize((20, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(store.images[0].permute(1, 2, 0).numpy(), np.asarray(cropped))
    assert store.ids[0].startswith(f"images/{store.class_names[0]}/")
    plain = open_source("cub-closer-look", tmp_path).load("val", ImageOptions(image_size=20))
    assert "bounding" not in plain.resize


def test_boxes_that_do_not_fit(tmp_path):
    cub(tmp_path)
    path = tmp_path / "bounding_boxes.txt"
    text = path.read_text()
    for box, words in (
        ("1 1.0 0.0 99.0 11.0", r"its bounding box 1,0 to 100,11 lies outside 12x12 pixels"),
        ("1 -4 0.0 9.0 11.0", "lies outside"),
        ("1 3 3 0 0", "lies outside"),
    ):
        path.write_text(text.replace("1 1.0 0.0 10.0 11.0", box, 1))
        with pytest.raises(UserError, match=words):
            open_source("cub-feat", tmp_path).load("val", TWELVE)  # which has image 1
    for box in ("1 a 0 9 9", "1 nan 0 9 9"):
        path.write_text(text.replace("1 1.0 0.0 10.0 11.0", box, 1))
        with pytest.raises(UserError, match="the box of image 1 is not four numbers"):
            open_source("cub-feat", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"lacks bounding_boxes\.txt"):
        open_source("cub-feat", tmp_path)
    open_source("cub", tmp_path)


def test_lists_split_in_another_way_are_named(tmp_path):
    source = open_source("cub", cub_csv(tmp_path))
    with pytest.raises(UserError, match=r"not CUB in the split 'closer-look': .*use --data cub-feat"):
        source.load("train", TWELVE)


def test_lists_of_no_known_split(tmp_path):
    cub_csv(tmp_path)
    lists(tmp_path, val=(tmp_path / "val.csv").read_text().strip().replace("\n", " ").rsplit(" ", COUNT)[0])
    source = open_source("cub-feat", tmp_path)
    with pytest.raises(UserError, match=r"val lacks 1 of 50 classes: .* Mend the files"):
        source.load("val", TWELVE)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("images.txt", "1 001.", "1 002.", "is not of class 001.Black_footed_Albatross, as its label says"),
        ("image_class_labels.txt", "1 1\n", "1 201\n", "image 1 has no class"),
        ("images.txt", "_0000_1.jpg", "_0009_1.jpg", r"no file 'images/001.*_0009_1.jpg' is there"),
    ],
)
def test_lists_that_contradict_each_other(tmp_path, file, old, new, words):
    cub(tmp_path)
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        open_source("cub", tmp_path)
    assert not check.check("cub", tmp_path, TWELVE).ok


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1 a b c\n", "line 1: a number and 1 more"),
        ("1 a\n1 b\n", "gives one number twice"),
        (b"\xff\xfe1", "as a list"),
    ],
)
def test_a_list_of_another_form(tmp_path, content, words):
    cub(tmp_path)
    (tmp_path / "images.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words):
        open_source("cub", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "no readable JSON"), (b"[1]", "lists no images"), (b'{"image_names": [1]}', "lists no images"),
     (b'{"image_names": ["/a/001.X/y.jpg"]}', r"val\.json: no file '001\.X/y\.jpg' is there"),
     (b'{"image_names": ["../../../etc/passwd"]}', "is there"),
     (b'{"class_roots": ["images/300.None"]}', "class '300.None' has no folder")],
)  # fmt: skip
def test_json_lists_of_another_form(tmp_path, content, words):
    cub_json(tmp_path, "closer", "closer-look")
    (tmp_path / "val.json").write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_source("cub", tmp_path)


def test_two_json_lists_for_one_split(tmp_path):
    cub_json(tmp_path, "closer", "closer-look")
    shutil.copy(tmp_path / "base.json", tmp_path / "train.json")
    with pytest.raises(UserError, match=r"holds both base\.json and train\.json"):
        open_source("cub", tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no CUB: expected CUB_200_2011 with images\.txt"):
        open_source("cub", tmp_path)
    (tmp_path / "CUB_200_2011.tgz").touch()
    with pytest.raises(UserError, match="is not unpacked: tar -xzf"):
        open_source("cub", tmp_path)
    cub(tmp_path)
    (tmp_path / "classes.txt").unlink()
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"lacks classes\.txt and images/"):
        open_source("cub", tmp_path)
    with pytest.raises(UserError, match="Did you mean 'cub-feat'"):
        open_source("cub-fet", tmp_path)


@pytest.mark.parametrize("split_name", SIZES)
def test_a_packed_store_keeps_the_name_of_the_split(tmp_path, split_name):
    source = open_source(f"cub-{split_name}", cub(tmp_path / "files"))
    write_packed(source, TWELVE, tmp_path / "packed")
    packed = PackedSource(tmp_path / "packed")
    assert packed.name == f"cub-{split_name}"
    for split in SPLITS:
        store, again = source.load(split, TWELVE), packed.load(split, TWELVE)
        assert (again.source, again.resize, again.fingerprint) == (store.source, store.resize, store.fingerprint)


@pytest.mark.parametrize("data", ["cub", "cub-feat"])
def test_the_test_split_stays_shut_in_training(tmp_path, data):
    source = open_source(data, cub(tmp_path))
    with training_only():
        source.load("val", TWELVE)
        with pytest.raises(ForbiddenSplitError):
            source.load("test", TWELVE)
