"""Commands and addresses in the place of files, which WebDataset opens by starting a program (a shell, curl, gsutil).

They are never taken from a file: a run's or a recipe's YAML may come from a stranger. The command line allows those
that were typed with `--allow_pipe`; Python's users call `allow`.
"""

from __future__ import annotations

import re

from ..errors import BadOption
from ..utils.files import shortened

#: what begins a command or an address: "pipe:", "https:", "s3:"; a single letter is a drive
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:")
_allowed: set[str] = set()


def allow(text: str) -> None:
    """Let one text of the data's options name commands or addresses, for as long as this process lives."""
    _allowed.add(text)


def is_address(text: str) -> bool:
    """True if a text, or a segment of it between "::", names a command or an address instead of a local file."""
    return any(_SCHEME.match(segment) for segment in re.split(r"::|(?<!\\)[{},]", text))


def check_local(option: str, text: str) -> None:
    """Refuse a command or an address that was not allowed.

    Args:
        option: what the message calls the place of the text, such as "option --data.root".
        text: a path, pattern or name.

    Raises:
        BadOption: it would start a program.
    """
    if is_address(text) and text not in _allowed:
        raise BadOption(
            f"The {option} {shortened(text)} is no local file: WebDataset would start a program to open it, which is "
            "never taken from a file; if you trust it, type it on the command line with --allow_pipe."
        )
