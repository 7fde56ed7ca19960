from __future__ import annotations

import json
import os

import numpy as np
import pytest
from builders import class_folders, split_folders

from fewshot_mcl.data import sources
from fewshot_mcl.data.check import convert
from fewshot_mcl.data.packed import write_packed
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import UserError

EIGHT = ImageOptions(image_size=8)


@pytest.fixture
def packed(tmp_path):
    """(the source, its packed form)."""
    split_folders(tmp_path / "data", train="a b", val="c d", test="e f")
    convert(str(tmp_path / "data"), None, tmp_path / "packed", EIGHT)
    return open_source(str(tmp_path / "data")), tmp_path / "packed"


@pytest.mark.parametrize("memory_share", [0.5, 0.0])
def test_what_is_written_is_read(packed, memory_share):
    original, folder = packed
    source = open_source(str(folder))
    assert (source.name, source.splits) == ("data", ("train", "val", "test"))
    for split in source.splits:
        store = source.load(split, ImageOptions(memory_share=memory_share))
        written = original.load(split, EIGHT)
        assert store.fingerprint == written.fingerprint
        assert (store.class_names, store.split, store.resize) == (written.class_names, split, written.resize)
        assert source.class_names(split) == written.class_names
    assert source.notes == ()
    assert sorted(os.listdir(folder)) == ["store.json", "test", "train", "val"]
    assert sorted(os.listdir(folder.parent)) == ["data", "packed"]


def test_memory_mapped_images_are_mapped_and_cannot_change_the_file(packed):
    store = open_source(str(packed[1])).load("train", ImageOptions(memory_share=0.0))
    fingerprint = store.fingerprint
    store.images[0] = 0
    assert open_source(str(packed[1])).load("train", EIGHT).fingerprint == fingerprint


def _change(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_changed_or_damaged_arrays_are_refused(packed):
    folder = packed[1]
    _change(folder / "train" / "images.npy")
    (folder / "val" / "images.npy").write_bytes((folder / "val" / "images.npy").read_bytes()[:-9])
    np.save(folder / "test" / "labels.npy", np.array([{}]), allow_pickle=True)
    source = open_source(str(folder))
    for split, message in [("train", "has changed"), ("val", "damaged"), ("test", "damaged")]:
        with pytest.raises(UserError, match=message):
            source.load(split, EIGHT)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"schema": 2, "later": 1}', "version 2, newer"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"schema": 1, "source": "x", "notes": [], "splits": {"train": 3}}', "damaged"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_headers_that_cannot_be_read(packed, header, message):
    (packed[1] / "store.json").write_text(header)
    with pytest.raises(UserError, match=message):
        open_source(str(packed[1]))


def test_another_size_is_resized_and_noted(packed):
    source = open_source(str(packed[1]))
    store = source.load("train", ImageOptions(image_size=4, color="grey"))
    assert store.shape == (1, 4, 4)
    assert "to 8x8" in store.resize
    assert "then" in store.resize
    assert source.notes == ("train: stored 8x8 images of 3 channels resized on loading",)


def test_nothing_is_overwritten_and_nothing_half_written(packed, tmp_path):
    source, folder = packed
    before = json.loads((folder / "store.json").read_text())
    with pytest.raises(UserError, match="exists already"):
        convert(str(tmp_path / "data"), None, folder, EIGHT)
    assert json.loads((folder / "store.json").read_text()) == before

    (tmp_path / "data" / "val" / "c" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 6 images"):
        write_packed(source, EIGHT, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["data", "packed"]


def test_what_was_noted_on_the_way_is_kept(tmp_path):
    class_folders(tmp_path / "data", "abcdef", count=2)
    (tmp_path / "data" / "a" / "0.png").write_bytes(b"")
    convert(str(tmp_path / "data"), None, tmp_path / "packed", ImageOptions(image_size=8, on_bad_image="skip"))
    notes = open_source(str(tmp_path / "packed")).notes
    assert "classes split 2/2/2 by seed 0 (no split was given)" in notes
    assert any("1 of 4 images skipped" in note for note in notes)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    class_folders(tmp_path / "data", "abcdef", count=1)
    with pytest.raises(UserError, match="cannot be written"):
        convert(str(tmp_path / "data"), None, tmp_path / "file" / "packed", EIGHT)


def test_a_split_that_was_not_packed(tmp_path):
    split_folders(tmp_path / "data", train="a b")
    convert(str(tmp_path / "data"), None, tmp_path / "one", EIGHT)
    with pytest.raises(UserError, match="Convert the original data again, with its val split"):
        open_source(str(tmp_path / "one")).load("val", EIGHT)


def test_training_never_opens_the_test_split(packed):
    _change(packed[1] / "test" / "images.npy")
    with sources.training_only():
        source = open_source(str(packed[1]))
        source.load("train", EIGHT)
        with pytest.raises(sources.ForbiddenSplitError):
            source.load("test", EIGHT)
