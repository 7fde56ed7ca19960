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
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import filelock
import torch

from fewshot_mcl import __version__, parallel
from fewshot_mcl.config import COMMANDS, Config, FewShotConfig, resolve
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import DamagedError, UserError
from fewshot_mcl.resources import existing_run, program
from fewshot_mcl.runs import files
from fewshot_mcl.runs.tensors import StoredTensors, Tensors, Written, read_tensors, send_tensors, write_tensors

STATE = {"last": ("best", "seconds")}  # what a checkpoint says beside its step; all but the last say how good they are
CONFIG = "config sha256"  # of config.toml, in data.json; runs of older versions have none
FIXED = ("config.toml", "data.json")  # files that belong to every checkpoint of a run


class Run:
    """One run directory. `create` makes it, `open` finds it; nothing in it is overwritten but by the run itself.

    Attributes:
        path: of the directory.
        notes: what was found damaged, and what was used instead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._columns: list[str] = []
        self._damaged: set[str] = set()  # checkpoints for which the one before had to be used

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

    @cached_property
    def config(self) -> Config:
        """The run's configuration.

        Raises:
            UserError: if it is not as the run wrote it, or of a newer version.
        """
        path = self.path / "config.toml"
        known = self.read_json("data.json").get(CONFIG)
        if known and hashlib.sha256(files.read(path)).hexdigest() != known:
            raise DamagedError(
                f"{path} was changed, or data.json beside it: they do not belong together",
                "Put the files back as they were.",
            )
        try:
            return resolve(str(path))
        except UserError as error:
            wrong = str(error) if str(path) in str(error) else f"{path}: {error}"
            raise DamagedError(wrong.rstrip("."), "Put the file back as the run wrote it.") from error

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

    def data(self, split: str) -> dict[str, Any]:
        """What data.json says of a split.

        Raises:
            UserError: if it is missing or damaged.
        """
        return self.read_json("data.json", split)[split]

    @property
    def image_options(self) -> ImageOptions:
        """How other images become what the training images became."""
        trained = self.data("train")
        color: Literal["grey", "rgb"] = "grey" if trained["channels"] == 1 else "rgb"
        return replace(self.config.image_options, image_size=trained["image_size"][0], color=color)

    def place(self, data: str | None, root: Path | None) -> tuple[str, Path | None]:
        """`data` and `root` of a source: the run's own where none is given, which may have moved to `root`."""
        if data is not None:
            return data, root
        return self.config.data, root or (Path(self.config.root) if self.config.root else None)

    def read_json(self, name: str, *keys: str) -> dict[str, Any]:
        """A JSON file of the run, which must have `keys`.

        Raises:
            UserError: if it is missing or damaged.
        """
        return files.read_json(self.path / name, *keys)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, atomically."""
        files.write_json(self.path / name, content)

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

    @cached_property
    def _identity(self) -> dict[str, str]:
        """SHA-256 of what belongs to every checkpoint."""
        return {name: hashlib.sha256(files.read(self.path / name)).hexdigest() for name in FIXED}

    def save_checkpoint(self, name: str, tensors: Written, state: dict[str, Any]) -> None:
        """Make (`tensors`, `state`) the checkpoint `name`; the one before it stays valid, and is kept."""
        folder = self.path / "checkpoints"
        file = f"{name}-{state[self.config.unit]:08d}.safetensors"
        manifest = {"checkpoint": name, "file": file, "sha256": write_tensors(folder / file, tensors), **state}
        if name == "last":
            manifest["metrics"] = self._metrics_now()
        kept = (file, self._keep_previous(name, file))
        self.write_json(f"checkpoints/{name}.json", {**manifest, "belongs_to": self._identity})
        self._damaged.discard(name)
        for old in folder.glob(f"{name}-*.safetensors"):
            if old.name not in kept:
                old.unlink()

    def _keep_previous(self, name: str, file: str) -> str | None:
        """Have the checkpoint before the one in `file` as NAME.previous.json; the name of its own file.

        What is damaged, or is of the same step again, takes the place of no good one.
        """
        current, before = (self.path / "checkpoints" / f"{name}{which}.json" for which in ("", ".previous"))
        with contextlib.suppress(DamagedError):
            named = str(files.read_json(current, "file")["file"])
            if named != file and name not in self._damaged:
                files.write(before, files.read(current))
                return named
        with contextlib.suppress(DamagedError):
            return str(files.read_json(before, "file")["file"])
        return None

    def has_begun(self) -> bool:
        """Whether there is a checkpoint to go on from, damaged or not; the best one is saved before the first of these."""
        return any(self.path.glob("checkpoints/last*.json"))

    def has_checkpoint(self, name: str) -> bool:
        """Whether there is one of that name."""
        return (self.path / "checkpoints" / f"{name}.json").exists()

    def load_checkpoint(self, name: str, with_metrics: bool = False) -> tuple[StoredTensors, dict[str, Any]]:
        """Tensors and state of the checkpoint `name` ("last", "best", "after-N"); `state[config.unit]` are the steps done.

        Where it is damaged, the one before it is loaded, and `notes` says so.

        Args:
            name: of the checkpoint.
            with_metrics: whether the metrics up to it must be as they were, too.

        Raises:
            UserError: if there is none, or none that is not damaged.
        """
        folder = self.path / "checkpoints"
        if not any((folder / f"{name}{which}.json").exists() for which in ("", ".previous")):
            raise UserError(
                f"{self.path} has no checkpoint '{name}' (checkpoints/{name}.json): it was stopped before its first one. Train "
                f"it: {program()} {COMMANDS[self.config.task]} --out {shlex.quote(str(self.path))} --resume"
            )
        try:
            tensors, state = self._load(name, f"{name}.json", with_metrics)
            self._require_newer(name, state)
            return tensors, state
        except DamagedError as error:
            if not (folder / f"{name}.previous.json").exists():
                raise
            tensors, state = self._load(name, f"{name}.previous.json", with_metrics)
            step = f"{self.config.unit} {state[self.config.unit]}"
            self.notes.append(f"{error.what}: the checkpoint before it is used, of {step}")
            self._damaged.add(name)
            return tensors, state

    def _require_newer(self, name: str, state: dict[str, Any]) -> None:
        """Refuse a checkpoint that is older than the one before it: their files were exchanged."""
        unit, before = self.config.unit, self.path / "checkpoints" / f"{name}.previous.json"
        if not before.exists():
            return
        try:
            older = files.read_json(before, unit)[unit]
        except DamagedError as error:
            self.notes.append(f"{error.what}: it is not needed, the checkpoint after it is sound")
            return
        if older > state[unit]:
            path = before.with_name(f"{name}.json")
            raise UserError(f"{path} is older than {before.name}: the two were exchanged. Put them back as they were.")

    def _load(self, name: str, manifest: str, with_metrics: bool) -> tuple[StoredTensors, dict[str, Any]]:
        keys = ("file", "sha256", self.config.unit, *STATE.get(name, ("val",)))
        path, advice = self.path / "checkpoints" / manifest, self._instead(name)
        state = files.read_json(path, *keys)
        if state.get("checkpoint", name) != name:
            raise DamagedError(f"{path} is of the checkpoint '{state['checkpoint']}'", advice)
        for file, sha256 in _owner(state).items():
            if self._identity.get(file) != sha256:
                raise UserError(
                    f"{path} belongs to another {file} than {self.path / file}, which was changed or comes from another run: put "
                    "the file back as it was."
                )
        if with_metrics and "metrics" in state:
            self._require_metrics(state["metrics"], advice)
        named = Path(str(state["file"])).name
        if named in ("", ".."):
            raise DamagedError(f"{path} is damaged: it names no file", advice)
        return read_tensors(path.with_name(named), state["sha256"], manifest, advice), state

    def _metrics_now(self) -> dict[str, Any]:
        """Size and SHA-256 of the metrics so far, which are on the disk before a checkpoint speaks of them."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        with files.writing(path), path.open("rb+") as file:
            os.fsync(file.fileno())
            content = file.read()
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def _require_metrics(self, kept: dict[str, Any], advice: str) -> None:
        path = self.path / "metrics.csv"
        content = path.read_bytes()[: kept["bytes"]] if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != kept["sha256"]:
            raise DamagedError(f"{path} is damaged or cut short: its SHA-256 is not that of the checkpoint", advice)

    def _instead(self, name: str) -> str:
        """What is left to a user whose checkpoint `name` is lost."""
        other = "best" if name == "last" else "last"
        usable = (self.path / "checkpoints" / f"{other}.json").exists()
        advice = f", evaluate the other one (--checkpoint {other})" if usable else ""
        return f"Put the file back from a copy{advice}, or start a new run."

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

    def keep_metrics_until(self, state: dict[str, Any]) -> None:
        """Drop what was written after a checkpoint of that state: a resumed run writes it again."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return
        content = path.read_bytes()
        if "metrics" in state:
            good = content[: state["metrics"]["bytes"]]
        else:  # of a run of schema 1, which does not say how long they were
            header, *rows = content.splitlines(keepends=True) or [b""]
            step = state[self.config.unit]
            good = b"".join([header, *(r for r in rows if r.endswith(b"\n") and int(r.partition(b",")[0]) <= step)])
        if not good:
            path.unlink()  # the first row makes it, with its header
        elif good != content:
            files.write(path, good)

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


def _owner(state: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that a checkpoint belongs to; none are known of runs of schema 1."""
    owner = state.get("belongs_to")
    return owner if isinstance(owner, dict) else {}


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
