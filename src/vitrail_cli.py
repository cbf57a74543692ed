"""The `vitrail` command's front door: answers --help and --version at once, imports the library only for work.

It stands outside the package because importing `vitrail` imports torch and timm, which takes seconds.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from importlib import metadata
from itertools import dropwhile
from typing import TextIO

from vitrail_commands import usage


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 2 the user's mistake, 130 interrupted, 141 who read the output has gone (`| head`), 1 our
        fault.
    """
    _prepare_streams()
    try:
        code = _main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _is_broken(sys.stdout):
            raise
        # what is still to be written, at the latest when Python ends, goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
        return 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1


def _is_broken(stream: TextIO) -> bool:
    """Whether nobody reads the stream any more."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _prepare_streams() -> None:
    """Closed streams become silent ones, and what a stream cannot encode is written escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for as long as Python runs)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _main(argv: list[str]) -> int:
    # switches may stand before the command
    rest = list(dropwhile(lambda token: token.startswith("--"), argv))
    if rest[:1] == ["help"] and len(rest) > 1:
        argv = [*rest[1:], "--help"]
    elif not argv or argv[0] in ("-h", "--help") or rest == ["help"]:
        print(usage(), end="")
        return 0
    elif argv[0] == "--version" or rest[:1] == ["version"]:
        print(metadata.version("vitrail"))
        return 0
    from vitrail.cli import main as run

    return run(argv)
