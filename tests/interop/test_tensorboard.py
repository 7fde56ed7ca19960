"""Against the real TensorBoard: what its own reader finds is what metrics.csv says."""

from __future__ import annotations

import csv
import struct
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewshot_mcl.errors import UserError
from fewshot_mcl.interop.tensorboard import write_events


def scalars(folder) -> dict[tuple[str, int], float]:
    """Every scalar of a folder by tag and step; none may be there twice."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    events = [(tag, event.step, event.value) for tag in found.Tags()["scalars"] for event in found.Scalars(tag)]
    assert len({event[:2] for event in events}) == len(events)
    return {(tag, step): value for tag, step, value in events}


def expected(text: str) -> dict[tuple[str, int], float]:
    """What a metrics.csv says, as float32."""
    return {
        (
            name.replace("val ", "val/") if name.startswith("val ") else f"train/{name}",
            int(row["episode"]),
        ): struct.unpack("f", struct.pack("f", float(value)))[0]
        for row in csv.DictReader(text.splitlines())
        for name, value in row.items()
        if value and name != "episode"
    }


def test_its_reader_finds_the_values_of_the_csv(golden) -> None:
    text = (golden.path / "metrics.csv").read_text()
    folder, rows = write_events(golden)
    assert (folder, rows) == (golden.path / "tensorboard", 4)
    found = scalars(folder)
    assert found == expected(text)
    assert len(found) == 4 * 7 + 2 * 6
    assert found["val/peer 1", 2] == 0.875


def test_a_run_that_trains_is_followed(golden) -> None:
    file = golden.path / "metrics.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:10])  # the third row is just being written
    assert write_events(golden)[1] == 2
    file.write_text("".join(lines[:3]))
    assert write_events(golden)[1] == 0
    before = {path: path.read_bytes() for path in (golden.path / "tensorboard").iterdir()}
    file.write_text("".join(lines))
    assert write_events(golden)[1] == 2
    assert scalars(golden.path / "tensorboard") == expected("".join(lines))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_cannot_be_is_refused_in_a_sentence(golden, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file, and a folder is needed"):
        write_events(golden, tmp_path / "file")
    (golden.path / "metrics.csv").write_text("episode,ce\nx,1\n")
    with pytest.raises(UserError, match="damaged"):
        write_events(golden)
    (golden.path / "metrics.csv").unlink()
    with pytest.raises(UserError, match="before its first row"):
        write_events(golden)
    assert not (golden.path / "tensorboard").exists()


def test_missing_library_says_what_to_install(golden, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(UserError, match=r"needs tensorboard.*fewshot-mcl\[tensorboard\]"):
        write_events(golden)
