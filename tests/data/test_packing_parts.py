"""A store that is packed in parts is the store that is packed at once."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from dataclasses import replace

import filelock
import pytest
from builders import split_folders

from fewshot_mcl.data import folder as folder_module
from fewshot_mcl.data import images, packing, parts, sources, store
from fewshot_mcl.data.packed import PackedSource, write_packed
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import Interrupted, UserError

EIGHT = ImageOptions(image_size=8)


@pytest.fixture(autouse=True)
def chunks_of_four(monkeypatch):
    for module in (store, sources, folder_module, parts):
        monkeypatch.setattr(module, "CHUNK", 4)


@pytest.fixture
def source(tmp_path):
    """13 chunks of training images, the last of two; one of test images."""
    split_folders(tmp_path / "data", train=" ".join(f"c{i:02d}" for i in range(17)), test="e")
    return open_source(str(tmp_path / "data"))


@pytest.fixture
def whole(source, tmp_path):
    write_packed(source, EIGHT, tmp_path / "whole")
    return tree(tmp_path / "whole")


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("of", [1, 2, 3, 20])
def test_any_order_gives_the_bytes_of_one_go(source, whole, tmp_path, of):
    order = sorted(range(1, of + 1), key=lambda number: number * 7 % (of + 1))
    for done, number in enumerate(order, 1):
        written = write_packed(source, EIGHT, tmp_path / "parts", part=(number, of))
        assert written.left == sorted(set(order) - set(order[:done]))
        assert (tmp_path / "parts").exists() == (not written.left) == bool(written.folders)
    assert tree(tmp_path / "parts") == whole
    assert sorted(os.listdir(tmp_path)) == ["data", "parts", "whole"]
    assert PackedSource(tmp_path / "parts").verify() == []


def test_every_chunk_is_of_one_part(source):
    plan = {"splits": {"train": {"shape": [51, 3, 8, 8]}, "test": {"shape": [3, 3, 8, 8]}}}
    for of, split in itertools.product(range(1, 16), plan["splits"]):
        spans = [parts.Part(source.root, plan, number, of)._span(split) for number in range(1, of + 1)]
        assert (spans[0][0], spans[-1][1]) == (0, plan["splits"][split]["shape"][0])
        for (_, stop), (start, _) in itertools.pairwise(spans):
            assert start == stop
            assert start % 4 == 0 or start == spans[-1][1]


def test_a_part_that_was_stopped_goes_on_where_it_was(source, whole, tmp_path, monkeypatch):
    write_packed(source, EIGHT, tmp_path / "parts", part=(2, 2))
    read, count = images.read_image, iter(range(1000))
    for stop in (5, 14):

        def once(path, *args, stop=stop, **kwargs):
            if next(count) == stop:
                raise KeyboardInterrupt
            return read(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(images, "read_image", once)
            with pytest.raises(Interrupted, match="packed of part 1/2 is kept"):
                write_packed(source, EIGHT, tmp_path / "parts", part=(1, 2))
    chunks = json.loads((tmp_path / ".parts.partial" / "part-1-of-2.json").read_text())["chunks"]["train"]
    assert 0 < len(chunks) < 6
    assert write_packed(source, EIGHT, tmp_path / "parts", part=(1, 2)).left == []
    assert tree(tmp_path / "parts") == whole


def test_a_part_is_packed_by_one_process_at_a_time(source, whole, tmp_path):
    write_packed(source, EIGHT, tmp_path / "parts", part=(1, 3))
    with (
        filelock.FileLock(tmp_path / ".parts.partial" / "part-2-of-3.lock"),
        pytest.raises(UserError, match=r"part 2/3 of .*parts is being packed by another process"),
    ):
        write_packed(source, EIGHT, tmp_path / "parts", part=(2, 3))
    assert write_packed(source, EIGHT, tmp_path / "parts", part=(3, 3)).left == [2]
    assert write_packed(source, EIGHT, tmp_path / "parts", part=(2, 3)).left == []
    assert tree(tmp_path / "parts") == whole


def test_jobs_at_once_do_not_disturb_each_other(source, whole, tmp_path):
    """Eight processes, each with a part; they end in any order, and one of them finds all others done."""
    fork = multiprocessing.get_context("fork")  # which keeps the small chunks
    said = fork.SimpleQueue()

    def job(number):
        said.put(write_packed(source, EIGHT, tmp_path / "parts", part=(number, 8)).left)

    jobs = [fork.Process(target=job, args=(number,)) for number in range(1, 9)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join(60)
    assert [each.exitcode for each in jobs] == [0] * 8
    assert [] in [said.get() for _ in jobs]
    assert tree(tmp_path / "parts") == whole
    assert sorted(os.listdir(tmp_path)) == ["data", "parts", "whole"]


@pytest.mark.parametrize("change", ["options", "files", "number", "whole", "folder", "skip", "damage"])
def test_what_is_no_part_of_it_is_refused(source, tmp_path, change, monkeypatch):
    part, options, words = (2, 2), EIGHT, "holds parts of something else"
    if change == "folder":
        (tmp_path / ".parts.partial").mkdir()
        (tmp_path / ".parts.partial" / "mine").touch()
        words = "holds no packing: remove that folder"
    elif change == "whole":
        with monkeypatch.context() as patch:
            patch.setattr(packing.Packing, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(Interrupted):
                write_packed(source, EIGHT, tmp_path / "parts")
        words = "begun without --part: finish it so"
    else:
        write_packed(source, EIGHT, tmp_path / "parts", part=(1, 2))
        if change == "options":
            options = replace(EIGHT, color="grey")
        elif change == "files":
            (tmp_path / "data" / "test" / "e" / "0.png").write_bytes(b"of another size")
        elif change == "number":
            part, words = (2, 3), "is being packed in 2 parts, not 3"
        elif change == "skip":
            options, words = replace(EIGHT, on_bad_image="skip"), "do not go together"
        else:
            (tmp_path / ".parts.partial" / "part-1-of-2.json").write_text("{")
            words = r"part-1-of-2\.json is damaged: remove it, and pack that part again"
    before = tree(tmp_path / ".parts.partial")
    with pytest.raises(UserError, match=words):
        write_packed(source, options, tmp_path / "parts", part=part)
    assert tree(tmp_path / ".parts.partial") == before


def test_parts_are_not_continued_whole(source, tmp_path):
    write_packed(source, EIGHT, tmp_path / "parts", part=(1, 2))
    with pytest.raises(UserError, match="begun in parts: go on with --part"):
        write_packed(source, EIGHT, tmp_path / "parts")


def test_a_disk_without_room_for_the_part_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(packing.Packing, "_free", lambda self: 24 * 192 - 1)
    with pytest.raises(UserError, match="needs 4,608 bytes of disk"):
        write_packed(source, EIGHT, tmp_path / "parts", part=(1, 2))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2", "1/2/3"])
def test_what_is_no_part(text):
    with pytest.raises(UserError, match=r"--part .*: write which of how many"):
        parts.parse(text)
