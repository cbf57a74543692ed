"""The results as tables of texts: for terminals, and as Markdown (`lab.md`) for documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import printable
from ..metrics.significance import LEVEL

#: columns of the ranking; `>` aligns right
COLUMNS = (
    *("candidate", f">top-1 % ({LEVEL:.0%})", ">params M", ">MMACs", ">ms", ">MB", ">span px", ">s a run", ">runs"),
)
NEIGHBOURS = (*("better", "than", f">difference ({LEVEL:.0%})", ">p seeds", ">p images", ">images won : lost"),)


def title(document: dict[str, Any]) -> str:
    """What was compared, in a line."""
    unit = {"params": "parameters", "macs": "multiply-adds", "latency": "ms"}[document["equal"]]
    budget = document["budget"]
    amount = f"{budget:.2f}" if document["equal"] == "latency" else f"{budget / 1e6:.2f} M"
    part = "" if document["complete"] else f", {document['runs_done']} of {document['runs']} runs done"
    return (
        f"{len(document['rows'])} candidates of {amount} {unit} in {document['host']}, {document['seeds']} seed(s), "
        f"{document['training_images']:,} images of {document['data']}{part}"
    )


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the ranking."""
    done = [one for one in row["runs"] if one["failed"] is None]
    failed = len(row["runs"]) - len(done)
    return [
        row["name"],
        with_half(row["top1"]) if row["top1"] else "-",
        f"{row['params'] / 1e6:.3f}",
        f"{row['macs'] / 1e6:.1f}",
        _number(row["latency_ms"], 2),
        _number(row["memory_mb"], 2),
        _number(row["span_pixels"], 1),
        _number(row["seconds"], 0),
        f"{len(done)}" + (f", {failed} diverged" if failed else ""),
    ]


def neighbour_cells(one: dict[str, Any]) -> list[str]:
    """A row of the comparisons."""
    return [
        one["better"],
        one["worse"],
        with_half(one["difference"]),
        p_value(one["p_seeds_holm"]),
        p_value(one["p_images_holm"]),
        f"{one['images_won']} : {one['images_lost']}",
    ]


def with_half(interval: dict[str, Any]) -> str:
    """A mean with half of its interval; a single value alone."""
    if interval["high"] is None:
        return f"{interval['mean']:.2f}"
    return f"{interval['mean']:.2f} ± {interval['high'] - interval['mean']:.2f}"


def p_value(p: float | None) -> str:
    """A p in two digits; "-" where the test is not defined."""
    if p is None:
        return "-"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(document: dict[str, Any]) -> str:
    """Ranking, comparisons, spans and spectra as Markdown tables."""
    stages = sorted({one["stage"] for row in document["rows"] for one in row["spectrum"]})
    said = [printable(line) for line in remarks(document)]
    by_stage = [f">stage {stage + 1}" for stage in stages]
    parts = [
        title(document) + ".",
        _table(COLUMNS, map(cells, document["rows"])),
        "p adjusted by Holm's method:",
        _table(NEIGHBOURS, map(neighbour_cells, document["comparisons"])),
        *said,
    ]
    if stages:
        parts += [
            "Mean attention span by stage, in pixels:",
            _table(
                ("candidate", *by_stage),
                (_by_stage(row, "span_by_stage", "pixels", stages) for row in document["rows"]),
            ),
            "Log amplitude of the highest frequency relative to frequency 0, after each stage:",
            _table(
                ("candidate", *by_stage), (_by_stage(row, "spectrum", "relative", stages) for row in document["rows"])
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _by_stage(row: dict[str, Any], group: str, entry: str, stages: Sequence[int]) -> list[str]:
    found = {one["stage"]: one[entry] for one in row[group]}
    return [row["name"], *(_number(found.get(stage), 2) for stage in stages)]


def _table(columns: Sequence[str], rows: Any) -> str:
    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(printable(text).replace("|", "\\|") for text in texts) + " |"

    rule = "|" + "|".join("---:" if name.startswith(">") else "---" for name in columns) + "|"
    return "\n".join([line([name.removeprefix(">") for name in columns]), rule, *map(line, rows)])


def lines(document: dict[str, Any]) -> Iterator[str]:
    """Remarks that belong below the tables on a terminal."""
    if document["comparisons"]:
        yield "p is adjusted by Holm's method: a paired t test over seeds, exact sign flips over images (docs/lab.md)"
    yield from remarks(document)


def remarks(document: dict[str, Any]) -> Iterator[str]:
    """Candidates off the budget, and runs that diverged."""
    for row in document["rows"]:
        if row["remark"]:
            yield row["remark"]
        for one in row["runs"]:
            if one["failed"]:
                yield f"{row['name']}, seed {one['seed']}: {one['failed']}"
