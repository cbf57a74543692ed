"""Self-contained HTML pages: text is escaped unless it is `Html`, and nothing external can be loaded."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image

from ..errors import UserError, printable
from ..utils.draw import within
from ..utils.files import exists, saving, write_whole
from ..utils.output_folder import identity
from ..version import __version__

#: first bytes of every page; a file that starts otherwise was not written here
GENERATOR = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="vitrail '
)
#: longest name or other text in a caption or a table's cell, in characters
MOST_CHARACTERS = 80
#: sides of images below which their pixels are shown as squares
TINY = 96
#: colours by their names in `page.css`, for light and for dark pages. c0 to c6 are the colours of series: they
#: differ in lightness, too, and every series also has a dash pattern and a marker of its own
COLOURS = {
    "back": ("#ffffff", "#14171a"),
    "panel": ("#f3f5f7", "#1f2429"),
    "ink": ("#16191c", "#e8ebee"),
    "quiet": ("#58616a", "#a2acb5"),
    "line": ("#d5dade", "#3a424a"),
    "link": ("#0b5fa5", "#7cc0f5"),
    "heat": ("#0b5fa5", "#6cb8f0"),
    "over": ("#ffffff", "#0c0f12"),
    "c0": ("#0072b2", "#56b4e9"),
    "c1": ("#c14f00", "#ff9a57"),
    "c2": ("#00805e", "#35cf9f"),
    "c3": ("#a04a84", "#e79fca"),
    "c4": ("#a87800", "#f0c23c"),
    "c5": ("#4d4d4d", "#d0d0d0"),
    "c6": ("#3d99d6", "#9aa8ff"),
}
#: elements without content
VOID = frozenset(("br", "hr", "img", "meta", "input"))


@dataclass(frozen=True)
class Html:
    """Markup that is put into a page as it is; every other text is escaped."""

    markup: str

    def __str__(self) -> str:
        return self.markup


#: what stands inside an element: text (escaped), markup, numbers, nothing, or several of them
Content = Html | str | int | float | None | Iterable["Content"]


def escaped(text: str) -> str:
    """A text as markup: no character of it is taken for markup, and none turns the direction of writing."""
    return "\n".join(html.escape(printable(line), quote=True) for line in text.split("\n"))


def markup(content: Content) -> Html:
    """Content as markup, joined without spaces."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, (str, int, float)):
        return Html(escaped(str(content)))
    return Html("".join(markup(one).markup for one in content))


def tag(name: str, /, *contents: Content, **attributes: Any) -> Html:
    """An element.

    Args:
        name: of the element.
        contents: text, which is escaped, and markup.
        attributes: a trailing `_` is cut (`class_`), other `_` become `-`; True gives an attribute without a value,
            None and False none. Links lead to places of the page, and images are data: everything else is refused.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{markup(contents).markup}</{name}>")


def _attribute(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    text = str(value)
    assert not name.startswith("on"), f"{name}: scripts stand in page.js only"
    assert name != "style", "styles stand in page.css only: the page's policy forbids others"
    if name in ("href", "src"):
        assert re.match(r"#|data:image/(png|jpeg);base64,", text), f"{name}={text!r} leads out of the page"
    return f" {name}" if value is True else f' {name}="{escaped(text)}"'


def short(text: str, most: int = MOST_CHARACTERS) -> Html | str:
    """A text, cut after `most` characters; the whole of it then is its tooltip."""
    return text if len(text) <= most else tag("span", f"{text[: most - 1]}…", title=text[:2000])


# ---- parts of pages ---------------------------------------------------------------------------------------------


def paragraph(*contents: Content, quiet: bool = False) -> Html:
    """A paragraph; `quiet` of remarks in smaller, paler letters."""
    return tag("p", *contents, class_="quiet" if quiet else None)


def note(*sentences: Content) -> Html:
    """Remarks that a reader must not miss, a paragraph each; nothing where there are none."""
    return tag("div", [tag("p", one) for one in sentences], class_="note", role="note") if sentences else Html("")


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """Few important values, each with its name above."""
    entries = [
        tag("div", tag("dt", short(name)), tag("dd", short(value) if isinstance(value, str) else value))
        for name, value in pairs
    ]
    return tag("dl", entries, class_="facts")


def details(summary: str, *contents: Content, opened: bool = False) -> Html:
    """Content that is shown after a click on its summary."""
    return tag("details", tag("summary", summary), *contents, open=opened)


def code(text: str) -> Html:
    """Text as it is, in letters of one width."""
    return tag("pre", tag("code", text), tabindex="0")


def table(
    head: Sequence[Content],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str = "",
    digits: int | Sequence[int] = 2,
    tall: bool = False,
) -> Html:
    """A table that scrolls inside its own box and is sorted by a click on a column's name.

    Args:
        head: the columns' names.
        rows: values: numbers are set to the right, None is shown as "–".
        caption: of the table, for readers who cannot see it.
        digits: behind the point of floats, of all columns or of each.
        tall: also scroll downwards.
    """
    rows = [list(row) for row in rows]
    numeric = [
        any(_is_number(row[column]) for row in rows) and all(_is_number(row[column], none=True) for row in rows)
        for column in range(len(head))
    ]
    places = [digits] * len(head) if isinstance(digits, int) else list(digits)
    heads = [
        tag("th", name, scope="col", class_="number" if right else None)
        for name, right in zip(head, numeric, strict=True)
    ]
    body = [tag("tr", [_cell(value, i == 0, numeric[i], places[i]) for i, value in enumerate(row)]) for row in rows]
    inner = tag(
        "table", tag("thead", tag("tr", heads)), tag("tbody", body), class_="sortable", aria_label=caption or None
    )
    # a box that scrolls can be reached by the keyboard
    return tag(
        "div", inner, class_="box tall" if tall else "box", tabindex="0", role="region", aria_label=caption or "table"
    )


def _is_number(value: Any, none: bool = False) -> TypeGuard[float]:
    return (none and value is None) or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(value: Any, first: bool, right: bool, digits: int) -> Html:
    shown: Content = short(value) if isinstance(value, str) else value
    raw = None
    if value is None:
        shown = "–"
    elif _is_number(value):
        shown = number(value, digits)
        raw = value if math.isfinite(value) else None
    attributes = {"class_": "number" if right else None, "data_value": raw}
    return tag("th", shown, scope="row", **attributes) if first and not right else tag("td", shown, **attributes)


def number(value: float | None, digits: int = 2) -> str:
    """A number for readers: commas in whole ones, `digits` behind the point of others, tiny ones as powers of ten."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


# ---- images -----------------------------------------------------------------------------------------------------


def image(original: Image.Image, alt: str, *, longest: int = 160, quality: int = 82, sharp: bool = False) -> Html:
    """An image inside the page.

    Args:
        original: made smaller to `longest` pixels a side.
        alt: what it shows, for readers who cannot see it.
        longest: side in pixels.
        quality: of JPEG.
        sharp: PNG, for maps and drawings.
    """
    small = within(original.convert("RGB"), longest)
    tiny = max(small.size) < TINY
    buffer = BytesIO()
    if sharp or tiny:
        small.save(buffer, "PNG", optimize=True)
    else:
        small.save(buffer, "JPEG", quality=quality)
    source = f"data:image/{'png' if sharp or tiny else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    shown = {"class_": "tiny" if tiny else None, "width": small.width, "height": small.height}
    return tag("img", src=source, alt=alt, **shown)


def captioned(shown: Html, *lines: Content) -> Html:
    """An image with lines of text below it."""
    texts = [[short(one) if isinstance(one, str) else one, tag("br")] for one in lines]
    return tag("figure", shown, tag("figcaption", texts))


def gallery(figures: Iterable[Html], wide: bool = False) -> Html:
    """Images with captions in as many columns as the page has room for."""
    return tag("div", list(figures), class_="gallery wide" if wide else "gallery")


# ---- pages ------------------------------------------------------------------------------------------------------


@dataclass
class Section:
    """A part of a page with its entry in the contents.

    Attributes:
        title: also the entry's.
        body: of the part.
    """

    title: str
    body: Content

    @property
    def anchor(self) -> str:
        """The name that links lead to."""
        return "part-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(title: str, sections: Sequence[Section], *, intro: Content = None, footer: Content = None) -> str:
    """A whole page: one file, which loads nothing and opens without a network.

    Args:
        title: of the page and its window.
        sections: its parts.
        intro: below the title.
        footer: below all.
    """
    style, script = _style(), _text("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    contents = [tag("li", tag("a", one.title, href=f"#{one.anchor}")) for one in sections]
    theme = tag("button", "light / dark", id="theme", type="button", hidden=True)
    parts = [tag("section", tag("h2", one.title), one.body, id=one.anchor) for one in sections]
    head = [
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(style)),
    ]
    body = [
        tag("header", tag("h1", short(title)), intro, class_="page"),
        tag("nav", tag("div", tag("ul", contents), theme), aria_label="Contents"),
        tag("main", parts),
        tag("footer", paragraph(footer or f"Written by vitrail {__version__}.", quiet=True)),
        tag("script", Html(script)),
    ]
    inner = "\n".join(one.markup for one in head)
    lines = "\n".join(one.markup for one in body)
    whole = f'{GENERATOR}{__version__}">\n{inner}\n</head>\n<body>\n{lines}\n</body>\n</html>\n'
    return f"{whole}<!-- {_digest(whole)} -->\n"


@cache
def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in COLOURS.items()) for i in (0, 1))
    series = "".join(
        f".s{i}{{stroke:var(--c{i});fill:none}}.f{i}{{fill:var(--c{i});stroke:var(--back)}}" for i in range(7)
    )
    return (
        f":root{{{light}}}\n@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark};color-scheme:dark}}\n:root[data-theme=light]{{color-scheme:light}}\n"
        f"{_text('page.css')}{series}\n"
    )


def _digest(text: str | bytes) -> str:
    """sha256 in the form of a policy's entry, which allows exactly this style or script."""
    data = text.encode() if isinstance(text, str) else text
    return f"sha256-{base64.b64encode(hashlib.sha256(data).digest()).decode()}"


# ---- files ------------------------------------------------------------------------------------------------------


def check_page(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> Path:
    """The file a page is to be written to: a new one, or an earlier page of ours.

    Args:
        path: of `--output`.
        inputs: files the command reads.

    Raises:
        UserError: no `.html`, a missing folder, or a file that vitrail did not write.
    """
    file = Path(path)
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {file} must end in .html: one page is written.")
    if exists(file, "--output"):
        if file.is_symlink() or not file.is_file():
            raise UserError(f"--output {file} is no regular file: choose another name.")
        if identity(file) in {identity(one) for one in inputs}:
            raise UserError(f"--output {file} is read by this command, and never written over.")
        if not _is_page(file):
            raise UserError(
                f"--output {file} was not written by vitrail, or was changed since, and is never written over: choose "
                "another name."
            )
    elif not file.parent.is_dir():
        raise UserError(f"--output {file}: there is no folder {file.parent}.")
    return file


def _is_page(file: Path) -> bool:
    """True for a page of ours that nobody changed: its last line is the digest of the others."""
    data = file.read_bytes()
    whole, _, last = data.removesuffix(b"\n").rpartition(b"\n")
    return data.startswith(GENERATOR.encode()) and last == b"<!-- %s -->" % _digest(whole + b"\n").encode()


def write_page(file: Path, text: str) -> None:
    """Write a page at once, or leave the old one as it was.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    with saving(file):
        write_whole(file, text)
