from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from builders import (
    SPLITS,
    class_folders,
    mini_a,
    mini_arrays,
    mini_b,
    mini_c,
    mini_d,
    mini_e,
    mini_g,
    mini_h,
    pixels,
    wnids,
    write_python2,
)

from fewshot_mcl.data import sources
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.errors import UserError

EIGHT = ImageOptions(image_size=8)
FORMATS = {
    "A": mini_a,
    "B": mini_b,
    "C": mini_c,
    "D flat": lambda root: mini_d(root, by_split=False),
    "D by split": lambda root: mini_d(root, by_split=True),
    "E": mini_e,
    "E validation": lambda root: mini_e(root, "validation"),
    "G": mini_g,
    "G text": lambda root: mini_g(root, protocol=0),
    "H": mini_h,
    "H flat": lambda root: mini_h(root, folder=""),
}
FORMAT_WORDS = {
    "A": "label and filename",
    "B": "class_name",
    "C": "label and",
    "D": "CLASS/",
    "E": "cache",
    "G": "category",
    "H": "HDF5",
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Each format once; the tests only read."""
    base = tmp_path_factory.mktemp("mini")
    return {name: build(base / name.replace(" ", "-")) for name, build in FORMATS.items()}


def opened(root):
    return open_source("mini-imagenet", root=root)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_pictures(roots, name):
    source = opened(roots[name])
    assert source.name == "mini-imagenet"
    assert FORMAT_WORDS[name[0]] in source.format
    assert source.splits == SPLITS
    for split in SPLITS:
        assert source.class_names(split) == wnids(split)
        store = source.load(split, EIGHT)
        assert (store.source, store.split, store.shape) == ("mini-imagenet", split, (3, 8, 8))
        assert store.class_sizes.tolist() == [2] * len(wnids(split))
        for i in (0, 5, len(wnids(split)) - 1):
            seeds = [10_000 * SPLITS.index(split) + 100 * i + k for k in (0, 1)]
            if name[0] in "EGH":  # there, rows are numbered through
                seeds = [10_000 * SPLITS.index(split) + 100 * i + i + k * len(wnids(split)) for k in (0, 1)]
            if name == "C":  # ranks 1 and 3
                seeds[1] += 1
            expected = np.stack([pixels(seed).transpose(2, 0, 1) for seed in seeds])
            assert np.array_equal(store.images[store.labels == i].numpy(), expected)
        assert any(f"{split}: {len(wnids(split))} of" in note and "600" in note for note in source.notes)


@pytest.mark.parametrize("name", FORMATS)
def test_training_never_opens_the_test_split(roots, name):
    with sources.training_only():
        source = opened(roots[name])
        assert len(source.load("val", EIGHT)) == 32
        with pytest.raises(sources.ForbiddenSplitError):
            source.load("test", EIGHT)
        if name[0] in "EGH":
            with pytest.raises(sources.ForbiddenSplitError):
                source.class_names("test")


def test_ranks_are_noted_and_numbers_not_names_order_them(roots):
    source = opened(roots["C"])
    assert any("found by rank" in note for note in source.notes)
    name = wnids("train")[0]
    assert source.load("train", EIGHT).ids[:2] == (f"images/{name}/{name}_9.JPEG", f"images/{name}/{name}_100.JPEG")
    assert not any("found by rank" in note for note in opened(roots["A"]).notes)


@pytest.mark.parametrize("name", ["E", "G"])
def test_pickles_are_found_at_a_path(roots, name):
    source = open_source(str(roots[name]))
    assert source.name == name
    assert source.class_names("val") == wnids("val")
    store = source.load("val", EIGHT)
    assert store.resize == "as stored"
    file = {"E": "mini-imagenet-cache-val.pkl", "G": "miniImageNet_category_split_val.pickle"}[name]
    assert store.ids[:2] == (f"{file}[0]", f"{file}[16]")
    assert source.load("val", ImageOptions(image_size=5, color="grey")).shape == (1, 5, 5)


def test_stored_84_by_84_pixels_stay_untouched(tmp_path):
    (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(
        pickle.dumps({"image_data": pixels(0, 84)[None], "class_dict": {"a": [0]}})
    )
    store = open_source(str(tmp_path)).load("val", ImageOptions(image_size=84))
    assert np.array_equal(store.images[0].permute(1, 2, 0), pixels(0, 84))


def test_the_held_out_training_images_are_no_split(roots, tmp_path):
    assert any("sorted class list" in note for note in _loaded(opened(roots["G"])).notes)
    for part in ("train_phase_val", "train_phase_test"):
        file = f"miniImageNet_category_split_{part}.pickle"
        shutil.copy(roots["G"] / file, tmp_path / file)
    with pytest.raises(UserError, match="holds no miniImageNet"):
        opened(tmp_path)


def _loaded(source):
    source.load("val", EIGHT)
    return source


def test_other_class_numbers_are_kept_as_names_and_refused_as_mini_imagenet(tmp_path):
    images, labels = mini_arrays("val")
    write_python2(
        tmp_path / "miniImageNet_category_split_val.pickle",
        {"data": images, "labels": [x % 3 for x in labels.tolist()]},
    )
    source = open_source(str(tmp_path))
    assert source.class_names("val") == ("val-000", "val-001", "val-002")
    assert any("64 to 79" in note for note in source.notes)
    with pytest.raises(
        UserError, match=r"not miniImageNet: val lacks 16 of 16 classes.*3 classes not its own: val-000"
    ):
        opened(tmp_path).load("val", EIGHT)


def test_a_wrong_class_set_is_refused_by_name(tmp_path):
    mini_d(tmp_path, by_split=True, count=1)
    (tmp_path / "val" / wnids("val")[0]).rename(tmp_path / "val" / "n99999999")
    source = opened(tmp_path)
    with pytest.raises(UserError, match=f"val lacks 1 of 16 classes: {wnids('val')[0]}; .*: n99999999"):
        source.load("val", EIGHT)
    assert len(source.load("train", EIGHT)) == 64


def test_a_flat_tree_may_hold_other_classes(tmp_path):
    mini_d(tmp_path, by_split=False, count=1)
    class_folders(tmp_path, ["n00000001"], 1)
    assert opened(tmp_path).class_names("test") == wnids("test")


def test_a_list_that_names_a_missing_file(tmp_path):
    mini_a(tmp_path, count=1)
    name = f"{wnids('val')[3]}00000001.jpg"
    (tmp_path / "images" / name).unlink()
    with pytest.raises(UserError, match=rf"val\.csv, line 5: no file '{name}'"):
        opened(tmp_path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="give it with --root"):
        open_source("mini-imagenet")
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path / "gone")
    with pytest.raises(UserError, match=r"mini-imagenet-cache-SPLIT\.pkl.*n01532829"):
        opened(tmp_path)
    mini_e(tmp_path)
    (tmp_path / "mini-imagenet-cache-test.pkl").unlink()
    with pytest.raises(UserError, match=r"no test split .*mini-imagenet-cache-test\.pkl beside"):
        opened(tmp_path).load("test", EIGHT)


IMAGES = np.stack([pixels(i) for i in range(4)])


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"image_data": IMAGES},
        {"image_data": IMAGES, "class_dict": {}},
        {"image_data": IMAGES.astype(np.float32), "class_dict": {"a": [0]}},
        {"image_data": IMAGES[..., 0], "class_dict": {"a": [0]}},
        {"image_data": IMAGES, "class_dict": {"a": [4]}},
        {"image_data": IMAGES, "class_dict": {"a": [-1]}},
        {"image_data": IMAGES, "class_dict": {"a": [0], "b": [0]}},
        {"image_data": IMAGES, "class_dict": {"a": ["x"]}},
        {"image_data": IMAGES, "class_dict": {"a": [[1], [2, 3]]}},
        {"image_data": IMAGES, "class_dict": {"a": [1 << 70]}},
        {"image_data": IMAGES, "class_dict": {"a": [1], "b": []}},
        {"image_data": IMAGES, "class_dict": {"a": 7}},
        {"image_data": IMAGES[:, :5], "class_dict": {"a": [0]}},
    ],
)
def test_cache_pickles_with_the_wrong_content(tmp_path, content):
    (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"cache-val\.pkl is damaged"):
        open_source(str(tmp_path)).load("val", EIGHT)


@pytest.mark.parametrize("content", [{"data": IMAGES}, {"data": IMAGES, "labels": [1]}, {"data": 3, "labels": [1]}])
def test_category_pickles_with_the_wrong_content(tmp_path, content):
    write_python2(tmp_path / "miniImageNet_category_split_val.pickle", content)
    with pytest.raises(UserError, match=r"split_val\.pickle is damaged"):
        open_source(str(tmp_path)).load("val", EIGHT)


def test_published_lists():
    sizes = [len(split_list("mini_imagenet", split)) for split in SPLITS]
    assert sizes == [64, 16, 20]
    assert len({name for split in SPLITS for name in split_list("mini_imagenet", split)}) == 100
    assert split_list("tiered_imagenet", "val") == tuple(sorted(split_list("tiered_imagenet", "val")))
    with pytest.raises(UserError, match="Did you mean 'mini_imagenet_val'"):
        split_list("mini_imagenet", "valid")
