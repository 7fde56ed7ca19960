"""Checkpoints of a run: a manifest that names a safetensors file and its SHA-256, and the one before it as NAME.previous.json."""

from __future__ import annotations

import hashlib
import os
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

from fewshot_mcl.config import COMMANDS
from fewshot_mcl.errors import DamagedError, PartedError, UserError
from fewshot_mcl.resources import program
from fewshot_mcl.runs import files
from fewshot_mcl.runs.directory import Directory
from fewshot_mcl.runs.tensors import StoredTensors, Written, read_tensors, write_tensors

STATE = {"last": ("best", "seconds")}  # what a checkpoint says beside its step; all but the last say how good they are
FIXED = ("config.toml", "data.json")  # files that belong to every checkpoint of a run


class Checkpoints(Directory):
    """The directory of a run with its checkpoints, and with the metrics up to each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._damaged: set[str] = set()  # checkpoints for which the one before had to be used

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

        What is damaged or not this checkpoint's, or is of the same step again, takes the place of no good one.
        """
        current, before = f"{name}.json", f"{name}.previous.json"
        named = self._named(name, current)
        if named in (None, file) or name in self._damaged:
            return self._named(name, before)
        files.write(self._path(before), files.read(self._path(current)))
        return named

    def _named(self, name: str, manifest: str) -> str | None:
        """The tensors' file that a manifest names; None where the manifest is damaged or not this checkpoint's."""
        try:
            return str(self._manifest(name, manifest)["file"])
        except PartedError:
            return None

    def has_begun(self) -> bool:
        """Whether there is a checkpoint to go on from, damaged or not; the best one is saved before the first of these."""
        return any(self.path.glob("checkpoints/last*.json"))

    def has_checkpoint(self, name: str) -> bool:
        """Whether there is one of that name."""
        return self._path(f"{name}.json").exists()

    def load_checkpoint(self, name: str, with_metrics: bool = False) -> tuple[StoredTensors, dict[str, Any]]:
        """Tensors and state of the checkpoint `name` ("last", "best", "after-N"); `state[config.unit]` are the steps done.

        Where it is damaged, the one before it is loaded, and `notes` says so.

        Args:
            name: of the checkpoint.
            with_metrics: whether the metrics up to it must be as they were, too.

        Raises:
            UserError: if there is none, or none that is not damaged.
        """
        if not any(self.has_checkpoint(which) for which in (name, f"{name}.previous")):
            raise UserError(
                f"{self.path} has no checkpoint '{name}' (checkpoints/{name}.json): it was stopped before its first one. Train "
                f"it: {program()} {COMMANDS[self.config.task]} --out {shlex.quote(str(self.path))} --resume"
            )
        try:
            tensors, state = self._load(name, f"{name}.json", with_metrics)
            self._require_newer(name, state)
            return tensors, state
        except DamagedError as error:
            if not self.has_checkpoint(f"{name}.previous"):
                raise
            tensors, state = self._load(name, f"{name}.previous.json", with_metrics)
            step = f"{self.config.unit} {state[self.config.unit]}"
            self.notes.append(f"{error.what}: the checkpoint before it is used, of {step}")
            self._damaged.add(name)
            return tensors, state

    def _require_newer(self, name: str, state: dict[str, Any]) -> None:
        """Refuse a checkpoint that is older than the one before it: their files were exchanged.

        What else is wrong with the one before goes to `notes`, as far as it shows without reading its tensors.
        """
        unit, before = self.config.unit, self._path(f"{name}.previous.json")
        if not before.exists():
            return
        try:
            older = self._manifest(name, before.name)
            if not self._path(Path(str(older["file"])).name).is_file():
                raise DamagedError(f"{before} names a file that is missing, {older['file']!a}", "")
        except PartedError as error:
            self.notes.append(f"{error.what}: it is not needed, the checkpoint after it is sound")
            return
        if older[unit] > state[unit]:
            path = self._path(f"{name}.json")
            raise UserError(f"{path} is older than {before.name}: the two were exchanged. Put them back as they were.")

    def _load(self, name: str, manifest: str, with_metrics: bool) -> tuple[StoredTensors, dict[str, Any]]:
        path, advice = self._path(manifest), self._instead(name)
        state = self._manifest(name, manifest)
        if with_metrics and "metrics" in state:
            self._require_metrics(state["metrics"], advice)
        named = Path(str(state["file"])).name
        if named in ("", ".."):
            raise DamagedError(f"{path} is damaged: it names no file", advice)
        return read_tensors(path.with_name(named), state["sha256"], manifest, advice), state

    def _manifest(self, name: str, manifest: str) -> dict[str, Any]:
        """A manifest of the checkpoint `name`.

        Raises:
            DamagedError: if it is damaged, or of another checkpoint.
            PartedError: if it is of another run.
        """
        path = self._path(manifest)
        state = files.read_json(path)
        if state.get("checkpoint", name) != name:
            raise DamagedError(f"{path} is of the checkpoint '{state['checkpoint']}'", self._instead(name))
        for file, sha256 in _owner(state).items():
            if self._identity.get(file) != sha256:
                raise PartedError(
                    f"{path} belongs to another {file} than {self.path / file}, which was changed or comes from another run",
                    "Put the file back as it was.",
                )
        return files.read_json(path, "file", "sha256", self.config.unit, *STATE.get(name, ("val",)))

    def _path(self, name: str) -> Path:
        return self.path / "checkpoints" / name

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
        advice = f", evaluate the other one (--checkpoint {other})" if self.has_checkpoint(other) else ""
        return f"Put the file back from a copy{advice}, or start a new run."

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


def _owner(state: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that a checkpoint belongs to; none are known of runs of schema 1."""
    owner = state.get("belongs_to")
    return owner if isinstance(owner, dict) else {}
