"""Image files in a zip, by folder, read where they are: nothing is unpacked to disk."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fewshot_mcl.data.images import LARGEST, SUFFIXES
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError

MOST_FILES = 1 << 18  # in a zip; CIFAR-100 as images has 60,000


class Member(NamedTuple):
    """An image file in a zip. Like a path, it has a name and is read by `read_bytes`."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    @property
    def name(self) -> str:
        return PurePosixPath(self.info.filename).name

    def read_bytes(self) -> bytes:
        """The content. Raises `OSError` where it is damaged, or unpacks to more than an image file may have."""
        try:
            with self.archive.open(self.info) as file:
                content = file.read(LARGEST + 1)
        except Exception as error:  # damage shows as nearly every kind of exception
            raise OSError(f"damaged in its archive: {error}") from error
        if len(content) > LARGEST:
            raise OSError(f"more than {LARGEST >> 20} MB")
        return content


def zip_folders(path: Path) -> dict[PurePosixPath, list[Member]]:
    """The image files of every folder in a zip, sorted by name; folders that hold none, and hidden files, are left out.

    Raises:
        UserError: where it is no zip, or a damaged one.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # as above
        raise UserError(
            f"{printable(path)} cannot be read as a zip archive ({printable(error)[:200]}): fetch it again, or give the "
            "folder it unpacks to."
        ) from error
    infos = archive.infolist()
    if len(infos) > MOST_FILES:
        raise UserError(f"{printable(path)} holds {len(infos):,} files, more than the {MOST_FILES:,} that are read.")
    folders: dict[PurePosixPath, list[Member]] = {}
    for info in sorted(infos, key=lambda each: each.filename):
        name = PurePosixPath(info.filename)
        hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
        if not info.is_dir() and not hidden and name.name.lower().endswith(SUFFIXES):
            folders.setdefault(name.parent, []).append(Member(archive, info))
    return folders
