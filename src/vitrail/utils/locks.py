"""Lock file of a folder: one process at a time; locks of processes that have ended are ignored."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import UserError, printable
from .files import parse_json
from .plain import from_dict

try:
    import fcntl
except ImportError:  # Windows: two processes that start in the same millisecond are then not told apart
    fcntl = None

#: name of the lock in its folder
LOCK = ".vitrail-lock"
#: largest number of bytes read from it
MAX_LOCK = 1 << 16


@dataclass
class Holder:
    """Identity of a process that holds a lock.

    Attributes:
        pid: its process id.
        host: name of its machine.
        started: its start time in clock ticks since boot, since process ids are reused.
        boot: id of the machine's boot.
        space: its PID namespace (containers have their own).
        since: time at which it took the lock.
        inode: inode of the lock file, so that a copy of the folder is not locked.
    """

    pid: int
    host: str
    started: str | None = None
    boot: str | None = None
    space: str | None = None
    since: str = ""
    inode: int = 0

    def same_space(self, other: Holder) -> bool:
        """True if both processes run in the same PID namespace of the same machine."""
        return (self.host, self.space) == (other.host, other.space)


def this_process() -> Holder:
    """The current process."""
    space = None
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return Holder(
        pid=os.getpid(), host=platform.node(), started=started_at(os.getpid()), boot=_boot(), space=space, since=now
    )


def started_at(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if the process is gone or that is unknown."""
    try:
        # the name, in brackets, may contain anything; the 20th field after it is the start time (man 5 proc)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _boot() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return None


def is_gone(holder: Holder) -> bool:
    """True if a process of this machine has ended."""
    if holder.boot != _boot():
        return True
    if fcntl is None:
        return False  # on Windows, os.kill would end the process
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # a process of another user runs; an invalid number does not
        return holder.pid <= 0 or holder.pid > 1 << 31
    return holder.started is not None and started_at(holder.pid) != holder.started


class Lock:
    """The lock of a folder.

    Args:
        folder: made before the lock is taken.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self._mine: Holder | None = None

    def check(self) -> None:
        """Raise an error if another process holds the lock; changes nothing.

        Raises:
            UserError: another process works on the folder, or perhaps does.
        """
        if self._mine is None:
            with contextlib.suppress(OSError), open(self._opened(os.O_RDONLY), "rb") as file:
                self._refuse(file.fileno())

    def take(self) -> None:
        """Take the lock, also one left by a process that has ended.

        Raises:
            UserError: another process has it, or perhaps has.
            OSError: the file cannot be written.
        """
        if self._mine is not None:
            return
        me = this_process()
        with self._alone() as file:
            self._refuse(file)
            me.inode = os.fstat(file).st_ino
            os.lseek(file, 0, os.SEEK_SET)
            os.ftruncate(file, 0)
            os.write(file, json.dumps(asdict(me)).encode())
        self._mine = me

    def release(self) -> None:
        """Release the lock if this process holds it."""
        if self._mine is None or self._mine.pid != os.getpid():  # a forked worker does not hold it
            return
        with contextlib.suppress(OSError, UserError), self._alone() as file:
            if self._holder(file) == self._mine:
                self.path.unlink()
        self._mine = None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        """The opened lock file, with exclusive access among our processes."""
        while True:
            file = self._opened(os.O_RDWR | os.O_CREAT)
            try:
                if fcntl is not None:
                    with contextlib.suppress(OSError):  # a file system without such locks
                        fcntl.flock(file, fcntl.LOCK_EX)
                if not self._is_current(file):  # released, and perhaps created again, while we waited
                    continue
                yield file
                return
            finally:
                os.close(file)

    def _opened(self, flags: int) -> int:
        """Open the lock file; links and special files are refused, so that nothing is written through them.

        Raises:
            UserError: it is a link, a pipe, a folder or a device.
            OSError: it cannot be opened.
        """
        if os.path.lexists(self.path) and (self.path.is_symlink() or not self.path.is_file()):
            raise UserError(f"{self.path} is no regular file: delete it or choose another --output.")
        return os.open(self.path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _holder(self, file: int) -> Holder | None:
        """The process that holds the lock; None if the file is empty or a copy."""
        content = os.read(file, MAX_LOCK)
        holder = from_dict(Holder, parse_json(content, str(self.path)), "") if content.strip() else None
        return holder if holder is not None and holder.inode == os.fstat(file).st_ino else None

    def _refuse(self, file: int) -> None:
        try:
            holder = self._holder(file)
        except UserError as error:
            raise UserError(
                f"{self.path}, which says who works on {self.folder}, is damaged: if no process does, delete it."
            ) from error
        if holder is None:
            return
        who = f"process {holder.pid} on {printable(holder.host)[:80]} since {printable(holder.since)[:40]}"
        if not holder.same_space(this_process()):
            raise UserError(
                f"{self.folder} is worked on by {who}, which cannot be seen from here: if it has ended, delete "
                f"{self.path}; else choose another --output."
            )
        if not is_gone(holder):
            raise UserError(f"{self.folder} is worked on by {who}: wait for it, stop it or choose another --output.")
