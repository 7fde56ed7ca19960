from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
from builders import class_folders, split_folders

from fewshot_mcl.data import folder as folder_module
from fewshot_mcl.data import images, packing, sources, store
from fewshot_mcl.data.check import convert
from fewshot_mcl.data.packed import PackedSource, packed_bytes, write_packed
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import Interrupted, UserError

EIGHT = ImageOptions(image_size=8)
SKIP = replace(EIGHT, on_bad_image="skip")


@pytest.fixture(autouse=True)
def chunks_of_four(monkeypatch):
    for module in (store, sources, folder_module):
        monkeypatch.setattr(module, "CHUNK", 4)


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
        ('{"schema": 3, "later": 1}', "version 3, newer"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"schema": 1, "source": "x", "notes": [], "splits": {"train": 3}}', "damaged"),
        (
            '{"schema": 2, "source": "x", "notes": [], "splits": {"train": {"class_names": [], "chunks": [1]}}}',
            "damaged",
        ),
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

    (tmp_path / "data" / "train" / "a" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 4 images .*--on-bad-image skip\.$"):
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


def _tree(folder):
    """Every file of a store, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _stop_at(monkeypatch, decoded, error):
    """The given number of images can be decoded; the next one raises."""
    decode, done = images.decode, []

    def stopping(*arguments):
        done.append(arguments)
        if len(done) > decoded:
            raise error
        return decode(*arguments)

    monkeypatch.setattr(images, "decode", stopping)
    return done


def test_chunks_are_the_store_in_pieces(packed):
    for source in (packed[0], open_source(str(packed[1]))):
        whole, pieces = source.load("train", EIGHT), list(source.chunks("train", EIGHT))
        assert [len(piece.images) for piece in pieces] == [4, 2]
        assert np.array_equal(np.concatenate([piece.images for piece in pieces]), whole.images)
        assert np.array_equal(np.concatenate([piece.labels for piece in pieces]), whole.labels)
        assert sum((piece.ids for piece in pieces), ()) == whole.ids
        (rest,) = source.chunks("train", EIGHT, start=pieces[0].stop)
        assert np.array_equal(rest.images, pieces[1].images)


def test_a_chunk_is_full_whatever_is_skipped(packed, tmp_path):
    for name in ("0", "2"):
        (tmp_path / "data" / "train" / "a" / f"{name}.png").write_bytes(b"")
    (only,) = packed[0].chunks("train", SKIP)
    assert (len(only.images), only.stop, len(only.skipped)) == (4, 6, 2)
    assert np.array_equal(only.images, packed[0].load("train", SKIP).images)
    with pytest.raises(UserError, match=r"2 of 4 images.*a/0\.png \(empty file\)"):
        next(packed[0].chunks("train", EIGHT))


@pytest.mark.parametrize("decoded", [5, 10, 17])
def test_an_interrupted_packing_goes_on_where_it_stopped(packed, tmp_path, monkeypatch, decoded):
    source, folder = packed
    told = []
    with monkeypatch.context() as patch:
        _stop_at(patch, decoded, KeyboardInterrupt())
        with pytest.raises(Interrupted, match=r"stopped.*kept in .*\.new\.partial"):
            write_packed(source, EIGHT, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    again = _stop_at(monkeypatch, 18, AssertionError())
    write_packed(source, EIGHT, tmp_path / "new", lambda *counts: told.append(counts))
    assert len(again) == {5: 14, 10: 8, 17: 2}[decoded]
    assert told[-1] == (18, 18)
    assert _tree(tmp_path / "new") == _tree(folder)
    assert sorted(os.listdir(tmp_path)) == ["data", "new", "packed"]


def test_what_did_not_reach_the_disk_is_decoded_again(packed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _stop_at(patch, 11, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            write_packed(packed[0], EIGHT, tmp_path / "new")
    _change(tmp_path / ".new.partial" / "train" / "images.npy")
    write_packed(packed[0], EIGHT, tmp_path / "new")
    assert _tree(tmp_path / "new") == _tree(packed[1])


@pytest.mark.parametrize("after", [2, 3, 5, 8])
def test_a_full_disk_loses_nothing(packed, tmp_path, monkeypatch, after):
    calls = []

    def fsync(number):
        calls.append(number)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.os, "fsync", fsync)
        usage = namedtuple("usage", "total used free")
        patch.setattr(packing.shutil, "disk_usage", lambda path: usage(0, 0, 4000))
        with pytest.raises(UserError, match=r"disk is full: .*new lacks .* more\. .*kept in .*\.new\.partial"):
            write_packed(packed[0], EIGHT, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write_packed(packed[0], EIGHT, tmp_path / "new")
    assert _tree(tmp_path / "new") == _tree(packed[1])


def test_a_disk_that_is_too_small_is_refused_before_decoding(packed, tmp_path, monkeypatch):
    needed = 18 * 3 * 8 * 8
    _stop_at(monkeypatch, 0, AssertionError())
    assert packed_bytes(packed[0], EIGHT) == needed
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    with pytest.raises(UserError, match=r"needs 3,456 bytes .* only 3,455 bytes are free.*another disk.*--image-size"):
        write_packed(packed[0], EIGHT, tmp_path / "deep" / "new")
    assert sorted(os.listdir(tmp_path)) == ["data", "packed"]


@pytest.mark.parametrize("change", ["options", "files", "source"])
def test_the_packing_of_something_else_is_not_continued(packed, tmp_path, monkeypatch, change):
    source, options = packed[0], EIGHT
    with monkeypatch.context() as patch:
        _stop_at(patch, 5, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            write_packed(source, options, tmp_path / "new")
    before = _tree(tmp_path / ".new.partial")
    if change == "options":
        options = replace(options, color="grey")
    elif change == "files":
        (tmp_path / "data" / "test" / "e" / "0.png").write_bytes(b"of another size")
    else:
        source = open_source("glyphs")
    with pytest.raises(UserError, match=r"\.new\.partial holds an unfinished packing of something else \(of 'data'"):
        write_packed(source, options, tmp_path / "new")
    assert _tree(tmp_path / ".new.partial") == before


def test_a_folder_of_that_name_that_is_no_packing_is_left_alone(packed, tmp_path):
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "mine").touch()
    with pytest.raises(UserError, match="cannot be continued: remove that folder"):
        write_packed(packed[0], EIGHT, tmp_path / "new")
    assert os.listdir(tmp_path / ".new.partial") == ["mine"]


def test_bad_images_found_on_the_way_can_be_skipped_from_there(packed, tmp_path):
    (tmp_path / "data" / "val" / "d" / "2.png").write_bytes(b"")  # alone in the last chunk
    with pytest.raises(UserError, match=r"1 of 2 images.*--on-bad-image skip\. What is packed so far is kept in"):
        write_packed(packed[0], EIGHT, tmp_path / "new")
    write_packed(packed[0], SKIP, tmp_path / "new")
    source = PackedSource(tmp_path / "new")
    assert source.load("val", EIGHT).fingerprint == packed[0].load("val", SKIP).fingerprint
    assert any("val: 1 of 6 images skipped" in note for note in source.notes)
    assert source.verify() == []


def test_a_packing_that_skipped_is_not_continued_without(packed, tmp_path, monkeypatch):
    (tmp_path / "data" / "train" / "a" / "0.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        _stop_at(patch, 9, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            write_packed(packed[0], SKIP, tmp_path / "new")
    with pytest.raises(UserError, match="begun with --on-bad-image skip"):
        write_packed(packed[0], EIGHT, tmp_path / "new")


@pytest.mark.parametrize("memory_share", [0.5, 0.0])
def test_a_flipped_byte_is_found_with_its_rows(packed, memory_share):
    source = open_source(str(packed[1]))
    assert source.verify() == []
    _change(packed[1] / "train" / "images.npy")
    with pytest.raises(UserError, match=r"train/images\.npy has changed since it was written, in rows 4 to 5"):
        source.load("train", ImageOptions(memory_share=memory_share))
    np.save(packed[1] / "val" / "labels.npy", [0, 0, 1, 1, 1, 1])
    with pytest.raises(UserError, match=r"val/labels\.npy .* has changed since it was written"):
        source.load("val", ImageOptions(memory_share=memory_share))
    assert len(source.verify()) == 2


def test_a_mapped_split_is_verified_in_part_on_loading_and_in_full_on_request(tmp_path):
    split_folders(tmp_path / "data", train=" ".join(f"c{i:02d}" for i in range(32)))
    convert(str(tmp_path / "data"), None, tmp_path / "packed", EIGHT)  # 96 images in 24 chunks
    file = tmp_path / "packed" / "train" / "images.npy"
    source, whole = open_source(str(tmp_path / "packed")), file.read_bytes()
    found = 0
    for chunk in range(24):
        content = bytearray(whole)
        content[len(whole) - 96 * 192 + chunk * 4 * 192] ^= 1
        file.write_bytes(content)
        (words,) = source.verify()
        assert words.endswith(f"in rows {4 * chunk} to {4 * chunk + 3}")
        try:
            source.load("train", ImageOptions(memory_share=0))
        except UserError as error:
            found += words in str(error)
    assert found == 16
    file.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="longer than its header says"):
        source.load("train", ImageOptions(memory_share=0))


def _as_schema_1(folder):
    """Rewrite the header as the first version wrote it."""
    header = json.loads((folder / "store.json").read_text())
    header["schema"] = 1
    for split, each in header["splits"].items():
        images, labels = np.load(folder / split / "images.npy"), np.load(folder / split / "labels.npy")
        digest = hashlib.sha256(repr((images.shape, tuple(each["class_names"]))).encode())
        digest.update(labels.tobytes() + images.tobytes())
        each["fingerprint"] = digest.hexdigest()
        del each["chunks"]
    (folder / "store.json").write_text(json.dumps(header))


@pytest.mark.parametrize("memory_share", [0.5, 0.0])
def test_stores_of_the_first_schema_are_read(packed, memory_share):
    _as_schema_1(packed[1])
    source = open_source(str(packed[1]))
    store = source.load("val", ImageOptions(memory_share=memory_share))
    assert store.fingerprint == packed[0].load("val", EIGHT).fingerprint
    assert source.verify() == []
    _change(packed[1] / "val" / "images.npy")
    with pytest.raises(UserError, match="val has changed since it was written"):
        source.load("val", ImageOptions(memory_share=memory_share))
    assert len(source.verify()) == 1


def test_chunks_and_verify_keep_the_test_split_from_training(packed):
    for source in (packed[0], open_source(str(packed[1])), open_source("glyphs")):
        with sources.training_only():
            source.chunks("train", EIGHT)
            with pytest.raises(sources.ForbiddenSplitError):
                source.chunks("test", EIGHT)
    with sources.training_only(), pytest.raises(sources.ForbiddenSplitError):
        open_source(str(packed[1])).verify()


def test_a_packed_store_packs_again_at_another_size(packed, tmp_path):
    shutil.rmtree(tmp_path / "data")
    source = open_source(str(packed[1]))
    write_packed(source, ImageOptions(image_size=4), tmp_path / "small")
    small = open_source(str(tmp_path / "small")).load("test", ImageOptions(image_size=4))
    assert small.fingerprint == source.load("test", ImageOptions(image_size=4)).fingerprint
