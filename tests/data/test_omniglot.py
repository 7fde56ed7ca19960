from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest
from few_shot_builders import (
    COUNT,
    SPLITS,
    characters,
    drawing,
    omniglot_files,
    omniglot_zips,
    unpacked,
    zip_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewshot_mcl.data import check
from fewshot_mcl.data.packed import PackedSource, write_packed
from fewshot_mcl.data.sources import ForbiddenSplitError, ImageOptions, open_source, training_only
from fewshot_mcl.data.splits import split_list
from fewshot_mcl.errors import UserError

SEVEN = ImageOptions(image_size=7)  # as the drawings are here: no pixel changes
PARTS = ("images_background", "images_evaluation")


def folders(root):
    for part in PARTS:
        unpacked(root, omniglot_files(part, 1))
    return root


def one_tree(root):
    for part in PARTS:
        files = {name.replace(part, "data"): content for name, content in omniglot_files(part, 1).items()}
        unpacked(root, files)
    return root


FORMS = {
    "zips": (lambda root: omniglot_zips(root, 1), "zips"),
    "torchvision": (lambda root: folders(root / "omniglot-py"), "folders"),
    "one tree": (one_tree, "one tree"),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Each form once, with one drawing of each character; the tests only read."""
    base = tmp_path_factory.mktemp("omniglot")
    for name, (build, _) in FORMS.items():
        build(base / name)
    return {name: base / name for name in FORMS}


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    return omniglot_zips(tmp_path_factory.mktemp("zips"), COUNT)


@pytest.mark.parametrize("split_name", ["vinyals", "background"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_drawings(roots, form, split_name):
    source = open_source(f"omniglot-{split_name}", roots[form])
    assert (source.name, source.splits) == (f"omniglot-{split_name}", SPLITS)
    assert FORMS[form][1] in source.format
    for split in SPLITS:
        names = split_list(f"omniglot_{split_name}", split)
        store = source.load(split, SEVEN)
        assert (store.source, store.split, store.shape) == (f"omniglot-{split_name}", split, (1, 7, 7))
        assert store.class_names == source.class_names(split)
        assert store.num_classes == 4 * len(names) == len(store)
        expected = np.stack([np.rot90(drawing(name, 0), turn) for name in names for turn in range(4)])
        assert np.array_equal(store.images[:, 0].numpy(), expected)


def test_the_published_numbers():
    sizes = {
        name: [len(split_list(f"omniglot_{name}", split)) for split in SPLITS] for name in ("vinyals", "background")
    }
    assert sizes == {"vinyals": [1028, 172, 423], "background": [883, 81, 659]}
    every = sorted(characters(PARTS[0]) + characters(PARTS[1]))
    assert len(characters(PARTS[0])) == 964
    for name in sizes:
        assert sorted(each for split in SPLITS for each in split_list(f"omniglot_{name}", split)) == every


def test_drawings_are_grey_28x28_in_four_turns(zips):
    source = open_source("omniglot", zips)
    store = source.load("val", ImageOptions())
    assert (store.source, store.shape) == ("omniglot-vinyals", (1, 28, 28))
    assert store.class_sizes.unique().tolist() == [COUNT]
    assert store.class_names[:4] == tuple(f"Armenian/character01/rot{turn:03d}" for turn in (0, 90, 180, 270))
    upright = np.asarray(
        Image.fromarray(drawing("Armenian/character01", 1)).resize((28, 28), Image.Resampling.BILINEAR)
    )
    assert np.array_equal(store.images[1, 0].numpy(), upright)
    turned = Image.fromarray(upright).rotate(90)  # against the clock
    assert np.array_equal(store.images[COUNT + 1, 0].numpy(), np.asarray(turned))
    assert store.ids[COUNT + 1].startswith("Armenian/character01/")
    assert store.ids[COUNT + 1].endswith("_02.png rot090")
    assert any("four classes" in note for note in source.notes)
    assert any("have not 20 images" in note for note in source.notes)


@pytest.fixture(scope="module")
def val(zips):
    source = open_source("omniglot", zips)
    return source.load("val", SEVEN), source.load("val", ImageOptions(image_size=7, decode="always"))


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 4 * 172 * COUNT - 1), min_size=1, max_size=12))
def test_any_rows_read_lazily_are_those_in_memory(val, rows):
    whole, lazy = val
    picked = whole.labels.new_tensor(rows)
    assert lazy.images[picked].equal(whole.images[picked])


def test_chunks_are_the_images_of_load(zips):
    source = open_source("omniglot", zips)
    store, chunks = source.load("val", SEVEN), list(source.chunks("val", SEVEN))
    assert len(chunks) == 3
    assert np.array_equal(np.concatenate([chunk.images for chunk in chunks]), store.images.numpy())
    assert np.array_equal(np.concatenate([chunk.labels for chunk in chunks]), store.labels.numpy())
    assert tuple(name for chunk in chunks for name in chunk.ids) == store.ids
    rest = list(source.chunks("val", SEVEN, chunks[0].stop))
    assert np.array_equal(rest[0].images, chunks[1].images)


def test_a_part_that_is_missing_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"holds no Omniglot: expected images_background\.zip and images_evaluation\.zip"
    ):
        open_source("omniglot", tmp_path)
    zip_of(tmp_path / "images_background.zip", omniglot_files(PARTS[0], 1))
    with pytest.raises(UserError, match=r"lacks images_evaluation: put that folder, or images_evaluation\.zip, beside"):
        open_source("omniglot", tmp_path)


def test_a_missing_character_is_named(tmp_path):
    omniglot_zips(tmp_path, 1)
    files = {name: each for name, each in omniglot_files(PARTS[1], 1).items() if "Keble/character07" not in name}
    zip_of(tmp_path / "images_evaluation.zip", files)
    with pytest.raises(UserError, match="this is not Omniglot: test lacks 4 of 1692 classes: Keble/character07/rot000"):
        open_source("omniglot", tmp_path).load("test", SEVEN)


def test_parts_that_were_exchanged_do_no_harm(roots, tmp_path):
    for part, other in zip(PARTS, reversed(PARTS)):
        shutil.copy(roots["zips"] / f"{part}.zip", tmp_path / f"{other}.zip")
    store = open_source("omniglot", tmp_path).load("val", SEVEN)
    assert store.fingerprint == open_source("omniglot", roots["zips"]).load("val", SEVEN).fingerprint


def test_damaged_files_are_named(tmp_path):
    omniglot_zips(tmp_path, 1)
    path = tmp_path / "images_evaluation.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"images_evaluation\.zip cannot be read as a zip archive"):
        open_source("omniglot", tmp_path)
    name = next(iter(omniglot_files(PARTS[1], 1)))
    zip_of(path, omniglot_files(PARTS[1], 1) | {name: b"no image"}, zipfile.ZIP_STORED)
    with pytest.raises(UserError, match=r"1 of \d+ images cannot be used: .*0000_01\.png \(not an image"):
        open_source("omniglot-background", tmp_path).load("test", SEVEN)


def test_rubbish_beside_the_drawings_is_left_alone(tmp_path):
    rubbish = {
        "__MACOSX/images_background/x/._a.png": b"",
        "images_background/readme.txt": b"",
        "images_background/.png": b"",
    }
    omniglot_zips(tmp_path, 1)
    zip_of(tmp_path / "images_background.zip", omniglot_files(PARTS[0], 1) | rubbish)
    assert open_source("omniglot", tmp_path).load("val", SEVEN).num_classes == 688


def test_a_packed_store_keeps_the_name_of_the_split(roots, tmp_path):
    source = open_source("omniglot-background", roots["zips"])
    write_packed(source, SEVEN, tmp_path / "packed")
    packed = PackedSource(tmp_path / "packed")
    assert packed.name == "omniglot-background"
    for split in SPLITS:
        assert packed.load(split, SEVEN).fingerprint == source.load(split, SEVEN).fingerprint


def test_the_test_split_stays_shut_in_training(roots):
    source = open_source("omniglot", roots["zips"])
    with training_only():
        source.load("val", SEVEN)
        with pytest.raises(ForbiddenSplitError):
            source.load("test", SEVEN)


def test_check_counts_drawings(tmp_path):
    omniglot_zips(tmp_path, 2)
    report = check.check("omniglot", tmp_path, SEVEN)
    assert [(each.split, each.classes, each.smallest) for each in report.splits] == [
        ("train", 4112, 2), ("val", 688, 2), ("test", 1692, 2),
    ]  # fmt: skip
    assert "not 20" in report.problems["image counts"][0]
