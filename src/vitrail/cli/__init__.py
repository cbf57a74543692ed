"""The command line: one file a verb, which reads its options with jsonargparse and prints what the library returns."""

from __future__ import annotations

import importlib
import sys

from vitrail_cli import VERBS, usage

from ..allocator import keep_memory
from ..errors import Interrupted, UserError, printable, unknown
from .parsing import read


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit code."""
    debug, keep = "--debug" in argv, "--keep_memory" in argv
    argv = [token for token in argv if token not in ("--debug", "--keep_memory")]
    if keep and not keep_memory():
        print("vitrail: --keep_memory changes nothing here: this system's C library is not glibc.", file=sys.stderr)
    if not argv:
        print(usage(), end="")
        return 0
    try:
        return _run(argv)
    except UserError as error:
        if debug:
            raise
        print(f"vitrail: {printable(str(error))}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"vitrail: {printable(str(error))}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("vitrail: interrupted.", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    if argv[0] not in VERBS:
        raise UserError(unknown("verb", argv[0], VERBS))
    verb = importlib.import_module(f".{argv[0]}", __name__)
    return verb.run(read(verb.parser(), argv[1:]))
