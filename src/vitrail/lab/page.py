"""The page of a laboratory's results: one HTML file that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..checkpoint.run_dir import from_1
from ..report.charts import Axis, Series, bar_chart, heat_map, line_chart, scatter_chart
from ..report.html import Html, Section, code, details, facts, gallery, note, page, paragraph, table
from .table import NEIGHBOURS, p_value, remarks, title, with_half

#: costs that accuracy is drawn over: entry of a row, label of the axis, factor
COSTS = (
    ("macs", "multiply-adds, M", 1e-6),
    ("latency_ms", "latency of an image, ms", 1.0),
    ("memory_mb", "memory of an image, MB", 1.0),
    ("params", "parameters, M", 1e-6),
)
#: candidates whose names stand in the charts of costs; of more it is their places in the ranking
MOST_NAMED = 5


def lab_page(document: dict[str, Any]) -> str:
    """The page of `lab.json`'s content."""
    sections = [
        Section("Ranking", _ranking(document)),
        Section("Accuracy and cost", _costs(document)),
        Section("Neighbours in the ranking", _neighbours(document)),
        Section("Training curves", _curves(document)),
        Section("Attention span", _spans(document)),
        Section("Spectra", _spectra(document)),
        Section("Every run", _runs(document)),
        Section("What was done", _done(document)),
    ]
    return page("Laboratory of token mixers", sections, intro=_intro(document))


def _rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document["rows"] if row["top1"]]


def _intro(document: dict[str, Any]) -> Html:
    height, width = document["image_size"]
    return Html(
        paragraph(title(document) + ".").markup
        + facts(
            [
                ("data", document["data"]),
                ("training images", document["training_images"]),
                ("validation images", document["validation_images"]),
                ("image size", f"{height} x {width}"),
                ("seeds", document["seeds"]),
                ("host", document["host"]),
            ]
        ).markup
    )


def _ranking(document: dict[str, Any]) -> list[Html]:
    head = (
        *("candidate", "top-1 %", "from", "to", "parameters M", "multiply-adds M", "latency ms", "memory MB"),
        *("span px", "training s"),
    )
    rows = []
    for row in document["rows"]:
        top1 = row["top1"] or {"mean": None, "low": None, "high": None}
        rows.append(
            [
                row["name"],
                *(top1[name] for name in ("mean", "low", "high")),
                row["params"] / 1e6,
                row["macs"] / 1e6,
                *(row[name] for name in ("latency_ms", "memory_mb", "span_pixels", "seconds")),
            ]
        )
    about = document["about"]
    return [
        note(*remarks(document)),
        table(head, rows, caption="ranking by accuracy", digits=(0, 2, 2, 2, 3, 1, 2, 2, 1, 0)),
        *(paragraph(about[name], quiet=True) for name in ("top1", "latency", "memory", "seconds")),
    ]


def _costs(document: dict[str, Any]) -> list[Html]:
    # over what all have as much of, the points would lie above each other
    drawn = [cost for cost in COSTS if cost[0] != document["equal"]]
    rows = _rows(document)
    charts = gallery([_cost_chart(rows, *cost) for cost in drawn], wide=True)
    if len(rows) <= MOST_NAMED:
        return [charts]
    places = ", ".join(f"{place} {row['name']}" for place, row in enumerate(rows, 1))
    return [paragraph(f"The numbers are places in the ranking: {places}.", quiet=True), charts]


def _cost_chart(rows: Sequence[dict[str, Any]], entry: str, label: str, factor: float) -> Html:
    """Accuracy with its interval over one cost, a point a candidate."""
    known = [row for row in rows if row[entry] is not None]
    one = Series(
        "",
        [row[entry] * factor for row in known],
        [row["top1"]["mean"] for row in known],
        low=[row["top1"]["low"] for row in known],
        high=[row["top1"]["high"] for row in known],
        labels=[row["name"] for row in known],
        short=None if len(rows) <= MOST_NAMED else [f"{rows.index(row) + 1}" for row in known],
    )
    return scatter_chart([one], f"Accuracy over {label.partition(',')[0]}", x=Axis(label), y=Axis("top-1, %"))


def _neighbours(document: dict[str, Any]) -> list[Html]:
    head = [name.removeprefix(">") for name in NEIGHBOURS[:3]]
    head += ["p seeds", "p seeds, Holm", "p images", "p images, Holm", "images won", "images lost"]
    rows = [
        [
            one["better"],
            one["worse"],
            with_half(one["difference"]),
            *(p_value(one[name]) for name in ("p_seeds", "p_seeds_holm", "p_images", "p_images_holm")),
            one["images_won"],
            one["images_lost"],
        ]
        for one in document["comparisons"]
    ]
    about = document["about"]
    remarks = [paragraph(about[name], quiet=True) for name in ("p_seeds", "p_images", "holm")]
    return [table(head, rows, caption="paired tests of neighbours"), *remarks]


def _curves(document: dict[str, Any]) -> list[Html]:
    """Validation accuracy and training loss of all seeds, two charts a candidate on the same axes."""
    charts = []
    for entry, label in (("val_top1", "validation top-1, %"), ("train_loss", "training loss")):
        values = [v for row in document["rows"] for run in row["runs"] for v in _column(run, entry) if v is not None]
        if values:
            low, high = min(values), max(values)
            axis = Axis(label, low, high) if low < high else Axis(label)
            drawn = [_curve(row, entry, axis) for row in document["rows"]]
            charts.append(details(label, gallery(drawn, wide=True), opened=not charts))
    return charts


def _column(run: dict[str, Any], entry: str) -> list[float | None]:
    return [epoch.get(entry) for epoch in run["history"]]


def _curve(row: dict[str, Any], entry: str, axis: Axis) -> Html:
    series = [
        Series(f"seed {run['seed']}", [from_1(row)["epoch"] for row in run["history"]], _column(run, entry))
        for run in row["runs"]
    ]
    return line_chart(series, row["name"], x=Axis("epoch"), y=axis)


def _spans(document: dict[str, Any]) -> list[Html]:
    attending = [row for row in document["rows"] if row["span_pixels"] is not None]
    if not attending:
        return [paragraph("No candidate attends in a way whose tokens' places are known.")]
    bars = [(row["name"], row["span_pixels"]) for row in attending]
    head, rows = _by_stage(attending, "span_by_stage", lambda one: one["pixels"])
    wider = [
        [*cells, row["span_pixels"], row["even_span_pixels"], row["span_tokens"]]
        for cells, row in zip(rows, attending, strict=True)
    ]
    return [
        bar_chart(bars, "Mean distance between query and attended token", unit=" px", digits=1),
        table(
            [*head, "mean px", "mean px, if even", "mean tokens"], wider, caption="attention span by stage", digits=2
        ),
        paragraph(document["about"]["span"], quiet=True),
        paragraph(
            '"If even" is the span of a network whose queries attend evenly to the tokens they attend to at all: what '
            "windows and reductions allow, and not what was learned.",
            quiet=True,
        ),
    ]


def _by_stage(
    rows: Sequence[dict[str, Any]], group: str, value: Callable[[dict[str, Any]], float | None]
) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of a table with a column a stage."""
    stages = sorted({one["stage"] for row in rows for one in row[group]})
    found = [{one["stage"]: value(one) for one in row[group]} for row in rows]
    head = ["candidate", *(f"stage {stage + 1}" for stage in stages)]
    return head, [[row["name"], *map(known.get, stages)] for row, known in zip(rows, found, strict=True)]


def _spectra(document: dict[str, Any]) -> list[Html]:
    measured = [row for row in document["rows"] if row["spectrum"]]
    if not measured:
        return [paragraph("There are no spectra: maps or images are not square.")]
    head, rows = _by_stage(measured, "spectrum", lambda one: one["relative"])
    return [
        heat_map(
            [row[1:] for row in rows],
            "Log amplitude of the highest frequency relative to frequency 0",
            rows=[row[0] for row in rows],
            columns=head[1:],
            texts=lambda i, j: f"{rows[i][1 + j]:.1f}".replace("-", "−"),
        ),
        table(head, rows, caption="spectra by stage"),
        paragraph(document["about"]["spectrum"], quiet=True),
    ]


def _runs(document: dict[str, Any]) -> Html:
    rows = [
        [row["name"], run["seed"], run["top1"], run["seconds"], run["folder"], run["failed"]]
        for row in document["rows"]
        for run in row["runs"]
    ]
    return table(("candidate", "seed", "top-1 %", "seconds", "folder", "failed"), rows, caption="runs", tall=True)


def _done(document: dict[str, Any]) -> Iterator[Html]:
    costs = document["costs"]
    if costs:
        machine = costs["machine"]
        yield paragraph(
            f"Latency and memory on {machine['cpu']}, {machine['device']}, {machine['threads']} thread(s), "
            f"{costs['rounds']} rounds, load {machine['load'][0]} before and {machine['load'][1]} after."
        )
    yield table(
        ("library", "version"), sorted(document["plan"]["versions"].items()), caption="versions of the libraries"
    )
    options = {row["name"]: [row["model"], row["model_options"]] for row in document["rows"]}
    yield details("Networks", code(json.dumps(options, indent=1)))
    yield details("Recipe", code(json.dumps(document["plan"]["recipe"], indent=1)))
