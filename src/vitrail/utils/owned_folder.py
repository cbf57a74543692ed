"""Folders that vitrail writes into and that may hold a user's files, too: a marker lists the files that are ours.

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

#: the marker; a folder without it holds nothing of ours
MARKER = ".vitrail-run"
#: where files are made before they are put in their places
STAGE = ".vitrail-new"
#: of the marker's layout
FORMAT = 1


@dataclass
class Marker:
    """Content of a marker file.

    Attributes:
        format: of its layout.
        written: paths of our files below the folder, with slashes.
    """

    format: int = FORMAT
    written: list[str] = field(default_factory=list)


class OwnedFolder:
    """A folder with a list of the files in it that are ours.

    Args:
        path: made when the first file is claimed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._written: set[str] | None = None

    @property
    def marked(self) -> bool:
        """True if it holds, or is about to hold, files of ours."""
        return (self.path / MARKER).is_file()

    @property
    def written(self) -> set[str]:
        """Paths of our files, with slashes; empty without a marker.

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
        """The `names` that exist here and are not ours."""
        return [name for name in names if name not in self.written and os.path.lexists(self.path / name)]

    def claim(self, names: Iterable[str]) -> None:
        """List files as ours before they are written.

        Raises:
            UserError: one of them exists and is not ours, or lies outside the folder by a link.
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
        """List files that exist as ours: those of a run that an earlier version began, or that a library named."""
        if new := set(names) - self.written:
            self._list(self.written | new)

    def _list(self, names: set[str]) -> None:
        write_whole(self.path / MARKER, json.dumps(asdict(Marker(written=sorted(names))), indent=1) + "\n")
        self._written = names

    @contextlib.contextmanager
    def adding(self) -> Iterator[tuple[Path, list[str]]]:
        """An empty folder to make files in, which then become the folder's own, each listed before it takes its place.

        Yields:
            The folder, and a list that holds in the end the names of files that were left out, since files of those
            names are there that are not ours.
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
        """Delete our files, the folders that are empty then, and the marker; nothing else."""
        folders: set[Path] = set()
        for name in self.written:
            with contextlib.suppress(UserError, OSError):  # out of the folder by a link, gone already, or a folder now
                file = inside(self.path, name, str(self.path), writing=True)
                folders |= {parent for parent in file.parents if self.path in parent.parents}
                file.with_name(f".{file.name}.new").unlink(missing_ok=True)  # of a write that was cut off
                file.unlink()
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # it holds files of the user's
                folder.rmdir()
        shutil.rmtree(self.path / STAGE, ignore_errors=True)
        (self.path / MARKER).unlink(missing_ok=True)
        self._written = None
