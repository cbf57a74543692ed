"""The command line: one file a verb, which reads its options with jsonargparse and prints what the library returns."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from vitrail_cli import VERBS, usage

from ..allocator import keep_memory
from ..errors import Interrupted, UserError, printable, unknown
from ..files import DISK_FULL
from .parsing import read
from .printing import say


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit code."""
    debug, keep = "--debug" in argv, "--keep_memory" in argv
    argv = [token for token in argv if token not in ("--debug", "--keep_memory")]
    if keep and not keep_memory():
        say("--keep_memory changes nothing here: this system's C library is not glibc.")
    if not argv:
        print(usage(), end="")
        return 0
    try:
        with _warnings_as_sentences():
            return _run(argv)
    except UserError as error:
        if debug:
            raise
        say(str(error))
        return 2
    except Interrupted as error:
        say(str(error))
        return 130
    except KeyboardInterrupt:
        say("interrupted.")
        return 130
    except OSError as error:  # written without a word of its own, such as standard output sent to a file
        if debug or error.errno not in DISK_FULL:
            raise
        say(f"No space left on the disk{f' of {error.filename}' if error.filename else ''}: free some space.")
        return 2


def _run(argv: list[str]) -> int:
    if argv[0] not in VERBS:
        raise UserError(unknown("verb", argv[0], VERBS))
    verb = importlib.import_module(f".{argv[0]}", __name__)
    code = verb.run(read(verb.parser(), argv[1:]))
    sys.stdout.flush()  # a full disk or a closed pipe is noticed here
    return code


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Our own warnings are printed as other messages are; those of libraries keep their place, printable."""
    before = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None):
        own = category is UserWarning and f"{os.sep}vitrail{os.sep}" in filename
        return (
            f"vitrail: {printable(str(message))}\n"
            if own
            else before(printable(str(message)), category, filename, lineno, line)
        )

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before
