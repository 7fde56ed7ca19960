"""What every part of a run reads: the directory's configuration, and its JSON files."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from fewshot_mcl.config import Config, resolve
from fewshot_mcl.errors import DamagedError, UserError
from fewshot_mcl.runs import files

CONFIG = "config sha256"  # of config.toml, in data.json; runs of older versions have none


class Directory:
    """The directory of a run, and what was found damaged in it.

    Attributes:
        path: of the directory.
        notes: what was found damaged, and what was used instead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []

    @cached_property
    def config(self) -> Config:
        """The run's configuration.

        Raises:
            UserError: if it is not as the run wrote it, or of a newer version.
        """
        self._own_data()
        path = self.path / "config.toml"
        try:
            return resolve(str(path))
        except UserError as error:
            wrong = str(error) if str(path) in str(error) else f"{path}: {error}"
            raise DamagedError(wrong.rstrip("."), "Put the file back as the run wrote it.") from error

    def data(self, split: str) -> dict[str, Any]:
        """What data.json says of a split.

        Raises:
            UserError: if it is missing or damaged, or config.toml is not the one it belongs to.
        """
        return self._own_data(split)[split]

    def _own_data(self, *keys: str) -> dict[str, Any]:
        """data.json, which must have `keys` and belong to config.toml."""
        content, path = self.read_json("data.json", *keys), self.path / "config.toml"
        known = content.get(CONFIG)
        if known and hashlib.sha256(files.read(path)).hexdigest() != known:
            raise DamagedError(
                f"{path} was changed, or data.json beside it: they do not belong together",
                "Put the files back as they were.",
            )
        return content

    def read_json(self, name: str, *keys: str) -> dict[str, Any]:
        """A JSON file of the run, which must have `keys`.

        Raises:
            UserError: if it is missing or damaged.
        """
        return files.read_json(self.path / name, *keys)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, atomically."""
        files.write_json(self.path / name, content)
