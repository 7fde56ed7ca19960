"""Files made to keep a reader busy, to fill the memory or to command a terminal: what the fuzz campaign found, kept found."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from builders import class_folders, lists, mini_e
from labelled_builders import archive, cifar_python
from PIL import Image

from fewshot_mcl.data import class_lists, pickles
from fewshot_mcl.data.check import check, convert
from fewshot_mcl.data.images import BadImage, in_threads, read_image
from fewshot_mcl.data.labelled import open_labelled
from fewshot_mcl.data.pickles import load_pickle
from fewshot_mcl.data.sources import ImageOptions, open_source
from fewshot_mcl.errors import UserError
from fewshot_mcl.runs import files

EIGHT = ImageOptions(image_size=8)
PAIRS = b"Nq\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(64))  # 2^64 leaves in 256 bytes


def refused(path, content, match):
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        load_pickle(path)


@pytest.mark.parametrize("body", [b"}" + PAIRS + b"Ns.", b"}(" + PAIRS + b"Nu.", b"(" + PAIRS + b"Nd."])
def test_a_maze_is_no_key_of_a_dict(tmp_path, body):
    refused(tmp_path / "a.pkl", body, "something else than the text or numbers of a dict")


@pytest.mark.parametrize("body", [b"\x80\x04\x8f(" + PAIRS + b"\x90.", b"\x80\x04(" + PAIRS + b"\x91."])
def test_sets_are_refused(tmp_path, body):
    refused(tmp_path / "a.pkl", body, "no plain data")


def test_wide_mazes_are_walked_once(tmp_path):
    value: list = [None] * 3000
    for _ in range(3):
        value = [value] * 3000
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, 2))
    loaded = load_pickle(tmp_path / "a.pkl")
    assert loaded[0] is loaded[2999]
    assert loaded[5][7][9] == [None] * 3000


def test_more_instructions_than_data_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles._Counted, "left", 1000)
    refused(tmp_path / "a.pkl", b"]" * 1000 + b".", "instructions")
    (tmp_path / "b.pkl").write_bytes(b"]" * 999 + b".")
    assert load_pickle(tmp_path / "b.pkl") == []


def test_a_made_up_length_of_a_bytearray_takes_no_memory(tmp_path):
    tracemalloc.start()
    refused(tmp_path / "a.pkl", b"\x80\x05\x96" + struct.pack("<Q", 1 << 26) + b"a.", "ends early")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("side", ["K\x01" * 33, "\x8b\x07\0\0\0\0\0\0\0\0\0\x7f"])
def test_shapes_are_multiplied_only_where_an_array_may_have_them(tmp_path, side):
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR"
    kind = b"cnumpy\ndtype\n(X\x02\0\0\0u1I00\nI01\ntR"
    body = array + b"(K\1(" + side.encode("latin1") + b"t" + kind + b"\x89C\1atb."
    refused(tmp_path / "a.pkl", b"\x80\x02" + body, "an array without a shape")


def test_images_without_pixels_are_refused(tmp_path):
    path = mini_e(tmp_path) / "mini-imagenet-cache-train.pkl"
    path.write_bytes(pickle.dumps({"image_data": np.zeros((1000, 0, 0, 3), np.uint8), "class_dict": {"a": [0]}}))
    with pytest.raises(UserError, match="have no pixels"):
        open_source(str(tmp_path)).load("train", EIGHT)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path):
    content = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    (tmp_path / "good.jpg").write_bytes(content)
    assert read_image(tmp_path / "good.jpg").size == (64, 64)
    scan = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "bad.jpg").write_bytes(content[:-2] + 100 * scan + content[-2:])
    with pytest.raises(BadImage, match=r"a JPEG of 10\d scans"):
        read_image(tmp_path / "bad.jpg")


def test_a_made_up_length_in_a_png_takes_no_memory(tmp_path):
    content = saved(Image.new("L", (8, 8)), "PNG")
    at = content.index(b"IDAT")
    (tmp_path / "a.png").write_bytes(content[: at - 4] + struct.pack(">I", 1 << 30) + content[at:])
    tracemalloc.start()
    with suppress(BadImage):
        read_image(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_an_endless_file_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    with pytest.raises(BadImage, match="512 MB"):
        read_image(tmp_path / "a.png")


def test_a_run_length_coded_bitmap_is_refused(tmp_path):
    content = bytearray(saved(Image.new("P", (8, 8)), "BMP"))
    content[30] = 1
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(BadImage, match="run-length"):
        read_image(tmp_path / "a.bmp")


def test_decoders_say_nothing_themselves(tmp_path, capfd, recwarn):
    rows = [
        (256, 4, 1, 8),
        (257, 4, 1, 8),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 200),
        (279, 4, 1, 64),
    ]
    for name, more in (("samples", (277, 3, 1, 65_535)), ("far", (270, 2, 1 << 31, 8))):
        entries = b"".join(struct.pack("<HHII", *row) for row in [*rows, more])
        (tmp_path / f"{name}.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(rows) + 1) + entries + bytes(256))
    with pytest.raises(BadImage):
        in_threads(lambda i: read_image(tmp_path / "samples.tif"), 1)
    in_threads(lambda i: read_image(tmp_path / "far.tif"), 1)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"\n" * 300_000, b"\n" * 2000, b"a\n" * 2000, b"," * 100_000], ids=len)
def test_endless_lists_are_refused(tmp_path, content, monkeypatch):
    monkeypatch.setattr(class_lists, "MOST_BYTES", 200_000)
    monkeypatch.setattr(class_lists, "MOST_LINES", 1000)
    class_folders(tmp_path, "abcdef")
    lists(tmp_path, val="c d", test="e f")
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv is no readable csv file"):
        open_source(str(tmp_path))


def test_a_name_too_long_for_a_file_is_not_there(tmp_path):
    class_folders(tmp_path, "abcdef")
    lists(tmp_path, train=f"filename,label 0.png,{'a' * 300}", val="c d", test="e f")
    with pytest.raises(UserError, match=r"no file '0\.png' is there"):
        open_source(str(tmp_path))


def test_a_crowd_of_files_in_a_tar_is_refused(tmp_path):
    content = tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT) * 20_000
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match="more than 10,000 files"):
        open_labelled("cifar100", tmp_path, EIGHT)


def test_a_long_header_in_a_tar_is_not_read(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(info.size)))
    tracemalloc.start()
    with pytest.raises(UserError, match="a header of 67108864 bytes"):
        open_labelled("cifar100", tmp_path, EIGHT)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_sound_tar_is_read(tmp_path):
    archive(tmp_path / "cifar-100-python.tar.gz", cifar_python(tmp_path / "aside"))
    assert len(open_labelled("cifar100", tmp_path, EIGHT).load("train", EIGHT)) == 7


@pytest.fixture
def packed(tmp_path):
    class_folders(tmp_path / "data", "abcdef")
    convert(str(tmp_path / "data"), None, tmp_path / "packed", EIGHT)
    return tmp_path / "packed"


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def npy(header):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        npz(),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 3, 8, 8)}\n"),
        npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}\n" % (1 << 70)),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (3,)}\n"),
        npy(b"((((((\n"),
        npy(b"{'descr': '<c8', 'fortran_order': False, 'shape': (8,)}\n"),
        b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(64),
    ],
    ids=["zip", "negative", "huge", "objects", "open", "complex", "header"],
)
@pytest.mark.parametrize("name", ["images", "labels"])
def test_arrays_that_are_none_are_refused(packed, name, content):
    (packed / "train" / f"{name}.npy").write_bytes(content)
    with pytest.raises(UserError, match="train is damaged"):
        open_source(str(packed)).load("train", EIGHT)


def test_the_library_of_arrays_says_nothing_itself(packed, recwarn):
    (packed / "train" / "labels.npy").write_bytes(npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (8L,)}\n"))
    with pytest.raises(UserError):
        open_source(str(packed)).load("train", EIGHT)
    assert not recwarn.list


@pytest.mark.parametrize("change", [{"schema": float("inf")}, {"splits": {"train": []}}, {"notes": 3}])
def test_headers_that_say_odd_things_are_refused(packed, change):
    header = json.loads((packed / "store.json").read_text())
    (packed / "store.json").write_text(json.dumps(header | change))
    with pytest.raises(UserError, match=r"store\.json is damaged"):
        open_source(str(packed))


def test_a_store_cannot_command_the_terminal(packed):
    header = json.loads((packed / "store.json").read_text())
    header |= {"source": "\x1b[2J", "notes": ["a\n\x1b]0;b\x07"]}
    (packed / "store.json").write_text(json.dumps(header))
    source = open_source(str(packed))
    assert all(text.isprintable() for text in (source.name, *source.notes))
    assert all(line.isprintable() for line in check(str(packed), None, EIGHT).lines())


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", '{"plan": {"splits": []}, "chunks": 3}', '{"plan": {"source": ""}}']
)
def test_what_no_packing_left_is_not_continued(packed, tmp_path, content):
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "progress.json").write_text(content)
    with pytest.raises(UserError, match="cannot be continued"):
        convert(str(tmp_path / "data"), None, tmp_path / "new", EIGHT)


def test_a_json_file_of_too_many_values_is_not_parsed(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + b"{}," * files.MOST_VALUES + b"0]")
    with pytest.raises(UserError, match=r"a\.json is damaged .*values"):
        files.read_json(tmp_path / "a.json")
