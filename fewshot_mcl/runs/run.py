"""The run directory: everything needed to repeat, resume or use a run, in files that no program need be trusted to read.

config.toml         the resolved configuration, itself a valid --config
command.txt         the command lines that made it, one a line
environment.json    versions and machine
data.json           fingerprints and class names of the splits it was trained and validated on
tuning.json         what --tune measured, where it was asked for
metrics.csv         one row every few episodes
checkpoints/        last.json, best.json and perhaps after-N.json, each naming a safetensors file and its SHA-256, and what it was
                    before in last.previous.json and best.previous.json
run.lock            held while a process trains the run
model.safetensors   the deployed network by itself, with model.json
evaluations/        one JSON file an evaluation; lock is held while one gets its number
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import filelock
import torch

from fewshot_mcl import __version__, parallel
from fewshot_mcl.config import COMMANDS, Config, FewShotConfig, resolve
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import DamagedError, UserError
from fewshot_mcl.resources import existing_run
from fewshot_mcl.runs import files
from fewshot_mcl.runs.checkpoints import Checkpoints
from fewshot_mcl.runs.directory import CONFIG
from fewshot_mcl.runs.tensors import StoredTensors, Tensors, Written, read_tensors, send_tensors, write_tensors


class Run(Checkpoints):
    """One run directory. `create` makes it, `open` finds it; nothing in it is overwritten but by the run itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._columns: list[str] = []

    @classmethod
    def create(cls, path: Path | None, config: Config, data: dict[str, Any]) -> Run:
        """A new run directory; None makes one of a name of its own, see `default_path`.

        Raises:
            UserError: if `path` exists (nothing is written), or cannot be made.
        """
        made = path or default_path(config)
        try:
            made.mkdir(parents=True)
            (made / "checkpoints").mkdir()
        except OSError as error:
            if isinstance(error, FileExistsError) and os.path.lexists(made):
                if path:
                    cls.refuse_existing(path)
                return cls.create(None, config, data)  # another process was faster
            raise UserError(
                f"cannot make the run directory {made}: {error.strerror}. Choose another place: --out DIR."
            ) from error
        run, path = cls(made), made
        run.note_command()
        run.write_json("environment.json", environment())
        text = config.to_toml().encode()
        run.write_json("data.json", data | {CONFIG: hashlib.sha256(text).hexdigest()})
        files.write(path / "config.toml", text)  # the last: with it a directory is a run
        return run

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise `UserError` where a new run cannot be made at `path`, because something is there."""
        if os.path.lexists(path):
            or_else = f", or continue that run: --out {path} --resume" if (path / "config.toml").exists() else ""
            raise UserError(f"{path} exists. Choose another --out{or_else}.")

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run directory.

        Raises:
            UserError: if there is none.
        """
        return (FollowedRun if parallel.rank() else cls)(existing_run(path))

    def agreed(
        self,
        config: str | None,
        options: dict[str, Any] | None = None,
        settings: list[str] | None = None,
        task: str | None = None,
    ) -> Config:
        """The run's configuration, if what is given (as for `resolve`) agrees with it.

        How work is split over processes may differ: a run is taken up by as many as there are, and `parallel` with it.

        Raises:
            UserError: naming the first setting that does not.
        """
        saved = self.config
        if task not in (None, saved.task):
            raise UserError(
                f"{self.path} is a run of 'fewshot-mcl {COMMANDS[saved.task]}': continue it with that command."
            )
        old = saved.flat()
        asked = resolve(config, options, settings, base=saved, task=saved.task)
        for name, value in asked.flat().items():
            if value != old[name] and name != "parallel":
                raise UserError(
                    f"{name} = {value}, but the run {self.path} has {name} = {old[name]}, and a resumed run keeps its settings. "
                    f"Leave it out, or start a new run: --config {self.path / 'config.toml'} with another --out."
                )
        return saved.model_copy(update={"parallel": asked.parallel})

    def note_command(self) -> None:
        """Append the command line of this process to command.txt."""
        with files.append(self.path / "command.txt") as file:
            file.write(shlex.join(["fewshot-mcl", *sys.argv[1:]]) + "\n")

    @property
    def image_options(self) -> ImageOptions:
        """How other images become what the training images became.

        Raises:
            UserError: if data.json does not say what they were.
        """
        try:
            trained = self.data("train")
            color: Literal["grey", "rgb"] = "grey" if trained["channels"] == 1 else "rgb"
            return replace(self.config.image_options, image_size=trained["image_size"][0], color=color)
        except (KeyError, IndexError, TypeError) as error:
            wrong = f"{self.path / 'data.json'} is damaged (its images have no size)"
            raise DamagedError(wrong, "Put the file back from a copy, or start a new run.") from error

    def place(self, data: str | None, root: Path | None) -> tuple[str, Path | None]:
        """`data` and `root` of a source: the run's own where none is given, which may have moved to `root`."""
        if data is not None:
            return data, root
        return self.config.data, root or (Path(self.config.root) if self.config.root else None)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The run for this process alone. The lock ends with the process, however that ends.

        Raises:
            UserError: if another process has it, or the directory cannot be written to.
        """
        try:
            lock = filelock.FileLock(self.path / "run.lock")
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise UserError(
                f"{self.path} is being trained by another process. Wait until it ends, or start a new run with another --out."
            ) from error
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}. Nothing was changed.") from error
        try:
            for left in (*self.path.glob("*.partial"), *self.path.glob("checkpoints/*.partial")):
                left.unlink(missing_ok=True)  # of a process that was killed while it wrote
            yield
        finally:
            lock.release()

    def save_model(self, tensors: Tensors, card: dict[str, Any]) -> None:
        """Write the deployed network by itself."""
        sha256 = write_tensors(self.path / "model.safetensors", tensors)
        self.write_json("model.json", {"sha256": sha256, **card})

    def load_model(self) -> tuple[StoredTensors, dict[str, Any]]:
        """The deployed network's tensors, and model.json.

        Raises:
            UserError: if training has not finished, or a file is damaged.
        """
        if not (self.path / "model.json").exists():
            raise UserError(
                f"{self.path} has no deployed network (model.json): finish its training, --out {self.path} --resume."
            )
        keys = ("sha256", "backbone", "in_channels", "image_size", "mean", "std")
        card, again = self.read_json("model.json", *keys), "Put the file back from a copy, or start a new run."
        return read_tensors(self.path / "model.safetensors", card["sha256"], "model.json", again), card

    def save_evaluation(self, content: dict[str, Any], attachments: dict[str, bytes] | None = None) -> Path:
        """Keep an evaluation under the next free number, and beside it `attachments` as evaluation-NNN-NAME.

        The JSON file has their SHA-256, by name, under "attachments".
        """
        folder = self.path / "evaluations"
        with contextlib.ExitStack() as held:
            try:
                folder.mkdir(exist_ok=True)
                held.enter_context(filelock.FileLock(folder / "lock"))  # whoever else evaluates this run just now waits
            except OSError as error:
                raise UserError(
                    f"cannot keep the evaluation in {folder}: {error.strerror}. Nothing was changed."
                ) from error
            paths = (folder / f"evaluation-{number:03d}.json" for number in itertools.count(1))
            path = next(path for path in paths if not path.exists())
            sums = {
                name: files.write(folder / f"{path.stem}-{name}", data) for name, data in (attachments or {}).items()
            }
            self.write_json(f"evaluations/{path.name}", content | ({"attachments": sums} if sums else {}))
        return path

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.csv. The first row fixes the columns."""
        path = self.path / "metrics.csv"
        new = not path.exists()
        if new:
            self._columns = list(row)
        elif not self._columns:
            with path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file))
        with files.append(path) as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


class FollowedRun(Run):
    """The run directory as a process sees it that does not write to it: process 0 does."""

    def save_checkpoint(self, name: str, tensors: Written, state: dict[str, Any]) -> None:
        """Left to process 0, which is sent what it lacks."""
        send_tensors(tensors)

    def save_model(self, tensors: Tensors, card: dict[str, Any]) -> None:
        """Left to process 0."""

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Left to process 0."""

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Left to process 0."""

    def keep_metrics_until(self, state: dict[str, Any]) -> None:
        """Left to process 0."""

    def note_command(self) -> None:
        """Left to process 0."""

    def save_evaluation(self, content: dict[str, Any], attachments: dict[str, bytes] | None = None) -> Path:
        """Left to process 0."""
        return self.path / "evaluations"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Process 0 has the lock."""
        yield


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    packages = ("torch", "numpy", "scipy", "pillow", "safetensors")
    return {
        "fewshot_mcl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def default_path(config: Config, root: Path = Path("runs")) -> Path:
    """A new directory named after the run: runs/glyphs-mcl-okd-10way-1shot-seed0, then -2, -3, ..."""
    data = re.sub(r"[^\w.]+", "-", Path(config.data).name)[:80].strip("-.") or "data"
    kind = (
        f"{config.way}way-{config.shot}shot" if isinstance(config, FewShotConfig) else config.backbone.replace("/", "-")
    )
    stem = f"{data}-{config.method}-{kind}-seed{config.seed}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 10**6))
    return next(root / name for name in names if not os.path.lexists(root / name))
