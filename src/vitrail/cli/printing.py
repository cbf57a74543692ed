"""What commands print: tables for people, documents for programs."""

from __future__ import annotations

import json
import sys
from typing import Any


def new_table(*columns: str, title: str | None = None) -> Any:
    """A rich table; a column that begins with ">" is aligned right."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, box=box.SIMPLE_HEAD)
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return made


def show(renderable: Any) -> None:
    """Print a table or a line on standard output; a table's title in a line of its own, however narrow the table is."""
    from rich.console import Console
    from rich.table import Table

    # a file or a pipe has no width: nothing is folded there that a program may look for
    console = Console(width=None if sys.stdout.isatty() else 200)
    if isinstance(renderable, Table) and renderable.title:
        console.print(renderable.title, style="italic", soft_wrap=True)
        renderable.title = None
    console.print(renderable)


def print_json(value: Any) -> int:
    """Print one JSON document; returns the exit code of success."""
    print(json.dumps(value, indent=2))
    return 0
