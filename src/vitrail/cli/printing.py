"""What commands print: tables for people, documents for programs.

Every text may come from a stranger's file (names of files and classes, notes, licences): none is read as markup, and
control characters and what cannot be encoded are shown escaped.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable
from typing import Any

from ..errors import UserError, printable
from ..utils.progress import bar

#: characters of a message; a list of a thousand names helps nobody
LONGEST_MESSAGE = 1400
#: characters of a list of records that are kept in memory
IN_MEMORY = 1 << 24


def say(text: str) -> None:
    """Print a line on standard error, beginning with "vitrail: ", printable and of bounded length."""
    text = printable(text)
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE - 200]} ... {text[-190:]}"
    print(f"vitrail: {text}", file=sys.stderr)


def completed(title: str, found: Any) -> list[Any]:
    """All results of image files, with a progress bar; files that were skipped are said on standard error.

    Args:
        title: of the bar.
        found: sized and iterable; a result has `error`, None where there is none.

    Raises:
        UserError: all were skipped.
    """
    results: list[Any] = []
    taken(title, found, results.append)
    return results


def taken(title: str, found: Any, take: Callable[[Any], None], done: str = "read") -> int:
    """As `completed`, for results too large to be kept: each is handed on and forgotten.

    Args:
        title: of the bar.
        found: sized and iterable; a result has `error`, None where there is none.
        take: called with each result.
        done: what could not be done with the files if all are skipped.

    Returns:
        how many files were not skipped.

    Raises:
        UserError: all were skipped.
    """
    errors: list[str] = []
    with bar(title, len(found)) as advance:
        for result in found:
            take(result)
            errors += [result.error] if result.error else []
            advance()
    for error in errors:
        say(f"skipped: {error}")
    if len(errors) == len(found):
        raise UserError(f"None of the {len(found)} images could be {done}.")
    return len(found) - len(errors)


def write_line(text: str) -> None:
    """Print a line of text on standard output, printable."""
    print(printable(text))


class Rows:
    """A table whose cells are plain texts.

    Args:
        columns: headings; a column that begins with ">" is aligned right.
        title: printed above it.
    """

    def __init__(self, columns: tuple[str, ...], title: str | None = None):
        from rich import box
        from rich.table import Table

        self.title = title
        self.table = Table(box=box.SIMPLE_HEAD)
        for column in columns:
            justify = "right" if column.startswith(">") else "left"
            self.table.add_column(_plain(column.removeprefix(">")), justify=justify, overflow="fold")

    def add_row(self, *cells: str) -> None:
        """Add a row: a text for each column."""
        self.table.add_row(*(_plain(cell) for cell in cells))


def new_table(*columns: str, title: str | None = None) -> Rows:
    """An empty table; a column that begins with ">" is aligned right."""
    return Rows(columns, title)


def show(rows: Rows) -> None:
    """Print a table on standard output; its title in a line of its own, however narrow the table is."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would end the process; the front door knows what to do

    # a file or a pipe has no width: nothing is folded there that a program may look for
    width = None if sys.stdout.isatty() else max(200, Console(width=10**6).measure(rows.table).maximum)
    console = Output(width=width, markup=False, emoji=False, highlight=False)
    if rows.title:
        console.print(_plain(rows.title), style="italic", soft_wrap=True)
    console.print(rows.table)


def _plain(text: str) -> Any:
    """A text as it is: no markup, no emoji codes, nothing highlighted."""
    from rich.text import Text

    return Text(printable(text))


def print_json(value: Any) -> int:
    """Print one JSON document, in ASCII; returns the exit code of success.

    Control characters are escaped. The bytes of a file name that are not UTF-8 are written as Python keeps them
    (`\\udce9` for byte 0xe9), so that `os.fsencode` gives the name back.
    """
    print(_document(value))
    return 0


class JsonList:
    """A JSON list of records that come one by one, printed as `print_json` does: whole at the end, or not at all.

    Beyond `IN_MEMORY` characters they wait in an anonymous temporary file.
    """

    def __init__(self) -> None:
        self.file = tempfile.SpooledTemporaryFile(IN_MEMORY, "w+", encoding="ascii")  # noqa: SIM115 (lives as long)
        self.count = 0

    def add(self, value: Any) -> None:
        """Add a record."""
        self.file.write(",\n" if self.count else "")
        self.file.write(textwrap.indent(_document(value), "  "))
        self.count += 1

    def print(self) -> int:
        """Print the list; returns the exit code of success."""
        self.file.seek(0)
        sys.stdout.write("[\n" if self.count else "[")
        shutil.copyfileobj(self.file, sys.stdout)
        sys.stdout.write("\n]\n" if self.count else "]\n")
        self.file.close()
        return 0


def _document(value: Any) -> str:
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")
