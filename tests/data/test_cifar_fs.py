from __future__ import annotations

import pickle
import shutil
import zipfile

import numpy as np
import pytest
from builders import write_python2
from few_shot_builders import (
    COUNT,
    FINE,
    SPLITS,
    cifar_100_binary,
    cifar_100_python,
    cifar_100_tar,
    cifar_files,
    cifar_images,
    cifar_pickles,
    png,
    unpacked,
    zip_of,
)

from fewshot_mcl.data.cifar_fs import fine_names
from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.packed import PackedSource, write_packed
from fewshot_mcl.data.sources import ForbiddenSplitError, ImageOptions, open_source, training_only
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.errors import UserError

OWN = ImageOptions()
LISTS = {"cifar-fs": "cifar_fs", "fc100": "fc100"}
FORMS = {
    "python": (lambda root, data: cifar_100_python(root / "cifar-100-python"), "python"),
    "binary": (lambda root, data: cifar_100_binary(root), "binary"),
    "tar": (lambda root, data: cifar_100_tar(root), "python"),
    "pickles": (cifar_pickles, "pickles"),
    "pickles of Python 3": (lambda root, data: cifar_pickles(root, data, protocol=4), "pickles"),
    "zip": (lambda root, data: zip_of(root / "cifarfs.zip", cifar_files("cifar100/data")), "zip"),
    "unpacked": (lambda root, data: unpacked(root, cifar_files("cifarfs/cifar100/data")), "CLASS"),
    "flat": (lambda root, data: unpacked(root, cifar_files("")), "CLASS"),
    "by split": (lambda root, data: unpacked(root, cifar_files("processed", data)), "SPLIT/CLASS"),
}


def holds(source, data: str, split: str) -> None:
    """Asserts that a split has its published classes, each with its images (in whatever order)."""
    store = source.load(split, OWN)
    assert (store.source, store.split, store.shape) == (data, split, (3, 32, 32))
    assert store.class_names == source.class_names(split) == split_list(LISTS[data], split)
    assert store.class_sizes.tolist() == [COUNT] * store.num_classes
    for label, name in enumerate(store.class_names):
        found = store.images[store.labels == label].permute(0, 2, 3, 1).numpy()
        assert {image.tobytes() for image in found} == {image.tobytes() for image in cifar_images(name)}


@pytest.mark.parametrize("data", LISTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tmp_path, form, data):
    build, words = FORMS[form]
    build(tmp_path, data)
    shutil.rmtree(tmp_path / "aside", ignore_errors=True)
    source = open_source(data, tmp_path)
    assert (source.name, source.splits) == (data, SPLITS)
    assert words in source.format
    for split in SPLITS:
        holds(source, data, split)
    assert any("have not 600 images" in note for note in source.notes)


def test_an_archive_file_is_a_root_too(tmp_path):
    cifar_100_tar(tmp_path)
    holds(open_source("cifar-fs", tmp_path / "cifar-100-python.tar.gz"), "cifar-fs", "val")
    path = zip_of(tmp_path / "any name.zip", cifar_files(""))
    holds(open_source("fc100", path), "fc100", "val")


def test_the_lists_are_the_classes_of_cifar_100():
    assert fine_names() == tuple(FINE)
    assert len(set(FINE)) == 100
    sizes = {data: [len(split_list(name, split)) for split in SPLITS] for data, name in LISTS.items()}
    assert sizes == {"cifar-fs": [64, 16, 20], "fc100": [60, 20, 20]}
    assert sorted(name for split in SPLITS for name in split_list("fc100", split)) == FINE
    assert FINE[70] == "rose"  # as CIFAR-100 numbers it, and a program that prints a training label of FC100


def test_images_come_from_both_files_of_cifar_100(tmp_path):
    cifar_100_python(tmp_path)
    store = open_source("cifar-fs", tmp_path).load("val", OWN)
    number = FINE.index(store.class_names[0])
    assert store.ids[:COUNT] == (f"train[{number}]", f"train[{100 + number}]", f"test[{number}]")


def test_files_that_name_other_classes_are_refused(tmp_path):
    cifar_100_python(tmp_path, ["Apple" if name == "apple" else name for name in FINE])
    source = open_source("cifar-fs", tmp_path)
    with pytest.raises(UserError, match="this is not CIFAR-FS: train lacks 1 of 64 classes: apple"):
        source.load("train", OWN)
    with pytest.raises(UserError, match="train lacks 1 of 64 classes: apple"):
        next(source.chunks("train", OWN))
    assert source.load("val", OWN).num_classes == 16


def test_pickles_of_the_other_set_are_refused(tmp_path):
    cifar_pickles(tmp_path, "fc100")
    for split in SPLITS:
        (tmp_path / f"FC100_{split}.pickle").rename(tmp_path / f"CIFAR_FS_{split}.pickle")
    with pytest.raises(UserError, match="this is not CIFAR-FS: train has 60 classes, not 64"):
        open_source("cifar-fs", tmp_path).load("train", OWN)


def test_pickles_with_numbers_of_their_own(tmp_path):
    cifar_pickles(tmp_path, "cifar-fs", first=0)
    source = open_source("cifar-fs", tmp_path)
    store = source.load("val", OWN)
    assert store.class_names[:2] == ("val-000", "val-001")
    assert store.num_classes == 16
    assert any("unverified" in note for note in source.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"data": np.zeros((2, 32, 32, 3), np.float32), "labels": [0, 1]}, "no uint8 array"),
        ({"data": np.zeros((2, 28, 28, 3), np.uint8), "labels": [0, 1]}, "no uint8 array"),
        ({"data": np.zeros((2, 32, 32, 3), np.uint8), "labels": [0]}, "2 images, but 1 whole numbers"),
        ({"data": np.zeros((2, 32, 32, 3), np.uint8), "labels": ["a", "b"]}, "2 images, but 0 whole numbers"),
        ([1, 2], "no uint8 array"),
    ],
)
def test_a_damaged_pickle_is_named(tmp_path, content, words):
    cifar_pickles(tmp_path, "cifar-fs")
    write_python2(tmp_path / "CIFAR_FS_val.pickle", content)
    with pytest.raises(UserError, match=rf"CIFAR_FS_val\.pickle is damaged: .*{words}"):
        open_source("cifar-fs", tmp_path).load("val", OWN)


class Hostile:
    def __reduce__(self):
        return print, ("run",)


def test_a_hostile_pickle_runs_nothing(tmp_path, capsys):
    (tmp_path / "FC100_train.pickle").write_bytes(pickle.dumps({"data": Hostile(), "labels": []}))
    with pytest.raises(UserError, match=r"FC100_train\.pickle is refused"):
        open_source("fc100", tmp_path).load("train", OWN)
    assert capsys.readouterr().out == ""


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no CIFAR-FS at .*CIFAR_FS_SPLIT\.pickle.*cifar-100-python"):
        open_source("cifar-fs", tmp_path)
    cifar_100_python(tmp_path)
    (tmp_path / "test").unlink()
    with pytest.raises(UserError, match="lacks test"):
        open_source("cifar-fs", tmp_path)
    cifar_pickles(tmp_path, "fc100")
    (tmp_path / "FC100_test.pickle").unlink()
    with pytest.raises(UserError, match=r"fc100 has no test split.*Put FC100_test\.pickle beside"):
        open_source("fc100", tmp_path).load("test", OWN)
    with pytest.raises(UserError, match="needs the folder its files lie in"):
        open_source("fc100")


def test_a_damaged_zip(tmp_path):
    path = tmp_path / "cifarfs.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"cifarfs\.zip cannot be read as a zip archive"):
        open_source("cifar-fs", tmp_path)
    zip_of(path, {"a/notes.txt": b"", "birds/0.png": png(cifar_images("apple")[0])})
    with pytest.raises(UserError, match="holds no class folders of CIFAR-100"):
        open_source("cifar-fs", tmp_path)
    zip_of(path, cifar_files("one") | {"two/apple/0.png": b""})
    with pytest.raises(UserError, match="holds two folders apple"):
        open_source("cifar-fs", tmp_path)
    zip_of(path, cifar_files("one") | {"one/apple/0.png": b"no image"}, zipfile.ZIP_STORED)
    with pytest.raises(UserError, match=r"one/apple/0\.png \(not an image.*Fetch cifarfs\.zip again"):
        open_source("cifar-fs", tmp_path).load("train", OWN)
    content = bytearray(zip_of(path, cifar_files("one"), zipfile.ZIP_STORED).read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        open_source("cifar-fs", tmp_path).load("train", OWN)


@pytest.mark.parametrize("form", ["python", "pickles", "zip"])
def test_the_test_split_stays_shut_in_training(tmp_path, form):
    FORMS[form][0](tmp_path, "cifar-fs")
    source = open_source("cifar-fs", tmp_path)
    with training_only():
        source.load("train", OWN)
        with pytest.raises(ForbiddenSplitError):
            source.load("test", OWN)
        with pytest.raises(ForbiddenSplitError):
            next(source.chunks("test", OWN))


def test_a_packed_store_keeps_name_and_pixels(tmp_path):
    source = open_source("cifar-fs", cifar_pickles(tmp_path / "files", "cifar-fs"))
    write_packed(source, OWN, tmp_path / "packed")
    packed = PackedSource(tmp_path / "packed")
    for split in SPLITS:
        holds(packed, "cifar-fs", split)
        assert packed.load(split, OWN).fingerprint == source.load(split, OWN).fingerprint


def test_classification_takes_the_training_classes(tmp_path):
    source = open_labelled("fc100", cifar_100_python(tmp_path), OWN)
    assert source.class_names("test") == split_list("fc100", "train")
