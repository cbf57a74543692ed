"""The benchmark's rows as cells of a table."""

from __future__ import annotations

from typing import Any

#: headings; ">" aligns right
COLUMNS = (
    "network",
    "form",
    ">batch",
    ">median ms",
    ">quartiles",
    ">images/s",
    ">x first row",
    ">GMAC",
    ">GMAC/s",
    ">% of roofline",
    ">peak MB",
    ">difference",
)


def cells(row: dict[str, Any]) -> list[str]:
    """One row of `benchmark`'s document, as strings for `COLUMNS`."""
    training = row["training"]
    begin = [row["source"], row["label"] + (", training" if training else ""), str(row["batch"])]
    end = [_number(row["peak_mb"], ".1f"), _number(row["difference"], ".1e")]
    if row["refused"]:
        return [*begin, "not timed", "-", "-", "-", f"{row['gmac']:.3f}", "-", "-", *end]
    low, high = row["quartiles_ms"]
    share = row["roofline_share"]
    return [
        *begin,
        f"{row['median_ms']:.2f}" + ("" if row["settled"] else " (never settled)"),
        f"{low:.2f}-{high:.2f}",
        f"{row['images_per_second']:.1f}",
        _number(row["speedup"], ".2f"),
        f"{row['gmac']:.3f}",
        "-" if training else f"{row['gmac_per_second']:.1f}",  # a backward pass is not in the count
        "-" if share is None else f"{100 * share:.0f}",
        *end,
    ]


def notes(document: dict[str, Any]) -> list[str]:
    """Sentences for the reader of the table: peak rates that changed, forms that were not timed."""
    changed = [f"unsteady, measure again: {sentence}" for sentence in document["unsteady"]]
    return changed + [
        f"{row['source']} {row['label']} is not timed: it {row['refused']}"
        for row in document["rows"]
        if row["refused"]
    ]


def title(document: dict[str, Any]) -> str:
    """One line above the table: the machine and its peak rates."""
    settings, machine = document["settings"], document["machine"]
    height, width = settings["image_size"]
    rates = ", ".join(f"{c['name']} {max(c['start'], c['end']):.0f} {c['unit']}" for c in document["roofline"])
    where = machine["gpus"][0] if settings["device"].startswith("cuda") else machine["cpu"]
    mark = "UNSTEADY: " if document["unsteady"] else ""
    line = f"{mark}{height}x{width}, {settings['precision']}, {settings['threads']} thread(s) of {where}"
    return f"{line}; roofline: {rates}" if rates else line


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
