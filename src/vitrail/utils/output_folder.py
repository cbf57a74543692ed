"""Output folder of a command, which replaces only files that vitrail wrote.

Every room may import this module; it imports only `errors` and `files`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import inside, parse_json, read_text, saving

#: list of the written files, one JSON object a line: name and sha256 of the content
LIST = ".vitrail-files.jsonl"

#: endings of names that mean a file and no folder
FILE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pdf", ".csv", ".json", ".html")


class OutputFolder:
    """An output folder, created with the first file.

    A file may be replaced if the folder's list says that it was written here and its content is still the same. Links
    are never written through.

    Args:
        path: of the folder.
        option: the command-line option that names it.
        inputs: input files, which are never replaced.

    Raises:
        UserError: the path is not a folder, or its list cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], option: str, inputs: Iterable[str | os.PathLike[str]] = ()):
        self.path, self.option = Path(path), option
        if not os.fspath(path).strip():
            raise UserError(f"{option} '' names no folder.")
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UserError(f"{option} {self.path} is not a folder: it is never written over, choose another name.")
        if self.path.suffix.lower() in FILE_ENDINGS and not os.path.lexists(self.path):
            raise UserError(
                f"{option} {self.path} names a file, but a folder is written: give {option} {self.path.stem}."
            )
        self.inputs = {identity for identity in map(identity, inputs) if identity is not None}
        self.written = self._read_list()

    def _read_list(self) -> dict[str, set[str]]:
        file = self.path / LIST
        if not os.path.lexists(file):
            return {}
        if file.is_symlink():
            raise UserError(f"{file} is a link: the list of the files written there is never written through one.")
        written: dict[str, set[str]] = {}
        for record in map(_record, read_text(file).splitlines()):
            if record is not None:
                written.setdefault(record[0], set()).add(record[1])
        return written

    def wrote(self, name: str) -> bool:
        """True if the file of that name, relative to the folder, was written here and is unchanged."""
        path, digests = self.path / name, self.written.get(name, ())
        return bool(digests) and path.is_file() and not path.is_symlink() and _digest(path) in digests

    def check(self, names: Iterable[str]) -> None:
        """Raise `UserError` for the first file, relative to the folder, that must not be written."""
        for name in names:
            target = inside(self.path, name, self.option, writing=True)
            if not os.path.lexists(target):
                continue
            if identity(target) in self.inputs:
                raise UserError(f"{self.option} {self.path}: {target} is read by this command, and never written over.")
            if not self.wrote(name):
                raise UserError(
                    f"{self.option} {self.path}: {target} was there before, or was changed since vitrail wrote it, and "
                    "is never written over: choose another folder."
                )

    def discard(self, names: Iterable[str]) -> None:
        """Delete those of these files, relative to the folder, that were written here and are unchanged."""
        for name in names:
            target = inside(self.path, name, self.option, writing=True)
            if self.wrote(name):
                target.unlink()

    @contextmanager
    def adding(self) -> Iterator[Path]:
        """A temporary folder; its files are moved into this folder at the end, all or none.

        Raises:
            UserError: a file must not be written, or the disk is full.
        """
        with saving(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".vitrail-new-", dir=self.path))
            try:
                yield fresh
                self._take(fresh)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    def _take(self, fresh: Path) -> None:
        names = sorted(path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file())
        self.check(names)
        digests = {name: _digest(fresh / name) for name in names}
        # listed first: a listed file that is missing does no harm, an unlisted file blocks the next call
        with open(self.path / LIST, "a", encoding="ascii") as file:
            file.writelines(json.dumps({"name": name, "sha256": digest}) + "\n" for name, digest in digests.items())
        for name in names:
            self.written.setdefault(name, set()).add(digests[name])
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(fresh / name, self.path / name)


def _record(line: str) -> tuple[str, str] | None:
    """Name and sha256 of a line of the list; None for a damaged line, whose file is then never replaced."""
    try:
        record: Any = parse_json(line, LIST)
        name, digest = record["name"], record["sha256"]
    except (UserError, KeyError, TypeError):
        return None
    return (name, digest) if isinstance(name, str) and isinstance(digest, str) else None


def identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
