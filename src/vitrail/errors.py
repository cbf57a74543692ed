"""Errors of users: one sentence, exit code 2.

Every room may import this module; it imports nothing of ours.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

#: more existing names than this are no help in a sentence
MAX_NAMES = 10
#: of a name that a user or a stranger's file gave, so many characters are shown
MAX_CHARACTERS = 80


class UserError(Exception):
    """A mistake of the user, with one sentence on what is wrong, where, and what to do.

    The command line prints the sentence and ends with exit code 2; library callers catch it as an exception.
    """


class BadOption(UserError, ValueError):
    """A setting outside what is allowed; the sentence names the option, its value and what is allowed."""


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """The names of `allowed` most like `name` in any capitals, best first, at most `count`.

    Names that begin with it come first: `emsnet` means `emsnet_tiny` before `resnet50`.
    """
    if len(name) > MAX_CHARACTERS:  # comparing long texts takes minutes
        return []
    small = {other: other.lower() for other in allowed}
    begun = [other for other in small if name and small[other].startswith(name.lower())]
    close = difflib.get_close_matches(name.lower(), list(small.values()), n=count, cutoff=0.4)
    alike = [other for one in dict.fromkeys(close) for other in small if small[other] == one]
    return list(dict.fromkeys([*sorted(begun, key=len), *alike]))[:count]


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """One sentence for a name that does not exist, with the nearest existing ones.

    Args:
        kind: what is named, such as "model" or "data set".
        name: what the user wrote.
        allowed: the names that exist.
    """
    names = sorted(allowed)
    close = nearest(name, names)
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif len(names) <= MAX_NAMES:
        hint = f"choose one of {', '.join(names)}."
    else:
        hint = f"none of the {len(names):,} that exist is like it."
    shown = repr(name if len(name) <= MAX_CHARACTERS else f"{name[:MAX_CHARACTERS]}...")
    return f"Unknown {kind} {printable(shown)}: {hint}"


class Interrupted(Exception):
    """Work stopped by the user after its state was saved; the message says how to go on. Exit code 130."""


def printable(text: str) -> str:
    """A text from a file, a name or a user, safe to show: control characters, and what no terminal can print, escaped.

    Escaped are control and format characters (escape codes, line breaks, marks that turn the direction of writing) and
    the stand-ins of bytes that are not UTF-8 (`caf\\xe9.png`). Everything else, letters of any script included, stays.
    """
    return "".join(map(_escaped, text)) if not (text.isascii() and text.isprintable()) else text


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8, as Python keeps it
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character
