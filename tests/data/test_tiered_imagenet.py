from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
from builders import lists, write_python2
from few_shot_builders import (
    COUNT,
    SPLITS,
    png,
    tiered_arrays,
    tiered_folders,
    tiered_labels,
    tiered_npz,
    tiered_png,
    tiered_words,
)

from fewshot_mcl.data import check, tiered_imagenet
from fewshot_mcl.data.packed import PackedSource, write_packed
from fewshot_mcl.data.sources import ForbiddenSplitError, ImageOptions, open_source, training_only
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.data.tiered_pickles import first_word, wnids_by_word
from fewshot_mcl.errors import UserError

EIGHT = ImageOptions(image_size=8)
TINY_MEMORY = ImageOptions(image_size=8, memory_share=1e-12)


def with_lists(root):
    """ImageNet's own file names, in class folders, with lists over them."""
    tiered_folders(root / "images", by_split=False)
    rows = {split: ["class_name,image_name"] for split in SPLITS}
    for split in SPLITS:
        names, (_, labels) = split_list("tiered_imagenet", split), tiered_arrays(split)
        rows[split] += [f"{names[label]},{row:05d}.png" for row, label in enumerate(labels)]
    return lists(root, **{split: " ".join(each) for split, each in rows.items()})


FORMS = {
    "npz": (tiered_npz, "pickles"),
    "npz compressed": (lambda root: tiered_npz(root, compressed=True), "pickles"),
    "png": (lambda root: tiered_png(root / "tiered-imagenet"), "pickles"),
    "png of Python 3": (lambda root: tiered_png(root, protocol=4), "pickles"),
    "folders by split": (lambda root: tiered_folders(root, by_split=True), "SPLIT/CLASS"),
    "folders": (lambda root: tiered_folders(root, by_split=False, others=2), "CLASS"),
    "ImageNet": (lambda root: tiered_folders(root / "train", by_split=False, others=2), "CLASS"),
    "lists": (with_lists, "class_name"),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Each form once; the tests only read."""
    base = tmp_path_factory.mktemp("tiered")
    for name, (build, _) in FORMS.items():
        build(base / name)
    return {name: base / name for name in FORMS}


def holds(source, split, options=EIGHT, images=None):
    """Asserts that a split is the tiny set's, sorted by class; red, green and blue where they belong."""
    store = source.load(split, options)
    images, labels = tiered_arrays(split) if images is None else images
    order = np.argsort(labels, kind="stable")
    assert (store.source, store.split, tuple(store.shape)) == ("tiered-imagenet", split, (3, 8, 8))
    assert store.class_names == source.class_names(split) == split_list("tiered_imagenet", split)
    assert store.labels.tolist() == sorted(labels.tolist())
    found = store.images[: len(store)].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, images[order])
    return store


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_images(roots, name):
    source = open_source("tiered-imagenet", roots[name])
    assert (source.name, source.splits) == ("tiered-imagenet", SPLITS)
    assert FORMS[name][1] in source.format
    for split in SPLITS:
        holds(source, split)
    assert any("not the 124,261 of tieredImageNet" in note for note in source.notes)


@pytest.mark.parametrize("name", ["npz", "png", "png of Python 3"])
def test_what_does_not_fit_into_memory_stays_in_its_files(roots, name):
    source = open_source("tiered-imagenet", roots[name])
    store = holds(source, "val", TINY_MEMORY)
    assert type(store.images).__name__ == "RowImages"
    assert any("data convert" in note for note in source.notes)
    whole = source.load("val", EIGHT)
    rows = np.random.default_rng(0).permutation(len(store))[:9]
    picked = store.labels.new_tensor(rows)
    assert store.images[picked].equal(whole.images[picked])
    again = open_source("tiered-imagenet", roots[name]).load("val", TINY_MEMORY)
    assert again.fingerprint == store.fingerprint != whole.fingerprint
    with pytest.raises(TypeError, match="1-d tensor of integers"):
        store.images[picked > 0]


def test_folders_that_do_not_fit_are_to_be_packed(roots):
    source = open_source("tiered-imagenet", roots["folders"])
    with pytest.raises(
        UserError, match=r"291 images at 8x8 need .* data convert tiered-imagenet --root .* --out PACKED"
    ):
        source.load("val", TINY_MEMORY)


@pytest.mark.parametrize("name", ["npz", "png", "folders"])
def test_packing_keeps_name_and_pixels(roots, name, tmp_path):
    source = open_source("tiered-imagenet", roots[name])
    write_packed(source, EIGHT, tmp_path / "packed")
    packed = PackedSource(tmp_path / "packed")
    for split in SPLITS:
        store = holds(packed, split)
        assert store.fingerprint == source.load(split, EIGHT).fingerprint


def test_the_words_are_those_of_the_published_classes():
    classes = sorted(name for split in SPLITS for name in split_list("tiered_imagenet", split))
    assert sorted(tiered_words()) == classes
    assert len(classes) == 608
    assert sorted(wnids_by_word().values()) == classes
    assert wnids_by_word()["yorkshire terrier"] == "n02094433"
    assert first_word("Tench , Tinca tinca") == "tench"


def test_labels_that_are_only_numbers_are_counted(tmp_path):
    source = open_source("tiered-imagenet", tiered_npz(tmp_path, worded=False))
    store = source.load("val", EIGHT)
    assert (store.class_names[0], store.num_classes, store.class_sizes.unique().tolist()) == ("val-000", 97, [COUNT])
    assert any("only how many" in note for note in source.notes)
    for name in ("images.npz", "labels.pkl"):
        (tmp_path / f"val_{name}").replace(tmp_path / f"test_{name}")
    with pytest.raises(UserError, match="this is not tieredImageNet: test has 97 classes, not 160"):
        open_source("tiered-imagenet", tmp_path).load("test", EIGHT)


def test_a_renamed_split_is_found_out(tmp_path):
    tiered_npz(tmp_path)
    for name in ("images.npz", "labels.pkl"):
        (tmp_path / f"val_{name}").replace(tmp_path / f"test_{name}")
    source = open_source("tiered-imagenet", tmp_path)
    with pytest.raises(UserError, match=r"test lacks 160 of 160 classes.*; test has 97 classes not its own"):
        source.load("test", EIGHT)
    with pytest.raises(UserError, match=r"has no val split .*Put val_images\.npz"):
        source.load("val", EIGHT)


def test_labels_of_something_else(tmp_path):
    tiered_npz(tmp_path)
    path = tmp_path / "val_labels.pkl"
    content = {"label_specific": np.zeros(3, np.int32), "label_specific_str": ["tench"]}
    for change, words in (
        ({}, "holds 291 images, but val_labels.pkl has 3 labels"),
        ({"label_specific": np.zeros(3)}, "no whole numbers"),
        ({"label_specific": np.array([-1, 0, 1])}, "no whole numbers"),
        ({"label_specific": np.array([0, 1, 2])}, "does not name its 3 classes"),
        ({"label_specific_str": 7}, "does not name its 1 classes"),
        (
            {"label_specific": np.array([0, 1, 1]), "label_specific_str": ["tench", "Tench, Tinca"]},
            "names classes twice",
        ),
    ):
        path.write_bytes(pickle.dumps(content | change))
        with pytest.raises(UserError, match=words):
            open_source("tiered-imagenet", tmp_path).load("val", EIGHT)
    path.unlink()
    with pytest.raises(UserError, match=r"val_labels\.pkl is missing: put it beside the images"):
        open_source("tiered-imagenet", tmp_path)


def save(path, **arrays):
    np.savez(path, **arrays)


def cut(path):
    save(path, images=np.zeros((291, 8, 8, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-4000])


def lying(path):
    """A header that says there are more images than there are."""
    save(path, images=np.zeros((291, 8, 8, 3), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"(291, 8, 8, 3)", b"(999, 8, 8, 3)"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b"PK nothing"), "not a zip"),
        (cut, r"val_images\.npz is damaged"),
        (lying, "cut short, or followed"),
        (lambda path: save(path, pictures=np.zeros(3)), "no array 'images', but pictures"),
        (lambda path: save(path, images=np.zeros((291, 8, 8, 3))), "are float64 of shape"),
        (lambda path: save(path, images=np.zeros((291, 8, 9, 3), np.uint8)), r"of shape \(291, 8, 9, 3\)"),
        (lambda path: save(path, images=np.array([{}], object)), "are object"),
        (lambda path: path.write_bytes(b""), "is damaged"),
    ],
)
def test_a_damaged_npz_is_named(tmp_path, spoil, words):
    tiered_npz(tmp_path)
    spoil(tmp_path / "val_images.npz")
    with pytest.raises(UserError, match=words):
        open_source("tiered-imagenet", tmp_path).load("val", EIGHT)


def test_a_compressed_npz_with_a_lying_size(tmp_path):
    tiered_npz(tmp_path, compressed=True)
    path = tmp_path / "val_images.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", np.lib.format.magic(2, 0) + b"\xff" * 400)
    with pytest.raises(UserError, match=r"of no version that np\.savez writes"):
        open_source("tiered-imagenet", tmp_path).load("val", EIGHT)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": []}, "no list of images"),
        ([], "no list of images"),
        ([np.zeros(3)], "image 0 is no array of bytes"),
        ([png(np.zeros((8, 8, 3), np.uint8)), 5], "image 1 is no array of bytes"),
        ([b"no image"] * 291, r"291 of 291 images cannot be used: image 0 of .*val_images_png\.pkl \(not an image"),
    ],
)
def test_damaged_png_pickles_are_named(tmp_path, content, words):
    tiered_labels(tmp_path, "val")
    (tmp_path / "val_images_png.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=words):
        open_source("tiered-imagenet", tmp_path).load("val", EIGHT)


class Hostile:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("name", ["val_images_png.pkl", "val_labels.pkl"])
def test_a_hostile_pickle_runs_nothing(tmp_path, name, capsys):
    tiered_png(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps([Hostile()]))
    with pytest.raises(UserError, match=f"{name} is refused"):
        open_source("tiered-imagenet", tmp_path).load("val", EIGHT)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["npz", "png", "folders"])
def test_the_test_split_stays_shut_in_training(roots, name):
    source = open_source("tiered-imagenet", roots[name])
    with training_only():
        source.load("val", EIGHT)
        for ask in (source.load, lambda split, options: next(source.chunks(split, options))):
            with pytest.raises(ForbiddenSplitError):
                ask("test", EIGHT)
        if name != "folders":  # whose names are known without opening anything
            with pytest.raises(ForbiddenSplitError):
                source.class_names("test")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"holds no tieredImageNet: expected SPLIT_images\.npz or SPLIT_images_png\.pkl"
    ):
        open_source("tiered-imagenet", tmp_path)
    (tmp_path / "tiered-imagenet.tar").touch()
    with pytest.raises(UserError, match="is not unpacked: tar -xf it there"):
        open_source("tiered-imagenet", tmp_path)


def test_check_says_what_is_wrong(roots, monkeypatch):
    report = check.check("tiered-imagenet", roots["npz"], EIGHT)
    assert [(each.split, each.classes, each.images) for each in report.splits] == [
        ("train", 351, 1053), ("val", 97, 291), ("test", 160, 480),
    ]  # fmt: skip
    assert len(report.problems["image counts"]) == 3
    monkeypatch.setattr(tiered_imagenet, "IMAGES", {"train": 1053, "val": 291, "test": 480})
    report = check.check("tiered-imagenet", roots["npz"], EIGHT)
    assert report.ok, report.lines()


def test_python_2_text_as_images(tmp_path):
    """A list of plain strings, short and long, as Python 2 pickles encoded images that are no arrays."""
    images, labels = tiered_arrays("val", side=8)
    large = [
        np.repeat(np.repeat(image, 8, 0), 8, 1) if row % 2 else np.tile(image, (8, 8, 1))
        for row, image in enumerate(images)
    ]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    large[0] = noise
    write_python2(tmp_path / "val_images_png.pkl", [png(image) for image in large])
    tiered_labels(tmp_path, "val")
    store = open_source("tiered-imagenet", tmp_path).load("val", ImageOptions(image_size=64))
    order = np.argsort(labels, kind="stable")
    assert np.array_equal(store.images.permute(0, 2, 3, 1).numpy(), np.stack(large)[order])
