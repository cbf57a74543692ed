"""Parts that pages of all tasks have: curves, metrics beside printed ones, costs, recipe and environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from ..checkpoint.load import notes as notes_of
from ..checkpoint.run_dir import BEST_EPOCH
from ..config.data import DataConfig
from ..config.train import TrainConfig
from ..errors import UserError
from ..flops.reported import METRICS, ReportedRow, reported_results
from ..utils.environment import hardware, versions
from ..utils.plain import to_dict
from .charts import Axis, Series, line_chart
from .costs import Costs
from .html import Content, Html, code, details, facts, note, number, paragraph, table, tag
from .run import Run
from .subject import Subject

#: metrics that are shown first, by task; in the order of preference
HEADLINES = {
    "classification": ("top1", "top5", "ece"),
    "detection": ("AP", "AP50"),
    "instance_segmentation": ("AP", "AP50", "box_AP"),
    "keypoints": ("AP", "AP50"),
    "panoptic_segmentation": ("PQ", "SQ", "RQ"),
    "semantic_segmentation": ("mIoU", "mAcc", "aAcc"),
    "reid": ("mAP", "rank1"),
}
#: columns of a log that are no curves
NO_CURVES = (
    "epoch",
    BEST_EPOCH,
    "step",
    "val_images",
    "val_boxes",
    "val_queries",
    "val_skipped",
    "val_pixels",
    "seconds",
)
#: metrics of a classifier that are in %; those of other tasks lie in [0, 1]
IN_PERCENT = ("top1", "top5", "mean_class", "ece")
#: what metrics are called on pages
LABELS = {"top1": "top-1", "top5": "top-5", "mean_class": "mean of classes", "ece": "ECE", "lr": "learning rate"}


def label(metric: str) -> str:
    """What a metric is called on pages."""
    return LABELS.get(metric, metric)


def shown(metric: str, value: Any) -> str:
    """A metric's value with its unit."""
    if not isinstance(value, (int, float)):
        return "–"
    if metric in IN_PERCENT:
        return f"{value:.2f} %"
    return number(value, 4)


def overview(subject: Subject, costs: Costs | None) -> list[tuple[str, Content]]:
    """The few values at the top of a page."""
    meta, run = subject.meta, subject.run
    model = meta.model if meta else run.config.model if run else subject.source
    found: list[tuple[str, Content]] = [("task", subject.task.replace("_", " ")), ("model", model)]
    if meta is not None and meta.head is not None:
        found.append(("head", meta.head))
    names = [name for name in HEADLINES.get(subject.task, ()) if name in subject.metrics]
    found += [(label(name), shown(name, subject.metrics[name])) for name in names]
    if "images" in subject.metrics:
        found.append(("images", number(subject.metrics["images"])))
    if costs is not None:
        found += [("parameters", f"{costs.params / 1e6:.2f} M"), ("multiply-adds", in_words(costs.macs))]
        if costs.eager is not None and costs.eager.refused is None:
            found.append((f"latency ({costs.timed})", f"{1e3 * costs.eager.median:.1f} ms"))
    if run is not None:
        found.append(("epochs", number(run.epochs)))
    if meta is not None and meta.training_data:
        found.append(("trained on", meta.training_data))
    return found


def in_words(count: int) -> str:
    """A large number, such as "12.3 M"."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def remarks(subject: Subject) -> list[str]:
    """What a reader must know before the numbers, a sentence each."""
    found = list(subject.missing)
    run = subject.run
    if run is not None and (sentence := run.unfinished()):
        found.insert(0, sentence)
    if run is not None and run.metrics and run.summary.get("measured_on", "validation images") != "validation images":
        found.append(f"The metrics are of {run.summary['measured_on']}: they say nothing of other images.")
    if subject.measured and subject.evaluation is not None:
        found += [f"{sentence.rstrip('.')}." for sentence in subject.evaluation.images.notes()]
        found += _unlike_stored(subject)
        images = subject.metrics.get("images", 0)
        if 0 < images < 100:
            found.append(f"Few images were measured ({images}): the metrics are coarse.")
    if subject.network is not None:
        found += [f"{sentence.rstrip('.')}." for sentence in notes_of(subject.network)]
    elif run is not None and run.summary.get("note"):
        found.append(str(run.summary["note"]))
    return list(dict.fromkeys(found))


def _unlike_stored(subject: Subject) -> list[str]:
    """A sentence where the metrics measured now are not those that the run stored."""
    stored = subject.run.metrics if subject.run else {}
    for name in HEADLINES.get(subject.task, ()):
        old, new = stored.get(name), subject.metrics.get(name)
        if isinstance(old, (int, float)) and isinstance(new, (int, float)) and abs(old - new) > 1e-3 * max(1, abs(old)):
            return [
                f"The run stored {label(name)} {shown(name, old)}, measured now is {shown(name, new)}: other data, "
                "another precision or another machine."
            ]
    return []


# ---- curves -----------------------------------------------------------------------------------------------------


def curves(runs: Sequence[tuple[str, Run]]) -> Html:
    """Loss, validation metrics and learning rate over the epochs, one line a run."""
    runs = [(name, run) for name, run in runs if run.rows]
    if not runs:
        return paragraph("The run has no log yet.", quiet=True)
    first, further = _figures(runs)
    charts = tag("div", [_curve(runs, *one) for one in first], class_="charts")
    more = details("Further curves", tag("div", [_curve(runs, *one) for one in further], class_="charts"))
    logs = [details(f"Log of {name}" if len(runs) > 1 else "Log", _log(run)) for name, run in runs]
    return tag("div", charts, more if further else None, logs)


#: title and columns of a chart
Figure = tuple[str, list[str]]


def _figures(runs: Sequence[tuple[str, Run]]) -> tuple[list[Figure], list[Figure]]:
    """Loss, the metrics shown first and the learning rate; and the other columns of the logs, a chart each."""
    columns = list(dict.fromkeys(name for _, run in runs for name in run.columns() if name not in NO_CURVES))
    columns = [name for name in columns if any(row.get(name) not in (None, -1) for _, run in runs for row in run.rows)]
    headlines = {f"val_{name}" for _, run in runs for name in HEADLINES.get(run.config.task, ())}
    together = [("Loss", ["train_loss", "val_loss"]), ("Accuracy, %", ["train_accuracy", "val_top1"])]
    first = [(title, own) for title, names in together if (own := [name for name in names if name in columns])]
    alone = [name for name in columns if name not in {name for _, names in first for name in names}]
    ahead = [name for name in alone if name in headlines or name == "lr"]
    titled = {name: (label(name.removeprefix("val_")).replace("_", " "), [name]) for name in alone}
    return first + [titled[name] for name in ahead], [titled[name] for name in alone if name not in ahead]


def _curve(runs: Sequence[tuple[str, Run]], title: str, columns: list[str]) -> Html:
    series = []
    for name, run in runs:
        for column in columns:
            what = {"train": "training", "val": "validation"}.get(column.partition("_")[0], "")
            of_run = (name if len(columns) == 1 else f"{name}, {what}") if len(runs) > 1 else what
            epochs = [row.get("epoch") or 0 for row in run.rows]
            series.append(Series(of_run, epochs, [row.get(column) for row in run.rows]))
    return line_chart(series, title, x=Axis("epoch", whole=True))


def _log(run: Run) -> Html:
    """The whole log; of a long one every so many epochs."""
    columns = run.columns()
    step = -(-len(run.rows) // 200)
    rows = [row for i, row in enumerate(run.rows) if i % step == 0 or i == len(run.rows) - 1]
    body = [[_log_value(name, row.get(name)) for name in columns] for row in rows]
    every = paragraph(f"Every {step}th epoch is shown.", quiet=True) if step > 1 else None
    return tag("div", every, table(columns, body, caption="log", digits=4, tall=True))


def _log_value(name: str, value: float | None) -> float | int | None:
    if value is None or name == "lr":
        return value
    return int(value) if value == int(value) and name in NO_CURVES else value


# ---- metrics ----------------------------------------------------------------------------------------------------


def plain_metrics(metrics: dict[str, Any]) -> dict[str, float | int]:
    """The metrics that are numbers."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def metrics_table(metrics: dict[str, Any]) -> Html:
    """All metrics with their names as in `vitrail evaluate`."""
    # runs of older versions say -1
    unknown = [name for name, value in metrics.items() if value in (None, -1)]
    plain = {**dict.fromkeys(unknown), **plain_metrics(metrics)}
    rows = [[name, None if name in unknown else plain[name]] for name in metrics if name in plain]
    told = paragraph(f"{', '.join(unknown)}: the data has no object of that size.", quiet=True) if unknown else None
    return tag("div", table(["metric", "value"], rows, caption="metrics", digits=4), told)


def reported_rows(subject: Subject) -> list[ReportedRow]:
    """The papers' rows about a network."""
    meta = subject.meta
    if meta is None:
        return []
    try:
        return reported_results(
            meta.model,
            meta.model_options,
            task=meta.task,
            head=meta.head,
            input_size=meta.preprocess.image_size,
            head_options=meta.head_options,
        )
    except (UserError, TypeError, ValueError):  # options that the constructor of a network from a file does not take
        return []


def reported_part(subject: Subject) -> Html | None:
    """The papers' results for this network beside its own; None where the papers have none."""
    rows = reported_rows(subject)
    if not rows:
        return None
    body = [
        [f"{row.family}, {row.table}", row.row, row.data_set, METRICS[name].label, _printed(row, name), own, difference]
        for row in rows
        for name in row.results
        for own, difference in [_own(subject, row, name)]
    ]
    own_data = _data_name(subject)
    told = [
        f"{one.kind.label} of {row.row}: {one.caveat}" for row in rows for one in row.results.values() if one.caveat
    ]
    if others := sorted({row.data_set for row in rows} - {own_data}):
        what = f"this network was measured on {own_data}" if own_data else "this network was not measured"
        told.insert(
            0, f"The printed results are on {', '.join(others)}; {what}: compare only results on the same data."
        )
    head = ["table", "row", "data", "result", "printed", "own", "difference"]
    return tag("div", note(*dict.fromkeys(told)), table(head, body, caption="printed results", digits=2))


def _printed(row: ReportedRow, name: str) -> str:
    one = row.results[name]
    return f"{one.printed}{'*' if one.caveat else ''} {METRICS[name].unit}".strip()


def _own(subject: Subject, row: ReportedRow, name: str) -> tuple[float | None, float | None]:
    """The subject's own value in the unit of the printed one, and its difference where the data are the same."""
    metric = METRICS[name]
    value = subject.metrics.get(metric.own.get(subject.task, ""))
    if not isinstance(value, (int, float)):
        return None, None
    own = value * metric.scale
    return own, own - row.results[name].value if row.data_set == _data_name(subject) else None


def _data_name(subject: Subject) -> str:
    """Name of the data that a subject was measured on, with what makes them others than the printed results'."""
    if subject.evaluation is not None:
        data = subject.evaluation.data
    elif subject.run and subject.metrics:
        data = subject.run.config.data
    else:
        return ""
    parts = [data.name] if data.limit is None else [data.name, f"first {data.limit} images"]
    if data.val_split != DataConfig().val_split:
        parts.append(f"{data.val_split} split")
    return ", ".join(parts)


# ---- costs ------------------------------------------------------------------------------------------------------


def costs_table(named: Sequence[tuple[str, Costs]], device: str) -> Html:
    """Parameters, multiply-adds and times, a row a network."""
    rows = []
    for name, one in named:
        size = f"{one.image_size[0]} x {one.image_size[1]}"
        times = [_time(timing) for timing in (one.eager, one.fused)]
        spread = "–"
        if one.eager is not None and one.eager.refused is None:
            spread = f"{1e3 * one.eager.quantile(0.25):.2f} to {1e3 * one.eager.quantile(0.75):.2f}"
        rows.append([name, one.params / 1e6, one.macs / 1e9, size, one.timed, times[0], spread, times[1]])
    head = [
        "network",
        "parameters, M",
        "multiply-adds, G",
        "image",
        "timed",
        "median, ms",
        "quartiles, ms",
        "fused, ms",
    ]
    refused = [
        f"{name}: the fused form is not timed, it {one.fused.refused}"
        for name, one in named
        if one.fused is not None and one.fused.refused
    ]
    rounds = next((len(one.eager.seconds) for _, one in named if one.eager is not None), 0)
    told = "Multiply-adds are those that run for one image; of a detector with a fixed number of regions. "
    if rounds:
        turns = "in turns, in one process" if len(named) > 1 else "one after another"
        told += (
            f"Times are of one image of random pixels, {rounds} calls {turns}, {device}; of a detector its backbone."
        )
    return tag(
        "div",
        table(head, rows, caption="costs", digits=(0, 3, 3, 0, 0, 2, 0, 2)),
        paragraph(told, quiet=True),
        note(*refused),
    )


def _time(timing: Any) -> float | None:
    return None if timing is None or timing.refused is not None else 1e3 * timing.median


# ---- recipe and environment -------------------------------------------------------------------------------------


def recipe_part(run: Run) -> Html:
    """The command that starts the same run, and every value of its recipe."""
    plain = {**to_dict(run.config), "resume": False, "overwrite": False}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return tag(
        "div",
        paragraph("This command starts the same run:"),
        code(run.command()),
        details("Every value of the recipe (config.yaml)", code(text)),
    )


def data_part(config: TrainConfig, run: Run) -> Html:
    """Where the data lay, and the fingerprints by which a resumed run recognises them."""
    options = [[name, str(value)] for name, value in to_dict(config.data).items() if value is not None]
    rows = [
        [split, *(_plain(known.get(name)) for name in ("count", "names", "truth", "files"))]
        for split, known in run.fingerprints.items()
    ]
    prints = (
        table(["split", "images", "names", "ground truth", "content"], rows, caption="fingerprints of the data")
        if rows
        else paragraph("No saved state holds fingerprints of the data.", quiet=True)
    )
    return tag("div", prints, details("Options of the data", table(["option", "value"], options, caption="data")))


def _plain(value: Any) -> Any:
    """A count, or a hash by its beginning, with the whole as its tooltip."""
    if isinstance(value, str):
        return tag("code", value[:12], title=value[:200])
    return value if isinstance(value, int) else None


def environment_part(runs: Sequence[tuple[str, Run]]) -> Html:
    """Versions and hardware of each run, and of this page."""
    more = ("commit", "device", "precision", "processes", "seconds")
    columns = []
    for _, run in runs:
        found = {**_dict(run.summary.get("versions")), **_dict(run.summary.get("hardware"))}
        columns.append(found | {name: run.summary[name] for name in more if name in run.summary})
    columns.append({**versions(), **hardware()})
    names = dict.fromkeys(name for found in columns for name in found)
    rows = [[name, *(_text(found.get(name)) for found in columns)] for name in names]
    return table(["", *(name for name, _ in runs), "this page"], rows, caption="environment")


def _dict(value: Any) -> dict[str, Any]:
    return {str(name): one for name, one in value.items()} if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)


def head_of_page(subject: Subject, costs: Costs | None) -> Html:
    """The few values and remarks at the top."""
    return tag("div", facts(overview(subject, costs)), note(*remarks(subject)))
