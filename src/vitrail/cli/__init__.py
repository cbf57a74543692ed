"""The command line: one file a command, which reads its options and prints what the library returns."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from vitrail_commands import COMMANDS, FRONT, OTHER_NAMES, usage

from ..errors import Interrupted, UserError, printable, unknown
from ..utils.allocator import keep_memory
from ..utils.files import BAD_PATH, DISK_FULL, shortened
from .help_page import SWITCHES
from .parsing import read, switches
from .printing import say


def main(argv: list[str]) -> int:
    """Run one command; returns the exit code."""
    debug = "--debug" in argv
    try:
        with _warnings_as_sentences():
            return _run(argv)
    except UserError as error:
        if debug:
            raise
        _say_once(str(error))
        return 2
    except Interrupted as error:
        _say_once(str(error))
        return 130
    except KeyboardInterrupt:
        say("interrupted.")
        return 130
    except OSError as error:  # written without a word of its own, such as standard output sent to a file
        if debug or error.errno not in DISK_FULL + BAD_PATH:
            raise
        if error.errno in BAD_PATH:
            say(f"{shortened(error.filename)[1:-1] if error.filename else 'A file'} cannot be used: {error.strerror}.")
            return 2
        say(f"No space left on the disk{f' of {error.filename}' if error.filename else ''}: free some space.")
        return 2


def _say_once(text: str) -> None:
    """Print a sentence, unless another process of the same run has printed it."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from ..engine.processes import is_first_to_report

        if not is_first_to_report(text):
            return
    say(text)


def _run(argv: list[str]) -> int:
    if switches(argv).get("keep_memory") and not keep_memory():
        say("--keep_memory changes nothing here: this system's C library is not glibc.")
    # switches may stand before the command
    first = next((i for i, token in enumerate(argv) if not token.startswith("-")), None)
    before = [token for token in argv[:first] if token.removeprefix("--") not in SWITCHES]
    if first is None and set(before) <= {"-h", "--help"}:
        print(usage(), end="")
        return 0
    if first is None or before:
        raise UserError(unknown("command", before[0], COMMANDS | FRONT))
    if argv[first] in OTHER_NAMES:
        raise UserError(f"There is no command {argv[first]!r}: vitrail {OTHER_NAMES[argv[first]]} does that.")
    if argv[first] not in COMMANDS:
        raise UserError(unknown("command", argv[first], COMMANDS | FRONT))
    command = importlib.import_module(f".{argv[first]}", __name__)
    line = [*argv[:first], *argv[first + 1 :]]
    code = command.run(read(command.parser(), line))
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
