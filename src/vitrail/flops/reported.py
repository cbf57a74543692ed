"""The papers' tables as printed: every row with its network, its counts and its results.

The one reader of `papers/*.csv`: accuracy, AP, mIoU, PQ, rank-1, milliseconds and images a second by row, and the rows
that are about a network.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ..errors import UserError, unknown
from ..models import family_of, names
from ..models.catalog import TOP1_CAVEATS
from ..models.pyramid import constructor_options

#: families with tables; VOLO's baselines are rows of LVT's
PAPERS = ("pslt", "lvt", "pale", "emsnet", "mat", "partialformer")
#: rows about other networks, under our heads
COMPETITORS = "competitors"
#: everything `reproduce` can count
GROUPS = (*PAPERS, COMPETITORS)
#: heads that are part of the networks themselves
CLASSIFIERS = ("linear", "conv1280_linear", "gap1280_linear", "class_attention")
#: options that change how a network is trained, evaluated or counted, and not which network it is
NEUTRAL = frozenset(
    ("num_classes", "drop_rate", "drop_path_rate", "mix_token", "aux_logit_weight", "pad_mode", "device", "dtype")
)
#: options of heads that follow from the data
CLASS_COUNTS = frozenset(("num_classes", "num_things", "num_stuff", "num_keypoints", "num_ids"))


@dataclass(frozen=True)
class Metric:
    """One kind of result in the papers' tables.

    Attributes:
        label: as tables name it.
        unit: "%", "ms", "images/s", "GB", "" for ratios, or "points": a difference of percentages.
        own: name of the same metric of a run, by task; empty where a run has none.
        scale: a run's value times this is in `unit`.
    """

    label: str
    unit: str
    own: dict[str, str]
    scale: float = 100.0


def _boxes(name: str) -> dict[str, str]:
    return {"detection": name, "instance_segmentation": f"box_{name}"}


#: every result of the tables, in the order in which they are shown
METRICS = {
    "top1": Metric("top-1", "%", {"classification": "top1"}, scale=1),
    "top5": Metric("top-5", "%", {"classification": "top5"}, scale=1),
    "v2_top1": Metric("ImageNet-V2 top-1", "%", {}),
    "pacc": Metric("top-1 a million parameters", "", {}),
    "facc": Metric("top-1 a billion multiply-adds", "", {}),
    "ap_box": Metric("box AP", "%", _boxes("AP")),
    "ap50_box": Metric("box AP50", "%", _boxes("AP50")),
    "ap75_box": Metric("box AP75", "%", _boxes("AP75")),
    "aps_box": Metric("box AP small", "%", _boxes("APs")),
    "apm_box": Metric("box AP medium", "%", _boxes("APm")),
    "apl_box": Metric("box AP large", "%", _boxes("APl")),
    "ap_mask": Metric("mask AP", "%", {"instance_segmentation": "AP"}),
    "ap50_mask": Metric("mask AP50", "%", {"instance_segmentation": "AP50"}),
    "ap75_mask": Metric("mask AP75", "%", {"instance_segmentation": "AP75"}),
    "ap_kpt": Metric("keypoint AP", "%", {"keypoints": "AP"}),
    "ap50_kpt": Metric("keypoint AP50", "%", {"keypoints": "AP50"}),
    "ap75_kpt": Metric("keypoint AP75", "%", {"keypoints": "AP75"}),
    "miou": Metric("mIoU", "%", {"semantic_segmentation": "mIoU"}),
    "miou_ms": Metric("mIoU at several scales", "%", {}),
    "pq": Metric("PQ", "%", {"panoptic_segmentation": "PQ"}),
    "pq_th": Metric("PQ of things", "%", {"panoptic_segmentation": "PQ_things"}),
    "pq_st": Metric("PQ of stuff", "%", {"panoptic_segmentation": "PQ_stuff"}),
    "rank1": Metric("rank-1", "%", {"reid": "rank1"}),
    "map": Metric("mAP", "%", {"reid": "mAP"}),
    "cpu_ms": Metric("CPU", "ms", {}),
    "gpu_ms": Metric("GPU", "ms", {}),
    "fps": Metric("speed", "images/s", {}),
    "throughput_img_s": Metric("throughput", "images/s", {}),
    "mem_gb": Metric("peak memory", "GB", {}),
    "head_share_pct": Metric("classifier's share of the parameters", "%", {}),
    "delta_top1_v2_vs_pvtv2": Metric("ImageNet-V2 top-1 over PVTv2", "points", {}),
    "delta_top1_v2_vs_swin_xt": Metric("ImageNet-V2 top-1 over Swin-XT", "points", {}),
    "delta_top1_v2_vs_convnext": Metric("ImageNet-V2 top-1 over ConvNeXt", "points", {}),
    "delta_top1_v2_vs_halonet": Metric("ImageNet-V2 top-1 over HaloNet", "points", {}),
}


@dataclass(frozen=True)
class Reported:
    """One printed result.

    Attributes:
        metric: its name, a key of `METRICS`.
        printed: the digits as printed, such as "45.0".
        caveat: what is uncertain about it, "" if nothing is; to be shown wherever the number is.
    """

    metric: str
    printed: str
    caveat: str = ""

    @property
    def value(self) -> float:
        """The number."""
        return float(self.printed)

    @property
    def kind(self) -> Metric:
        """Its label and unit."""
        return METRICS[self.metric]

    def text(self) -> str:
        """Such as "top-1 76.7 %", with a mark where there is a caveat."""
        unit = f" {self.kind.unit}" if self.kind.unit else ""
        return f"{self.kind.label} {self.printed}{'*' if self.caveat else ''}{unit}"


@dataclass(frozen=True)
class ReportedRow:
    """One row of a paper's table, as printed.

    Attributes:
        family: of networks; one paper or chapter each.
        table, row: their names in the paper.
        model: the network of this library; "" for the only row that is about a module.
        options: its constructor options.
        task: what the row is about: a task, "cifar10", "cifar100", "latency" (a row about speed) or "config" (a
            configuration).
        head: of the row; those of `CLASSIFIERS` are part of the networks.
        head_options: its constructor options.
        input_size: (height, width) for which the row's multiply-adds are counted.
        params_m, flops_g: parameters in millions and multiply-adds in billions as printed; "" if they are not.
        results: printed results by name of metric.
        note: what there is to say about the row.
    """

    family: str
    table: str
    row: str
    model: str
    options: dict[str, Any]
    task: str
    head: str
    head_options: dict[str, Any]
    input_size: tuple[int, int]
    params_m: str
    flops_g: str
    results: dict[str, Reported]
    note: str

    @property
    def run_task(self) -> str:
        """The task of a run of this row."""
        return "classification" if self.head in CLASSIFIERS else self.task

    @property
    def data_set(self) -> str:
        """The name, as `--data` has it, of the data set that the results are for."""
        if self.task in ("cifar10", "cifar100"):
            return self.task
        if self.run_task == "classification":
            return "imagenet"
        return {"semantic_segmentation": "ade20k", "reid": "market1501"}.get(self.task, "coco")

    def value(self, metric: str) -> float | None:
        """The number printed for a metric of `METRICS`; None if there is none.

        Raises:
            KeyError: no such metric.
        """
        if metric not in METRICS:
            raise KeyError(metric)
        return self.results[metric].value if metric in self.results else None


def read_rows(family: str) -> list[dict[str, str]]:
    """The rows of a family's tables, or of the competitors, as texts, by column of the file.

    Raises:
        UserError: no such family.
    """
    if family not in GROUPS:
        raise UserError(unknown("family", family, list(GROUPS)))
    text = resources.files("vitrail.flops").joinpath(f"papers/{family}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def reported_rows(family: str) -> tuple[ReportedRow, ...]:
    """The rows of a family's tables.

    Raises:
        UserError: no such family.
    """
    return tuple(parse_row(row) for row in read_rows(family))


def parse_row(row: dict[str, str]) -> ReportedRow:
    """A row from its texts.

    Raises:
        ValueError: a result of an unknown kind, twice, or not a number.
    """
    options = json.loads(row["options"] or "{}")
    return ReportedRow(
        family=row["family"],
        table=row["table"],
        row=row["row"],
        model=row["model"],
        options=options,
        task=row["task"],
        head=row["head"],
        head_options=json.loads(row["head_options"] or "{}"),
        input_size=(int(row["input_h"] or 0), int(row["input_w"] or 0)),
        params_m=row["params_m"],
        flops_g=row["flops_g"],
        results=parse_metrics(row["metrics"], "" if options else TOP1_CAVEATS.get(row["model"], "")),
        note=row["note"],
    )


def parse_metrics(text: str, caveat: str = "") -> dict[str, Reported]:
    """The results in the column `metrics`, such as "top1=74.9;fps=669.2".

    Args:
        text: of the column.
        caveat: of a top-1.

    Raises:
        ValueError: a result of an unknown kind, twice, or not a number.
    """
    found: dict[str, Reported] = {}
    for entry in filter(None, text.split(";")):
        name, _, printed = entry.partition("=")
        if name not in METRICS or name in found:
            raise ValueError(f"{entry!r}: {'repeated' if name in found else 'unknown'} result")
        float(printed)
        found[name] = Reported(name, printed, caveat if name == "top1" else "")
    return found


# ---- rows about a network -----------------------------------------------------------------------------------------


def reported_results(
    model: str,
    model_options: dict[str, Any] | None = None,
    *,
    task: str = "classification",
    head: str | None = None,
    input_size: tuple[int, int] | None = None,
    head_options: dict[str, Any] | None = None,
) -> list[ReportedRow]:
    """The rows with results that are about a network, in the papers' order.

    Two descriptions of a network are the same if its constructor gets the same options, whether they are given or are
    the variant's own; options of training and of the number of classes are left aside.

    Args:
        model: name; one that is not ours has no rows.
        model_options: constructor options of the network.
        task: of a run, such as "semantic_segmentation".
        head: of dense tasks and re-identification; None = a classifier.
        input_size: (height, width) of the images; None = any. Only compared where the network's input has one size.
        head_options: constructor options of the head; where a row names another value, it is about another head.
    """
    if model not in names():
        return []
    return [
        row
        for row in _all_rows()
        if row.results
        and row.model
        and row.run_task == task
        and (None if row.head in CLASSIFIERS else row.head) == head
        and _same_head(row.head_options, head_options or {})
        and (input_size is None or not has_one_size(row) or row.input_size == tuple(input_size))
        and same_network(row.model, row.options, model, model_options or {})
    ]


def has_one_size(row: ReportedRow) -> bool:
    """True if images of a row's task have one size, that of its counts; False where only counting fixes a size."""
    return row.run_task in ("classification", "reid", "keypoints") or row.head == "ssdlite"


def same_network(model: str, options: dict[str, Any], other: str, other_options: dict[str, Any]) -> bool:
    """True if two registered names with options are the same network; options in `NEUTRAL` are not compared."""
    if family_of(model) != family_of(other):
        return False
    return _identity(model, options) == _identity(other, other_options)


def _identity(model: str, options: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    model_cls, found = constructor_options(model, options)
    return model_cls, {name: _one_form(value) for name, value in found.items() if name not in NEUTRAL}


def _one_form(value: Any) -> Any:
    """Lists as tuples, and one value a stage as the value where all four are the same."""
    if not isinstance(value, (list, tuple)):
        return value
    entries = tuple(_one_form(entry) for entry in value)
    return entries[0] if len(entries) == 4 and all(entry == entries[0] for entry in entries) else entries


def _same_head(row: dict[str, Any], given: dict[str, Any]) -> bool:
    compared = [name for name in row if name in given and name not in CLASS_COUNTS]
    return all(_one_form(given[name]) == _one_form(row[name]) for name in compared)


def _all_rows() -> Iterator[ReportedRow]:
    for family in PAPERS:
        yield from reported_rows(family)
