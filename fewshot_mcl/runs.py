"""The run directory: everything needed to repeat, resume or use a run, in files that no program need be trusted to read.

config.toml         the resolved configuration, itself a valid --config
command.txt         the command lines that made it, one a line
environment.json    versions and machine
data.json           fingerprints and class names of the splits it was trained and validated on
metrics.csv         one row every few episodes
checkpoints/        last.json, best.json and perhaps after-N.json, each naming a safetensors file and its SHA-256
model.safetensors   the deployed network by itself, with model.json
evaluations/        one JSON file an evaluation
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fewshot_mcl import __version__
from fewshot_mcl.config import COMMANDS, Config, FewShotConfig, resolve
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import UserError
from fewshot_mcl.resources import existing_run

SCHEMA = 1
STATE = {"last": ("best", "seconds")}  # what a checkpoint says beside its step; all but the last say how good they are
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
LARGE = 1 << 26  # bytes: tensors beyond this are never held twice
Tensors = dict[str, Tensor]


class StoredTensors(dict[str, Tensor]):
    """The tensors of a safetensors file. The large ones stay in the file, mapped: they take memory once they are looked at."""

    def __init__(self, path: Path) -> None:
        mapped = load_file(path)
        # A copy, because even a small view would keep the whole file, which the next checkpoint deletes, on the disk.
        super().__init__({key: value.clone() if value.nbytes < LARGE else value for key, value in mapped.items()})
        self.path = path

    def copy_into(self, target: Tensor, name: str) -> None:
        """Copy a tensor into one of its shape. Of a large one a part at a time is mapped: all of it would count as memory."""
        if self[name].nbytes < LARGE:
            target.copy_(self[name])
            return
        for block in _blocks(target.shape, LARGE // 4 // target.itemsize):
            with safe_open(self.path, "pt") as file:
                target[block].copy_(file.get_slice(name)[block])


def _blocks(shape: Sequence[int], numbers: int) -> Iterator[tuple[slice, ...]]:
    """Blocks that together are all of a shape, none of more than so many numbers."""
    row = math.prod(shape[1:])
    step = max(1, numbers // row)
    for start in range(0, shape[0], step):
        for rest in _blocks(shape[1:], numbers) if row > numbers else [()]:
            yield slice(start, start + step), *rest


class Run:
    """One run directory. `create` makes it, `open` finds it; nothing in it is overwritten but by the run itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []

    @classmethod
    def create(cls, path: Path, config: Config, data: dict[str, Any]) -> Run:
        """A new run directory.

        Raises:
            UserError: if `path` exists (nothing is written), or cannot be made.
        """
        cls.refuse_existing(path)
        try:
            path.mkdir(parents=True)
            (path / "checkpoints").mkdir()
        except OSError as error:
            raise UserError(
                f"cannot make the run directory {path}: {error.strerror}. Choose another place: --out DIR."
            ) from error
        run = cls(path)
        _write(path / "config.toml", config.to_toml().encode())
        run.write_json("environment.json", environment())
        run.write_json("data.json", data)
        run.note_command()
        return run

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise `UserError` where a new run cannot be made at `path`, because something is there."""
        if os.path.lexists(path):
            raise UserError(f"{path} exists. Choose another --out, or continue that run: --out {path} --resume.")

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run directory.

        Raises:
            UserError: if there is none.
        """
        return cls(existing_run(path))

    @cached_property
    def config(self) -> Config:
        """The run's configuration."""
        return resolve(str(self.path / "config.toml"))

    def agreed(
        self,
        config: str | None,
        options: dict[str, Any] | None = None,
        settings: list[str] | None = None,
        task: str | None = None,
    ) -> Config:
        """The run's configuration, if what is given (as for `resolve`) agrees with it.

        Raises:
            UserError: naming the first setting that does not.
        """
        saved = self.config
        if task not in (None, saved.task):
            raise UserError(
                f"{self.path} is a run of 'fewshot-mcl {COMMANDS[saved.task]}': continue it with that command."
            )
        old = saved.flat()
        for name, value in resolve(config, options, settings, base=saved, task=saved.task).flat().items():
            if value != old[name]:
                raise UserError(
                    f"{name} = {value}, but the run {self.path} has {name} = {old[name]}, and a resumed run keeps its settings. "
                    f"Leave it out, or start a new run: --config {self.path / 'config.toml'} with another --out."
                )
        return saved

    def note_command(self) -> None:
        """Append the command line of this process to command.txt."""
        with _append(self.path / "command.txt") as file:
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
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] > SCHEMA:
                raise UserError(f"{path} was written by a newer fewshot-mcl: update this one to read it.")
            for key in keys:
                content[key]
            return content
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}. Put the file back, or start a new run.") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged ({error}). Put the file back from a copy, or start a new run."
            ) from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, atomically."""
        _write(self.path / name, (json.dumps({"schema": SCHEMA, **content}, indent=1) + "\n").encode())

    def save_checkpoint(self, name: str, tensors: Tensors, state: dict[str, Any]) -> None:
        """Make (`tensors`, `state`) the checkpoint `name`; until the very end the one before stays valid."""
        folder = self.path / "checkpoints"
        file = f"{name}-{state[self.config.unit]:08d}.safetensors"
        manifest = {"file": file, "sha256": _write_tensors(folder / file, tensors), **state}
        self.write_json(f"checkpoints/{name}.json", manifest)
        for old in folder.glob(f"{name}-*.safetensors"):
            if old.name != file:
                old.unlink()

    def load_checkpoint(self, name: str) -> tuple[StoredTensors, dict[str, Any]]:
        """Tensors and state of the checkpoint `name` ("last", "best", "after-N"); `state[config.unit]` are the steps done.

        Raises:
            UserError: if there is none, or a file is damaged.
        """
        if not (self.path / "checkpoints" / f"{name}.json").exists():
            raise UserError(
                f"{self.path} has no checkpoint '{name}': it was stopped before its first one. Start a new run: "
                f"--config {self.path / 'config.toml'} with another --out."
            )
        state = self.read_json(
            f"checkpoints/{name}.json", "file", "sha256", self.config.unit, *STATE.get(name, ("val",))
        )
        path = self.path / "checkpoints" / Path(str(state["file"])).name
        return _read_tensors(path, state["sha256"], f"{name}.json", self._instead(name)), state

    def _instead(self, name: str) -> str:
        """What is left to a user whose checkpoint `name` is lost."""
        other = "best" if name == "last" else "last"
        usable = (self.path / "checkpoints" / f"{other}.json").exists()
        advice = f", evaluate the other one (--checkpoint {other})" if usable else ""
        return f"Put the file back from a copy{advice}, or start a new run."

    def save_model(self, tensors: Tensors, card: dict[str, Any]) -> None:
        """Write the deployed network by itself."""
        sha256 = _write_tensors(self.path / "model.safetensors", tensors)
        self.write_json("model.json", {"sha256": sha256, **card})

    def load_model(self) -> tuple[StoredTensors, dict[str, Any]]:
        """The deployed network's tensors, and model.json.

        Raises:
            UserError: if training has not finished, or a file is damaged.
        """
        if not (self.path / "model.json").exists():
            raise UserError(f"{self.path} has no deployed network: finish its training, --out {self.path} --resume.")
        keys = ("sha256", "backbone", "in_channels", "image_size", "mean", "std")
        card, again = self.read_json("model.json", *keys), "Put the file back from a copy, or start a new run."
        return _read_tensors(self.path / "model.safetensors", card["sha256"], "model.json", again), card

    def save_evaluation(self, content: dict[str, Any], attachments: dict[str, bytes] | None = None) -> Path:
        """Keep an evaluation under the next free number, and beside it `attachments` as evaluation-NNN-NAME."""
        folder = self.path / "evaluations"
        try:
            folder.mkdir(exist_ok=True)
            for number in itertools.count(1):
                path = folder / f"evaluation-{number:03d}.json"
                with contextlib.suppress(FileExistsError):
                    path.touch(exist_ok=False)  # the number is ours, whoever else evaluates this run just now
                    break
        except OSError as error:
            raise UserError(
                f"cannot keep the evaluation in {folder}: {error.strerror}. Nothing was changed."
            ) from error
        for name, data in (attachments or {}).items():
            _write(folder / f"{path.stem}-{name}", data)
        self.write_json(f"evaluations/{path.name}", content)
        return path

    def keep_metrics_until(self, step: int) -> None:
        """Drop the rows after `step`, and half a row: a resumed run writes them again."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return
        header, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        good = [row for row in rows if row.endswith("\n") and int(row.partition(",")[0]) <= step]
        if good != rows:
            _write(path, "".join([header, *good]).encode())

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.csv. The first row fixes the columns."""
        path = self.path / "metrics.csv"
        new = not path.exists()
        if new:
            self._columns = list(row)
        elif not self._columns:
            with path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file))
        with _append(path) as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


def _read_tensors(path: Path, sha256: str, manifest: str, advice: str) -> StoredTensors:
    """The tensors of a safetensors file that must be the one its manifest names."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. {advice}") from error
    if found != sha256:
        raise UserError(f"{path} is damaged or cut short: its SHA-256 is not the one in {manifest}. {advice}")
    try:
        return StoredTensors(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a valid safetensors file ({error}). {advice}") from error


def _write_tensors(path: Path, tensors: Tensors) -> str:
    """Write a safetensors file, straight from the tensors' memory (the library makes copies), and give its SHA-256."""
    ready = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    header, end = {}, 0
    for key in sorted(ready, key=lambda key: -ready[key].itemsize):  # so that all of them are aligned
        value, start = ready[key], end
        end += value.nbytes
        header[key] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts = [ready[key].view(-1).view(torch.uint8).numpy().data for key in header]
    return _write(path, len(text).to_bytes(8, "little"), text, *parts)


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
    return next(root / name for name in names if not (root / name).exists())


@contextlib.contextmanager
def _append(path: Path) -> Iterator[TextIO]:
    """A text file, open for appending."""
    try:
        with path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. The last checkpoint is intact.") from error


def _write(path: Path, *parts: bytes | memoryview) -> str:
    """Write through a temporary file, so that no reader ever sees half of it; the SHA-256 of what was written."""
    temporary, digest = path.with_name(path.name + ".partial"), hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}. What was saved before is intact.") from error
    return digest.hexdigest()
