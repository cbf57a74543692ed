"""Claims on shared work: any number of processes and machines divide the runs of one folder among themselves.

A claim is a file that only one process can create. It names its process, and its time of change is renewed while that
process lives. The claim of a dead process is taken over by creating the next number of the same name, which again only
one process can do, so that no lock of the file system is needed:

    claims/NAME.0    the first process
    claims/NAME.1    the one that took over from it
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import UserError
from ..utils.files import parse_json
from ..utils.locks import MAX_LOCK, Holder, is_gone, this_process
from ..utils.plain import from_dict

#: seconds between two signs of life
BEAT = 20.0
#: seconds without one after which a process on another machine is taken for dead
STALE = 300.0


@dataclass
class Owner(Holder):
    """The process that holds a claim.

    Attributes:
        released: it has given the claim back.
    """

    released: bool = False


class Claim:
    """A claim that this process holds; as a context manager it is given back at the end.

    Args:
        file: of the claim.
        owner: this process.
        elsewhere: the process it was taken over from is not of this machine, or cannot be seen from here.

    Attributes:
        lost: another process took this one for dead, as it gave no sign of life for too long (a suspended laptop).
    """

    def __init__(self, file: Path, owner: Owner, elsewhere: bool = False):
        self.file, self.owner, self.elsewhere = file, owner, elsewhere
        self.lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):  # a full disk: it then ends with this process
                _write(self.file, Owner(**{**asdict(self.owner), "released": True}), os.O_TRUNC)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self.renew()

    def renew(self) -> None:
        """Give a sign of life, and learn whether another process has taken over."""
        stem, number = _split(self.file.name)
        self.lost = self.lost or (self.file.parent / f"{stem}.{number + 1}").exists()
        with contextlib.suppress(OSError):
            os.utime(self.file)


class Claims:
    """The claims of a folder.

    Args:
        folder: made with the first claim.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def take(self, name: str) -> Claim | None:
        """The claim of a name, also one left by a process that has ended; None if a process that lives holds it.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        last = max(self._numbers(name), default=-1)
        held = self.folder / f"{name}.{last}"
        owner = None if last < 0 else _owner(held)
        if last >= 0 and self._lives(held, owner):
            return None
        me = Owner(**asdict(this_process()))
        file = self.folder / f"{name}.{last + 1}"
        try:
            me.inode = _write(file, me, os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # another process was faster
            return None
        return Claim(file, me, elsewhere=owner is not None and not owner.same_space(me))

    def drop(self, name: str) -> None:
        """Delete all claims of a name, whose work is done."""
        for number in self._numbers(name):
            (self.folder / f"{name}.{number}").unlink(missing_ok=True)

    def holder(self, name: str) -> Owner | None:
        """The living process that holds the claim of a name."""
        last = max(self._numbers(name), default=-1)
        held = self.folder / f"{name}.{last}"
        owner = None if last < 0 else _owner(held)
        return owner if last >= 0 and self._lives(held, owner) else None

    def _numbers(self, name: str) -> list[int]:
        if not self.folder.is_dir():
            return []
        pattern = re.compile(re.escape(name) + r"\.(\d{1,9})")
        return [int(found[1]) for file in os.listdir(self.folder) if (found := pattern.fullmatch(file))]

    def _lives(self, file: Path, owner: Owner | None) -> bool:
        try:
            status = file.stat()
        except FileNotFoundError:  # its work was done a moment ago
            return True
        if owner is None:  # it is being written, or was not written to the end
            return self._now() - status.st_mtime < STALE
        if owner.released or owner.inode not in (0, status.st_ino):  # the second: a copy of the folder
            return False
        if owner.same_space(this_process()):
            return not is_gone(owner)
        return self._now() - status.st_mtime < STALE

    def _now(self) -> float:
        """The time by the clock of the file system, which may be another machine's."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(b".")
            file.flush()
            return os.fstat(file.fileno()).st_mtime


def _split(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition(".")
    return stem, int(number)


def _write(file: Path, owner: Owner, flags: int) -> int:
    """Write who holds a claim; returns the file's inode."""
    handle = os.open(file, os.O_WRONLY | flags | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        inode = os.fstat(handle).st_ino
        os.write(handle, json.dumps({**asdict(owner), "inode": inode}).encode())
        os.fsync(handle)
        return inode
    finally:
        os.close(handle)


def _owner(file: Path) -> Owner | None:
    """Who holds a claim; None where that cannot be read (yet)."""
    try:
        with open(file, "rb") as handle:
            return from_dict(Owner, parse_json(handle.read(MAX_LOCK), str(file)))
    except (OSError, UserError):
        return None
