"""A run's metrics.csv as TensorBoard's event files, while it trains or afterwards (the extra `tensorboard`)."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path

from fewshot_mcl.errors import DamagedError, UserError
from fewshot_mcl.interop import missing
from fewshot_mcl.runs import Run, files


def write_events(run: Run, out: Path | None = None) -> tuple[Path, int]:
    """Write every row that is not there yet, and no other: what is there stays.

    A column is a scalar: "val peer 0" is "val/peer 0", any other C "train/C". Steps are the run's own (episodes, or
    optimizer steps). Values are float32, as TensorBoard keeps scalars.

    Args:
        run: a run directory, finished or not.
        out: the folder; None is tensorboard/ in the run directory.

    Returns:
        The folder, and how many rows were written.

    Raises:
        UserError: without tensorboard, without metrics, or if `out` is no folder.
    """
    folder = out or run.path / "tensorboard"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a folder is needed. Choose another place: --out DIR.")
    rows = [row for row in _rows(run) if row[0] > _last_step(folder)]
    if rows:
        _write(folder, rows)
    return folder, len(rows)


def _rows(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and values of every whole row; a run that is training may be writing the last one."""
    path = run.path / "metrics.csv"
    if not path.exists():
        raise UserError(f"{path} is not there: the run was stopped before its first row of metrics (log_every).")
    lines = [line for line in files.read(path).decode().splitlines(keepends=True) if line.endswith("\n")]
    try:
        for row in csv.DictReader(lines):
            step = int(row.pop(run.config.unit))
            yield step, {_tag(name): float(text) for name, text in row.items() if text}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is damaged ({error})", "Put the file back from a copy.") from error


def _tag(column: str) -> str:
    kind, _, name = column.partition(" ")
    return f"val/{name}" if kind == "val" and name else f"train/{column}"


def _last_step(folder: Path) -> int:
    """The last step of the events in a folder; -1 where there are none."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    except ImportError as error:
        raise missing("tensorboard", "tensorboard", error) from error
    steps = [-1]
    for path in sorted(folder.glob("events.out.tfevents.*")):
        steps += [event.step for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]
    return max(steps)


def _write(folder: Path, rows: list[tuple[int, dict[str, float]]]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        writer = EventFileWriter(str(folder))
        for step, values in rows:
            scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        writer.close()
