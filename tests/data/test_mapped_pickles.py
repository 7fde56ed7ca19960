"""`load_pickle(mapped=True)`: the same content, whose long parts stay in the file."""

from __future__ import annotations

import mmap
import pickle
import tracemalloc

import numpy as np
import pytest
from builders import write_python2
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_mcl.data import pickles
from fewshot_mcl.data.pickles import load_pickle
from fewshot_mcl.errors import UserError

LENGTHS = st.lists(st.sampled_from([1, 255, 256, 1023, 1024, 1025, 70_000]), max_size=5)


def bytes_of(value):
    return value.tobytes() if isinstance(value, np.ndarray | memoryview) else value


@settings(max_examples=40, deadline=None)
@given(LENGTHS, LENGTHS, st.sampled_from([2, 3, 4, 5]))
def test_it_holds_what_the_plain_reader_gives(tmp_path_factory, arrays, texts, protocol):
    path = tmp_path_factory.mktemp("mapped") / "a.pkl"
    rng = np.random.default_rng(0)
    content = {
        "arrays": [rng.integers(0, 256, length, dtype=np.uint8) for length in arrays],
        "bytes": [rng.bytes(length) for length in texts],
    }
    path.write_bytes(pickle.dumps(content, protocol))
    mapped, plain = load_pickle(path, mapped=True), load_pickle(path)
    for key in content:
        assert [bytes_of(each) for each in mapped[key]] == [bytes_of(each) for each in plain[key]]
        assert [bytes_of(each) for each in plain[key]] == [bytes_of(each) for each in content[key]]


def test_arrays_of_python_2_take_no_memory(tmp_path):
    path = tmp_path / "a.pkl"
    images = np.random.default_rng(0).integers(0, 256, (40, 100, 1000), dtype=np.uint8)
    write_python2(path, {"data": images, "labels": list(range(40))})
    tracemalloc.start()
    found = load_pickle(path, mapped=True)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert np.array_equal(found["data"], images)
    base = found["data"]
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base.obj, mmap.mmap)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.pkl"
    write_python2(path, {"data": np.zeros((4, 1000), np.uint8)})
    whole = path.read_bytes()
    for length in (0, 10, 600, len(whole) - 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.pkl is refused"):
            load_pickle(path, mapped=True)


def test_a_large_file_may_have_more_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles._Counted, "left", 100)
    many = [np.zeros(4000, np.uint8) + i for i in range(50)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(many, 2))
    assert len(load_pickle(tmp_path / "a.pkl", mapped=True)) == 50
    (tmp_path / "b.pkl").write_bytes(pickle.dumps([[] for _ in range(500)], 2))
    with pytest.raises(UserError, match="instructions"):
        load_pickle(tmp_path / "b.pkl", mapped=True)
