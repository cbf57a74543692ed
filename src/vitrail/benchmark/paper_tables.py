"""The rows of a paper's table as networks to time, and their ratios to the full network beside the printed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint.sources import TIMM
from ..errors import UserError, nearest, unknown
from ..factory import UNFIT
from ..flops.reported import CLASSIFIERS, PAPERS, ReportedRow, reported_rows, same_network
from ..models import names
from ..utils.files import shortened
from .networks import Build, Entry

#: value of `options_of` that lists the tables
LIST = "list"
#: printed speeds: times, and images a second
TIMES, RATES = ("cpu_ms", "gpu_ms"), ("fps", "throughput_img_s")


@dataclass(frozen=True)
class TimedRow:
    """A network of a table.

    Attributes:
        entry: the network; its name is that of its row, or of its rows where several are about it.
        printed: its printed speeds by metric, as digits.
        full: it is the network that the others are compared with: the first of the table whose options change nothing.
    """

    entry: Entry
    printed: dict[str, str]
    full: bool = False


def tables() -> dict[str, list[ReportedRow]]:
    """The rows that can be timed of every table, by names such as "emsnet:3.9"."""
    found: dict[str, list[ReportedRow]] = {}
    for family in PAPERS:
        for row in reported_rows(family):
            if row.model and min(row.input_size) > 0:
                found.setdefault(f"{family}:{row.table.removeprefix('Table ')}", []).append(row)
    return found


def table_of(name: str) -> str:
    """The name of a table in `tables`, from "emsnet:3.9", "emsnet: Table 3.9", "Table 3.9" or "3.9".

    Raises:
        UserError: no such table, or several of that name.
    """
    known = tables()
    family, _, number = name.rpartition(":")
    family, number = family.strip().lower(), number.strip()
    number = number[len("table") :].strip() if number.lower().startswith("table") else number
    found = [key for key in known if key.partition(":")[2] == number and family in ("", key.partition(":")[0])]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--options_of {name} means one of {', '.join(found)}: say which.")
    if family and family not in PAPERS:
        raise UserError(f"--options_of {name}: {unknown('family', family, PAPERS)}")
    own = [key for key in known if key.startswith(f"{family}:")] if family else list(known)
    close = nearest(f"{family}:{number}" if family else number, own)
    choice = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(own[:10])}."
    raise UserError(f"Unknown table {shortened(name)}: {choice} vitrail benchmark --options_of {LIST} shows all.")


def rows_of(name: str, task: str | None = None) -> list[TimedRow]:
    """The networks of a table.

    Args:
        name: see `table_of`.
        task: of the rows; None = classification where the table has such rows, else all tasks.

    Raises:
        UserError: no such table, or no row of this task in it.
    """
    key = table_of(name)
    rows = tables()[key]
    tasks = list(dict.fromkeys(row.run_task for row in rows))
    if task is None:
        chosen = [row for row in rows if row.run_task == "classification"] or rows
    elif not (chosen := [row for row in rows if row.run_task == task]):
        raise UserError(f"--task {task}: the rows of {key} that can be timed are of {', '.join(tasks)}.")
    merged: dict[str, TimedRow] = {}
    for row in chosen:
        entry = _entry(row)
        same = repr((entry.source, entry.build, entry.image_size))
        if same in merged:
            entry = Entry(entry.source, f"{merged[same].entry.name}; {row.row}", entry.build, entry.image_size)
        printed = {name: row.results[name].printed for name in (*TIMES, *RATES) if name in row.results}
        merged[same] = TimedRow(entry, printed, full=_unchanged(row))
    found = list(merged.values())
    first = next((i for i, row in enumerate(found) if row.full), 0)
    return [TimedRow(row.entry, row.printed, i == first) for i, row in enumerate(found)]


def _unchanged(row: ReportedRow) -> bool:
    return row.model in names() and same_network(row.model, row.options, row.model, {})


def _entry(row: ReportedRow) -> Entry:
    source = row.model if row.model in names() else f"{TIMM}{row.model}"
    # the number of classes hardly changes the time, and is that of ImageNet
    options = {name: value for name, value in row.options.items() if name not in UNFIT}
    head = None if row.head in CLASSIFIERS else row.head
    build = Build(options, None if head is None else row.task, head, {} if head is None else row.head_options)
    return Entry(source, row.row, build, row.input_size)


def printed_ratio(row: TimedRow, full: TimedRow) -> dict[str, float]:
    """The time of a row over that of the full network as printed, by metric; from images a second their inverse."""
    found = {}
    for name in row.printed.keys() & full.printed.keys():
        own, base = float(row.printed[name]), float(full.printed[name])
        found[name] = own / base if name in TIMES else base / own
    return {name: found[name] for name in (*TIMES, *RATES) if name in found}


def add_ratios(rows: Sequence[dict[str, Any]], table: Sequence[TimedRow]) -> None:
    """Add to measured rows how long they take relative to the full network, and what is printed of that.

    Args:
        rows: of `benchmark`'s document, changed in place. They get "full"; "ratio", the median of the rounds' ratios to
            the full network in the same form and batch, with "ratio_quartiles", None where there are none; "printed",
            speeds as digits; and "printed_ratio".
        table: of `rows_of`.
    """
    full = next(row for row in table if row.full)
    by_name = {row.entry.name: row for row in table}
    measured = {(row["batch"], row["label"]): row for row in rows if row["name"] == full.entry.name}
    for row in rows:
        own = by_name.get(row["name"])
        row["full"] = row["name"] == full.entry.name
        row["printed"] = {} if own is None else dict(own.printed)
        row["printed_ratio"] = {} if own is None else printed_ratio(own, full)
        ratios = time_ratios(row, measured.get((row["batch"], row["label"])))
        row["ratio"] = float(np.median(ratios)) if ratios else None
        row["ratio_quartiles"] = [float(np.quantile(ratios, share)) for share in (0.25, 0.75)] if ratios else None


def time_ratios(row: dict[str, Any], full: dict[str, Any] | None) -> list[float]:
    """A row's time over the full network's in every round; empty unless both have times."""
    if full is None or row["refused"] or full["refused"]:
        return []
    return [own / base for own, base in zip(row["times_ms"], full["times_ms"], strict=True)]
