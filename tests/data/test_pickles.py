from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tracemalloc
from collections import OrderedDict
from contextlib import suppress

import numpy as np
import pytest
from builders import pixels, write_python2
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_mcl.data.pickles import load_pickle
from fewshot_mcl.errors import UserError

CONTENT = {
    "data": np.stack([pixels(i) for i in range(3)]),
    "labels": [0, 1, np.int64(2)],
    "names": {"a": [0, 1], "b": np.array([2])},
    "more": ["text", 1.5, True, None, (1, 2), -(1 << 70)],
    "grid": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">u2"),
}


def written(path, content):
    path.write_bytes(content)
    return path


def same(loaded, expected):
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            assert loaded[key].dtype == value.dtype
            assert np.array_equal(loaded[key], value)
    assert loaded["labels"] == expected["labels"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_every_protocol_and_both_numpy_names_are_read(tmp_path, protocol, core):
    content = pickle.dumps(CONTENT, protocol)
    if protocol < 4:  # there, names are lines of text; later, they have a length
        content = content.replace(b"cnumpy._core.", f"c{core}.".encode())
    loaded = load_pickle(written(tmp_path / "a.pkl", content))
    same(loaded, CONTENT)
    assert loaded["more"] == CONTENT["more"]
    assert loaded["names"]["b"].tolist() == [2]
    assert loaded["names"]["a"] == [0, 1]


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2_files_are_read(tmp_path, protocol):
    content = {"data": CONTENT["data"], "labels": [64, 65, 79], "nums": np.arange(4), "tag": "caf\xe9"}
    write_python2(tmp_path / "a.pickle", content, protocol)
    loaded = load_pickle(tmp_path / "a.pickle")
    same(loaded, content)
    assert loaded["tag"] == "caf\xe9"


def test_the_builder_writes_what_python_reads(tmp_path):
    for protocol in (0, 2):
        write_python2(tmp_path / "a.pickle", {"data": CONTENT["data"], "labels": [1]}, protocol)
        with (tmp_path / "a.pickle").open("rb") as file:
            same(pickle.load(file, encoding="latin1"), {"data": CONTENT["data"], "labels": [1]})


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def object_array(item):
    array = np.empty(1, object)
    array[0] = item
    return array


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"data": [x]}, object_array, lambda x: {x: 1}, lambda x: (x, x)]
)
def test_hostile_calls_are_refused_and_never_run(tmp_path, protocol, wrap):
    marker = tmp_path / "marker"
    for call in [
        Calls(os.system, f"touch {marker}"),
        Calls(eval, f"open({str(marker)!r}, 'w')"),
        Calls(open, str(marker), "w"),
        Calls(np.save, str(marker), 1),
        Calls(getattr, "", "join"),
        Calls(map, open, [str(marker)]),
    ]:
        path = written(tmp_path / "evil.pkl", pickle.dumps(wrap(call), protocol))
        with pytest.raises(UserError, match=r"evil\.pkl is refused"):
            load_pickle(path)
    assert os.listdir(tmp_path) == ["evil.pkl"]


GLOBAL_NDARRAY = b"cnumpy\nndarray\n"
RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n"
U1 = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1I00\nI01\ntR"


@pytest.mark.parametrize(
    "body",
    [
        b"(S'touch marker'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch marker'\no.",  # OBJ
        b"\x80\x02cbuiltins\nopen\n(S'marker'\nS'w'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"ccopy_reg\n_reconstructor\n(t.",
        b"\x80\x02" + GLOBAL_NDARRAY + b"(J\xff\xff\xff\x7ftR.",  # ndarray called with a shape
        b"\x80\x02" + GLOBAL_NDARRAY + b")\x81.",  # NEWOBJ
        b"\x80\x04" + GLOBAL_NDARRAY + b")}\x92.",  # NEWOBJ_EX
        b"\x80\x02" + RECONSTRUCT + b"}X\x01\x00\x00\x00aK\x01sb.",  # attributes set on a constructor
        b"\x80\x02}}b.",  # BUILD on a dict
        b"\x80\x02" + U1 + b"(K\x03X\x01\x00\x00\x00|NNNK\xffK\xffK\x3ft}b.",
        b"\x80\x02\x82\x01.",  # EXT1
        b"P1\n.",  # PERSID
        b"\x80\x02K\x01K\x02R.",  # a number called
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zliptR.",
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.",  # STACK_GLOBAL
        b"\x80\x02cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.",
        b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00V8tR.",
        b"",
        b".",
        b"not a pickle",
    ],
)
def test_hand_made_gadgets_are_refused(tmp_path, body, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="refused"):
        load_pickle(written(tmp_path / "evil.pkl", body))
    assert os.listdir(tmp_path) == ["evil.pkl"]


def test_classes_that_data_does_not_need_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"collections\.OrderedDict"):
        load_pickle(written(tmp_path / "a.pkl", pickle.dumps(OrderedDict(a=1))))


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x02T\xff\xff\xff\x7fabc.",  # a string of 2 GB in a file of some bytes
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"a.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo slot far out
        b"\x80\x02Nr\xff\xff\xff\x7fj\xff\xff\xff\x7e.",
        b"\x80\x02"
        + RECONSTRUCT
        + b"("
        + GLOBAL_NDARRAY
        + b"K\x00\x85C\x01btR(K\x01J\xff\xff\xff\x7f\x85"
        + U1
        + b"\x89C\x01atb.",
    ],
)
def test_made_up_lengths_take_no_memory(tmp_path, body):
    path = written(tmp_path / "a.pkl", body)
    tracemalloc.start()
    with pytest.raises(UserError, match="refused"):
        load_pickle(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_maze_of_shared_lists_is_not_walked(tmp_path):
    value: list = []
    for _ in range(64):
        value = [value, value]
    assert len(load_pickle(written(tmp_path / "a.pkl", pickle.dumps(value, 2)))) == 2


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), protocol=st.sampled_from([0, 2, 5]))
def test_damage_is_a_user_error_or_harmless(tmp_path_factory, seed, protocol):
    random_ = random.Random(seed)
    content = bytearray(pickle.dumps(CONTENT, protocol))
    for _ in range(random_.randrange(1, 8)):
        content[random_.randrange(len(content))] = random_.randrange(256)
    path = written(tmp_path_factory.mktemp("fuzz") / "a.pkl", content[: random_.randrange(1, len(content) + 1)])
    with suppress(UserError):
        load_pickle(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pkl cannot be read"):
        load_pickle(tmp_path / "gone.pkl")


def test_reading_is_not_slow(tmp_path):
    buffer = io.BytesIO()
    pickle.dump({"data": np.zeros((2000, 84, 84, 3), np.uint8), "labels": list(range(38_400))}, buffer, 2)
    loaded = load_pickle(written(tmp_path / "a.pkl", buffer.getvalue()))
    assert loaded["data"].shape == (2000, 84, 84, 3)
