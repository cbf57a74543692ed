"""Folders with files of vitrail and of the user; a marker file lists vitrail's.

Only listed files are ever replaced or deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import UserError
from .files import inside, read_json, write_whole
from .plain import from_dict

#: name of the marker; a folder without it has no files of vitrail
MARKER = ".vitrail-run"
#: subfolder for temporary files
STAGE = ".vitrail-new"
#: version of the marker's format
FORMAT = 1


@dataclass
class Marker:
    """Content of a marker file.

    Attributes:
        format: version of its format.
        written: paths of vitrail's files below the folder, with slashes.
    """

    format: int = FORMAT
    written: list[str] = field(default_factory=list)


class OwnedFolder:
    """A folder with a list of vitrail's files in it.

    Args:
        path: created when the first file is claimed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._written: set[str] | None = None

    @property
    def marked(self) -> bool:
        """True if it has a marker."""
        return (self.path / MARKER).is_file()

    @property
    def written(self) -> set[str]:
        """Paths of vitrail's files, with slashes; empty without a marker.

        Raises:
            UserError: the marker is damaged or of a later version.
        """
        if self._written is None:
            self._written = self._read() if self.marked else set()
        return self._written

    def _read(self) -> set[str]:
        file = self.path / MARKER
        try:
            marker = from_dict(Marker, read_json(file))
            if marker.format != FORMAT:
                raise UserError(f"its format is {marker.format}, not {FORMAT}.")
            return {name for name in marker.written if inside(self.path, name, str(file))}
        except UserError as error:
            raise UserError(
                f"{file}, the list of the files that are vitrail's, cannot be used, so that nothing there is "
                f"replaced: {error}"
            ) from error

    def foreign(self, names: Iterable[str]) -> list[str]:
        """The `names` that exist and are not vitrail's files."""
        return [name for name in names if name not in self.written and os.path.lexists(self.path / name)]

    def claim(self, names: Iterable[str]) -> None:
        """List files in the marker before they are written.

        Raises:
            UserError: one of them exists and is not vitrail's, or leads out of the folder by a link.
            OSError: the marker cannot be written.
        """
        names = list(names)
        for name in names:
            inside(self.path, name, "a file of the run", writing=True)
        if taken := self.foreign(names):
            raise UserError(
                f"{self.path / taken[0]} was not written by vitrail and is not replaced: move it away or choose "
                "another --output."
            )
        self.adopt(names)

    def adopt(self, names: Iterable[str]) -> None:
        """List existing files in the marker, such as those that another library wrote."""
        if new := set(names) - self.written:
            self._list(self.written | new)

    def _list(self, names: set[str]) -> None:
        write_whole(self.path / MARKER, json.dumps(asdict(Marker(written=sorted(names))), indent=1) + "\n")
        self._written = names

    @contextlib.contextmanager
    def adding(self) -> Iterator[tuple[Path, list[str]]]:
        """A temporary folder, whose files are listed and then moved into this one.

        Yields:
            The temporary folder, and a list to which the names of files are added that were not moved, since files of
            these names exist that are not vitrail's.
        """
        stage, kept = self.path / STAGE, []
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        try:
            yield stage, kept
            names = [path.relative_to(stage).as_posix() for path in sorted(stage.rglob("*")) if path.is_file()]
            kept += self.foreign(names)
            names = [name for name in names if name not in kept]
            self.claim(names)
            for name in names:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(stage / name, self.path / name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def clear(self) -> None:
        """Delete vitrail's files, folders that become empty, and the marker; nothing else."""
        folders: set[Path] = set()
        for name in self.written:
            with contextlib.suppress(
                UserError, OSError
            ):  # outside of the folder by a link, gone already, or a folder now
                file = inside(self.path, name, str(self.path), writing=True)
                folders |= {parent for parent in file.parents if self.path in parent.parents}
                file.with_name(f".{file.name}.new").unlink(missing_ok=True)  # of an interrupted write
                file.unlink()
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # it holds files of the user
                folder.rmdir()
        shutil.rmtree(self.path / STAGE, ignore_errors=True)
        (self.path / MARKER).unlink(missing_ok=True)
        self._written = None
