"""Small tables written by hand or exported: CSV with commas, semicolons or tabs."""

from __future__ import annotations

import csv
import os

from ...errors import UserError
from ...utils.files import read_text

#: what stands between columns; Excel writes semicolons where a comma is the decimal sign
SEPARATORS = ",;\t"


def read_table(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a CSV file by the names of its columns, without empty rows; text as it stands, "" where none is.

    Columns are divided by what occurs most in the first line of commas, semicolons and tabs. Names of columns lose
    spaces around them and their capitals.

    Raises:
        UserError: no text in UTF-8, no columns, or a row with more cells than there are columns.
    """
    text = read_text(path)
    first = text.split("\n", 1)[0]
    try:
        lines = list(csv.reader(text.splitlines(), delimiter=max(SEPARATORS, key=first.count)))
    except csv.Error as error:
        raise UserError(f"{path} is no table: {error}.") from error
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    if not lines:
        raise UserError(f"{path} is empty: expected a table with a line of columns.")
    columns = [name.strip().lower() for name in lines[0]]
    for number, line in enumerate(lines[1:], 1):
        if any(cell.strip() for cell in line[len(columns) :]):
            raise UserError(f"{path}, row {number} has {len(line)} cells, more than the {len(columns)} columns.")
    return [dict(zip(columns, [*line, *[""] * len(columns)], strict=False)) for line in lines[1:]]
