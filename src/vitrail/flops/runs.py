"""Results of runs beside the papers' rows about the same network; only stored results are read, nothing is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import read_meta
from ..checkpoint.run_dir import RunDirectory
from ..config.train import TrainConfig
from ..errors import UserError
from ..models import names
from ..utils.files import read_json
from ..utils.plain import typed
from .reported import ReportedRow, has_one_size, reported_results

#: epochs of the papers' runs by family: ImageNet-1K and CIFAR
CLASSIFIER_EPOCHS = {"pslt": 450, "lvt": 300, "pale": 300, "emsnet": 300, "mat": 300, "partialformer": 300}
#: epochs of other runs; detectors are trained for 12, and for 36 in rows with "3x"
OTHER_EPOCHS = {"cifar10": 300, "cifar100": 300, "panoptic_segmentation": 36, "reid": 360}
#: optimiser steps of semantic segmentation by head
STEPS = {"semantic_fpn": 80_000, "upernet": 160_000, "segformer": 160_000}


@dataclass
class Comparison:
    """One printed row and a run of the same network.

    Attributes:
        family, table, row: where the row stands.
        results: for each metric of the row: label, unit, printed digits, caveat, the run's value in the same unit (None
            where the run has none), and the run's less the printed one.
        unlike: what of the run is unlike the paper's protocol, a phrase each.
    """

    family: str
    table: str
    row: str
    results: dict[str, dict[str, Any]]
    unlike: list[str]


@dataclass
class RunRows:
    """A run and the rows about its network.

    Attributes:
        run: its folder.
        model, model_options, task, head: of the network.
        input_size: (height, width) of its images.
        rows: of the papers.
        why_none: why there is no row, "" if there are some.
    """

    run: str
    model: str
    model_options: dict[str, Any]
    task: str
    head: str | None
    input_size: tuple[int, int]
    rows: list[Comparison] = field(default_factory=list)
    why_none: str = ""


def compare_runs(runs: Sequence[str], family: str | None = None, table: str | None = None) -> Iterator[RunRows]:
    """Put the stored results of runs beside the printed rows about their networks.

    A row is about a run's network if model, constructor options, task and head are the same, and the size of the
    images where it is one. The results are those of `summary.json`, of the best epoch on the validation data.

    Args:
        runs: run directories; their stored results stand beside the rows about the same network, without counts.
        family: of the rows; None = all.
        table: of the rows; None = all.

    Raises:
        UserError: no run directory, or a run that has not ended.
    """
    opened = [_open(run) for run in runs]  # all are checked before the first is shown
    for run, (meta, config, summary) in zip(runs, opened, strict=True):
        yield _compare(run, meta, config, summary=summary, wanted=(family, table))


def _open(run: str) -> tuple[WeightsMeta, TrainConfig, dict[str, Any]]:
    """What a run's folder says: its network, its recipe and its results.

    Raises:
        UserError: naming what is missing or damaged.
    """
    folder = Path(run)
    if not folder.is_dir() or not (folder / "config.yaml").is_file():
        raise UserError(f"--runs {run} is no run directory of vitrail: it has no config.yaml.")
    if not (folder / "summary.json").is_file():
        raise UserError(f"--runs {run} has no summary.json: the run has not ended; go on with it (train --resume).")
    summary = typed(dict, read_json(folder / "summary.json"), f"{folder / 'summary.json'}")
    metrics = summary.get("metrics")
    if not isinstance(metrics, dict):
        raise UserError(f"{folder / 'summary.json'} has no metrics: it was not written by a run of vitrail.")
    return read_meta(folder), RunDirectory(folder).config(), summary


def _compare(
    run: str,
    meta: WeightsMeta,
    config: TrainConfig,
    summary: dict[str, Any],
    wanted: tuple[str | None, str | None],
) -> RunRows:
    found = RunRows(run, meta.model, meta.model_options, task=meta.task, head=meta.head, input_size=_size(meta))
    about = reported_results(
        meta.model, meta.model_options, task=meta.task, head=meta.head, head_options=meta.head_options
    )
    rows = [row for row in about if not has_one_size(row) or row.input_size == found.input_size]
    found.why_none = _why_none(found, about, rows)
    family, table = wanted
    if rows:
        rows = [row for row in rows if family in (None, row.family) and table in (None, row.table)]
        found.why_none = "" if rows else "its rows are in other tables than the one asked for"
    same_data = [row for row in rows if row.data_set == config.data.name]
    found.rows = [_comparison(row, found, config, summary) for row in same_data or rows]
    return found


def _why_none(found: RunRows, about: list[ReportedRow], rows: list[ReportedRow]) -> str:
    if rows:
        return ""
    if about:
        sizes = " or ".join(dict.fromkeys("{}x{}".format(*row.input_size) for row in about))
        return "its images have {}x{} pixels, those of the rows {}".format(*found.input_size, sizes)
    if found.model not in names():
        return f"{found.model} is no network of the papers"
    under = f" under {found.head}" if found.head else ""
    options = f" with the options {found.model_options}" if found.model_options else ""
    return f"no table has {found.model}{options}{under} for {found.task.replace('_', ' ')}"


def _comparison(row: ReportedRow, found: RunRows, config: TrainConfig, summary: dict[str, Any]) -> Comparison:
    results = {}
    for name, result in row.results.items():
        own = summary["metrics"].get(result.kind.own.get(found.task, ""))
        usable = isinstance(own, (int, float)) and not isinstance(own, bool) and math.isfinite(own)
        value = own * result.kind.scale if usable else None
        results[name] = {
            "label": result.kind.label,
            "unit": result.kind.unit,
            "printed": result.printed,
            "caveat": result.caveat,
            "run": value,
            "difference": None if value is None else value - result.value,
        }
    return Comparison(row.family, row.table, row.row, results, unlike=list(_unlike(row, found, config, summary)))


def _unlike(row: ReportedRow, found: RunRows, config: TrainConfig, summary: dict[str, Any]) -> Iterator[str]:
    """What of a run is unlike the protocol of a row."""
    data = config.data.name
    if data != row.data_set:
        yield f"data set {data}, not {row.data_set}"
    images = summary["metrics"].get("images")
    where = str(summary.get("measured_on", "validation images"))
    if where != "validation images" or data != row.data_set or config.data.limit is not None:
        yield f"measured on {f'{images} ' if isinstance(images, int) else ''}{where}"
    steps, epochs = STEPS.get(row.head), _epochs(row)
    if steps is not None and summary.get("steps") != steps:
        yield f"{summary.get('steps')} optimiser steps, not {steps:,}"
    if steps is None and epochs is not None and summary.get("epochs") != epochs:
        yield f"{summary.get('epochs')} epochs, not {epochs}"
    if not has_one_size(row) and found.input_size != row.input_size:
        yield "images of {}x{} pixels; the row's multiply-adds are for {}x{}".format(*found.input_size, *row.input_size)
    if row.run_task != "classification" and config.init is None:
        yield "started from random weights, not from ImageNet's"


def _epochs(row: ReportedRow) -> int | None:
    """Epochs of the paper's run; None where it does not say."""
    key = row.task if row.task in OTHER_EPOCHS else row.run_task
    if key in OTHER_EPOCHS:
        return OTHER_EPOCHS[key]
    if key == "classification":
        return CLASSIFIER_EPOCHS[row.family]
    if row.head in ("retinanet", "mask_rcnn", "sparse_rcnn"):
        return 36 if "3x" in row.row else 12
    return None


def _size(meta: WeightsMeta) -> tuple[int, int]:
    height, width = meta.preprocess.image_size
    return height, width
