"""Fonts for texts of any script on images."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..errors import printable

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

#: font folders of the operating systems
FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
)
#: names of fonts with many scripts, which are tried first
LIKELY = re.compile(
    "dejavusans|noto|cjk|droid|wqy|unifont|arial|liberation|freesans|hiragino|pingfang|gothic|malgun|nanum|msyh|simsun"
    "|segoe|nirmala|tahoma",
    re.IGNORECASE,
)
#: fonts that draw every letter as the same box
LAST_RESORT = re.compile("lastresort|adobeblank", re.IGNORECASE)
#: largest number of fonts to try
MOST_FONTS = 500
#: an unassigned code point: a font draws it like every letter that it lacks
NOTHING = "\U0010fffe"
PROBE_SIZE = 24
#: one constant text, so that Python shows the warning once
UNWRITTEN = (
    "Some names have letters that no font of this machine has: in images they are written as code points, such as "
    "U+732B. Install a font that has them, such as Noto Sans CJK."
)


def lettered(text: str, size: float) -> tuple[Font, str]:
    """A font for a text, and the text as it can be drawn.

    Pillow's own font where it has all letters; else the first of this machine's fonts that has them all (matplotlib's
    DejaVu, then the system's). Letters that no font has become their code points, such as "U+732B", with a warning.

    Args:
        text: of a user or a file; control characters are escaped.
        size: in pixels.
    """
    text = printable(text)
    if text.isascii():
        return ImageFont.load_default(size=size), text
    letters = frozenset(c for c in text if not c.isspace())
    path, missing = _best(letters)
    if missing:
        warnings.warn(UNWRITTEN, stacklevel=2)
        text = "".join(_code(c) if c in missing else c for c in text)
    return (ImageFont.load_default(size=size) if path is None else ImageFont.truetype(path, size)), text


def _code(letter: str) -> str:
    return f"U+{ord(letter):04X}"


@lru_cache(maxsize=1024)
def _best(letters: frozenset[str]) -> tuple[str | None, frozenset[str]]:
    """The font file (None = Pillow's font) that lacks the fewest of the letters, and the letters that it lacks."""
    best, fewest = None, missing_in(None, letters)
    for path in fonts():
        if not fewest:
            break
        lacks = missing_in(path, letters)
        if len(lacks) < len(fewest):
            best, fewest = path, lacks
    return best, fewest


def missing_in(path: str | None, letters: frozenset[str]) -> frozenset[str]:
    """The letters that a font lacks; all if it cannot be used."""
    try:
        font = ImageFont.load_default(size=PROBE_SIZE) if path is None else ImageFont.truetype(path, PROBE_SIZE)
        if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType: ASCII in one size
            return frozenset(c for c in letters if not c.isascii())
        empty = _drawn(font, NOTHING)
        return frozenset(c for c in letters if _drawn(font, c) == empty)
    except (OSError, ValueError):  # a bitmap font of another size, a damaged file
        return letters


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    field = Image.new("L", (3 * PROBE_SIZE, 3 * PROBE_SIZE))
    ImageDraw.Draw(field).text((PROBE_SIZE, PROBE_SIZE), letter, fill=255, font=font)
    return field.tobytes()


@lru_cache(maxsize=1)
def fonts() -> tuple[str, ...]:
    """Font files of this machine, likely ones first, at most `MOST_FONTS`."""
    found = sorted(set(_font_files()), key=lambda path: (not LIKELY.search(Path(path).name), path))
    return (*_of_matplotlib(), *found)[:MOST_FONTS]


def _of_matplotlib() -> tuple[str, ...]:
    spec = importlib.util.find_spec("matplotlib")  # not imported, which would take long
    where = Path(spec.origin).parent if spec is not None and spec.origin else None
    path = None if where is None else where / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return (str(path),) if path is not None and path.is_file() else ()


def _font_files() -> Iterator[str]:
    for folder in FOLDERS if sys.platform != "win32" else FOLDERS[-1:]:
        for here, _, names in os.walk(os.path.expanduser(folder)):
            for name in names:
                if name.lower().endswith((".ttf", ".otf", ".ttc")) and not LAST_RESORT.search(name):
                    yield os.path.join(here, name)
