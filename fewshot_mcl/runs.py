"""The run directory: everything needed to repeat, resume or use a run, in files that no program need be trusted to read.

config.toml         the resolved configuration, itself a valid --config
command.txt         the command lines that made it, one a line
environment.json    versions and machine
data.json           fingerprints and class names of the splits it was trained and validated on
metrics.csv         one row every few episodes
checkpoints/        last.json and best.json, each naming a safetensors file and its SHA-256
model.safetensors   the deployed network by itself, with model.json
evaluations/        one JSON file an evaluation
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fewshot_mcl import __version__
from fewshot_mcl.config import Config, resolve
from fewshot_mcl.errors import UserError

SCHEMA = 1
Tensors = dict[str, Tensor]


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
        if path.exists():
            raise UserError(f"{path} exists. Choose another --out, or continue that run: --out {path} --resume.")
        try:
            (path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot make the run directory {path}: {error.strerror}.") from error
        run = cls(path)
        _write(path / "config.toml", config.to_toml().encode())
        run.write_json("environment.json", environment())
        run.write_json("data.json", data)
        run.note_command()
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run directory.

        Raises:
            UserError: if there is none.
        """
        if not (path / "config.toml").is_file():
            what = "is not a run directory (it has no config.toml)" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}. A run directory is what 'fewshot-mcl train' prints when it starts.")
        return cls(path)

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return resolve(str(self.path / "config.toml"))

    def note_command(self) -> None:
        """Append the command line of this process to command.txt."""
        with (self.path / "command.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join(["fewshot-mcl", *sys.argv[1:]]) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run.

        Raises:
            UserError: if it is missing or damaged.
        """
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if content["schema"] > SCHEMA:
                raise UserError(f"{self.path / name} was written by a newer fewshot-mcl: update this one to read it.")
            return content
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read {self.path / name}: {error}.") from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, atomically."""
        _write(self.path / name, (json.dumps({"schema": SCHEMA, **content}, indent=1) + "\n").encode())

    def save_checkpoint(self, name: str, tensors: Tensors, state: dict[str, Any]) -> None:
        """Make (`tensors`, `state`) the checkpoint `name`; until the very end the one before stays valid."""
        data = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        folder = self.path / "checkpoints"
        file = f"{name}-{state['episode']:08d}.safetensors"
        _write(folder / file, data)
        manifest = {"file": file, "sha256": hashlib.sha256(data).hexdigest(), **state}
        self.write_json(f"checkpoints/{name}.json", manifest)
        for old in folder.glob(f"{name}-*.safetensors"):
            if old.name != file:
                old.unlink()

    def load_checkpoint(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """Tensors and state of the checkpoint `name` ("last" or "best").

        Raises:
            UserError: if there is none, or a file is damaged.
        """
        if not (self.path / "checkpoints" / f"{name}.json").exists():
            raise UserError(f"{self.path} has no checkpoint '{name}' yet: it was stopped before its first one.")
        state = self.read_json(f"checkpoints/{name}.json")
        path = self.path / "checkpoints" / Path(str(state.get("file"))).name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the checkpoint {path}: {error.strerror}.") from error
        if hashlib.sha256(data).hexdigest() != state.get("sha256"):
            raise UserError(
                f"the checkpoint {path} is damaged or incomplete: its SHA-256 is not the one in {name}.json."
            )
        try:
            return load_tensors(data), state
        except SafetensorError as error:
            raise UserError(f"the checkpoint {path} is not a valid safetensors file: {error}.") from error

    def save_model(self, tensors: Tensors, card: dict[str, Any]) -> None:
        """Write the deployed network by itself."""
        data = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        _write(self.path / "model.safetensors", data)
        self.write_json("model.json", {"sha256": hashlib.sha256(data).hexdigest(), **card})

    def save_evaluation(self, content: dict[str, Any]) -> Path:
        """Keep an evaluation under the next free number."""
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        number = 1 + max((int(p.stem.rpartition("-")[2]) for p in folder.glob("evaluation-*.json")), default=0)
        name = f"evaluations/evaluation-{number:03d}.json"
        self.write_json(name, content)
        return self.path / name

    def keep_metrics_until(self, episode: int) -> None:
        """Drop the rows after `episode`: a resumed run writes them again."""
        path = self.path / "metrics.csv"
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row["episode"] and int(row["episode"]) <= episode]
            path.unlink()
            for row in rows:
                self.append_metrics(row)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.csv. The first row fixes the columns."""
        path = self.path / "metrics.csv"
        new = not path.exists()
        if new:
            self._columns = list(row)
        elif not self._columns:
            with path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file))
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


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
    stem = f"{Path(config.data).name}-{config.method}-{config.way}way-{config.shot}shot-seed{config.seed}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 10**6))
    return next(root / name for name in names if not (root / name).exists())


def _write(path: Path, data: bytes) -> None:
    """Write through a temporary file, so that no reader ever sees half of it."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}. What was saved before is intact.") from error
