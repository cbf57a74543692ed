"""A journal of results: one line a result, appended and never changed, from which stopped work goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..utils.files import saving

try:
    import fcntl
except ImportError:  # Windows: a second process of the same share is not noticed
    fcntl = None

#: the first line's key
KEY = "vitrail_journal"


class Journal:
    """Results in the order in which they came, each with the name it belongs to.

    A line is whole or, after a kill in the middle of a write, the last one: that one is cut off when the file is opened
    again. Of the names only eight bytes each are in memory.

    Args:
        file: of the journal; opened if it is there.
        settings: plain values on which the results depend, such as the weights' digest.

    Attributes:
        count: results that it holds.

    Raises:
        UserError: the file is no journal, is of other settings, or another process works on it.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]):
        self.file = file
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise UserError(f"{file} is no regular file: choose another --output.")
        with saving(file):
            self._stream = open(file, "a+b")  # noqa: SIM115 (open as long as the journal)
        try:
            self._lock()
            self._done = np.empty(0, np.uint64)
            self.count = 0
            self._open(dict(settings))
        except BaseException:
            self._stream.close()
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is writing {self.file}: wait for it, or choose another --output."
            ) from None
        except OSError:  # a file system without locks
            return

    def _open(self, settings: dict[str, Any]) -> None:
        if not self._stream.seek(0, os.SEEK_END):
            self._write({KEY: settings})
            return
        end, digests = 0, array("Q")
        for number, (place, line) in enumerate(self._lines()):
            end = place
            if number:
                digests.append(digest_of(line["path"]))
                continue
            found = line.get(KEY)
            if not isinstance(found, dict):
                raise UserError(f"{self.file} was not written by vitrail: choose another --output.")
            changed = [name for name in settings if found.get(name) != settings[name]]
            if changed:
                raise UserError(
                    f"{self.file} holds the beginning of a prediction with other settings ({', '.join(changed)}): "
                    "delete it to begin anew, or choose another --output."
                )
        if not end:
            self._stream.seek(0)
            if not self._stream.read(len(KEY) + 2).endswith(KEY.encode()):
                raise UserError(f"{self.file} was not written by vitrail: choose another --output.")
            self._stream.truncate(0)  # a kill within the first line
            self._write({KEY: settings})
            return
        self._stream.truncate(end)
        self.count = len(digests)
        self._done = np.sort(np.frombuffer(digests, np.uint64)) if digests else self._done

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The whole lines, each with the place of its end; up to the first that is damaged."""
        with open(self.file, "rb") as file:
            end = 0
            for raw in file:
                end += len(raw)
                line = None
                with contextlib.suppress(ValueError, RecursionError):
                    line = json.loads(raw)
                if not raw.endswith(b"\n") or not isinstance(line, dict) or not ("path" in line or KEY in line):
                    return
                yield end, line

    def __contains__(self, path: str) -> bool:
        """True if the journal held the result of this name when it was opened."""
        digest = np.uint64(digest_of(path))
        place = int(np.searchsorted(self._done, digest))
        return place < len(self._done) and bool(self._done[place] == digest)

    def add(self, path: str, error: str | None, record: Any) -> None:
        """Append a result; it is in the file when this returns.

        Args:
            path: the name it belongs to.
            error: why there is none.
            record: plain values.
        """
        self._write({"path": path, "error": error, "record": record})
        self.count += 1

    def _write(self, line: dict[str, Any]) -> None:
        with saving(self.file, "free some space and repeat the command, which goes on from here."):
            self._stream.write(json.dumps(line).encode() + b"\n")
            self._stream.flush()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every result: path, error, record."""
        lines = self._lines()
        next(lines)
        return (line for _, line in lines)

    def close(self) -> None:
        """Close the file, which stays."""
        self._stream.close()


def digest_of(name: str) -> int:
    """Eight bytes that stand for a name: of ten million names, two are alike in one of 300,000 cases."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")
