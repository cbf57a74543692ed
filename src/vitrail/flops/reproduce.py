"""The papers' tables of parameters and multiply-adds, compared with our counts row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from ..errors import UserError, unknown
from ..factory import assemble
from .counting import Counts, count, rule_of
from .heads import count_with_head, total
from .parameters import count_parameters
from .reported import CLASSIFIERS, COMPETITORS, GROUPS, METRICS, Reported, parse_row, read_rows

VERDICTS = ("match", "truncated", "residual", "not_countable", "config", "wrong")
#: largest deviations of a count from that of a correct implementation
PARAMS_TOLERANCE = 1e-6  # millions
FLOPS_TOLERANCE = (2e-4, 5e-4)  # billions, share


@dataclass
class Result:
    """One row of a paper's table with our counts.

    Attributes:
        printed_params, printed_flops: as reported, in millions and billions; "" = not reported.
        params, flops: as counted, in the same units; None = not counted.
        verdict: "match", "truncated" (equal if our digits are cut off), "residual" (explained in `reason`),
            "not_countable", "config" (a row of a configuration), or "wrong": the count is not that of a correct
            implementation.
        reason: why reported and counted values differ, or why there is no count.
        results: printed results by metric: its label, its unit, the value, the digits as printed, and what is
            uncertain about it.
        source: where a competitor's row is printed; "" for rows of the family's own paper.
    """

    family: str
    table: str
    row: str
    model: str
    options: dict[str, Any]
    task: str
    head: str
    input_size: tuple[int, int]
    printed_params: str
    params: float | None
    params_rule: str
    printed_flops: str
    flops: float | None
    flops_rule: str
    verdict: str
    reason: str
    results: dict[str, dict[str, Any]]
    source: str = ""

    @property
    def differences(self) -> tuple[float | None, float | None]:
        """Counted less reported parameters and multiply-adds, in % of the reported; None where one is missing."""
        pairs = ((self.params, self.printed_params), (self.flops, self.printed_flops))
        params, flops = (
            None if counted is None or not printed else 100 * (counted / float(printed) - 1)
            for counted, printed in pairs
        )
        return params, flops

    def printed_result(self, name: str) -> str:
        """A printed result's digits, with a mark where there is a caveat; "-" if the row has none of that name."""
        found = self.results.get(name)
        return "-" if found is None else found["printed"] + ("*" if found["caveat"] else "")

    @property
    def caveats(self) -> list[str]:
        """What is uncertain about the row's printed results."""
        return [found["caveat"] for found in self.results.values() if found["caveat"]]


def reproduce(family: str | None = None, table: str | None = None) -> Iterator[Result]:
    """Compare every row of the papers' tables with our counts.

    Args:
        family: one family of networks, or "competitors": other networks under our heads; all if none is named.
        table: one table by its name in the paper, such as "Table 4"; None = all.

    Raises:
        UserError: no such family or table.
    """
    for row in _rows(family, table):
        yield _result(row)


def count_rows(family: str | None = None, table: str | None = None) -> int:
    """The number of results of `reproduce`; same arguments, same errors."""
    return len(_rows(family, table))


def verdicts(results: Sequence[Result]) -> dict[str, int]:
    """The number of rows, and of rows with each verdict."""
    found = Counter(result.verdict for result in results)
    return {"rows": len(results), **{verdict: found[verdict] for verdict in VERDICTS}}


def result_columns(results: Sequence[Result]) -> dict[str, str]:
    """The kinds of printed results that rows have, each with a heading, in the order of `reported.METRICS`."""
    return {
        name: f"{metric.label}, {metric.unit}" if metric.unit else metric.label
        for name, metric in METRICS.items()
        if any(name in result.results for result in results)
    }


def _rows(family: str | None, table: str | None) -> list[dict[str, str]]:
    rows = [row for name in ([family] if family else GROUPS) for row in read_rows(name)]
    tables = sorted({row["table"] for row in rows})
    if table is not None and table not in tables:
        raise UserError(unknown("table", table, tables))
    return [row for row in rows if table is None or row["table"] == table]


def compare(reported: str, counted: float) -> str:
    """Compare a reported value with a count: "match" if rounded, "truncated" if cut off, else "residual"."""
    value, exact = Decimal(reported), Decimal(repr(counted))
    step = Decimal(1).scaleb(int(value.as_tuple().exponent))
    if exact.quantize(step, ROUND_HALF_UP) == value:
        return "match"
    return "truncated" if exact.quantize(step, ROUND_DOWN) == value else "residual"


# ---- one row ----------------------------------------------------------------------------------------------------


def _result(row: dict[str, str]) -> Result:
    params, flops, reason = _counted(row)
    verdicts = [
        compare(reported, counted)
        for reported, counted in ((row["params_m"], params), (row["flops_g"], flops))
        if reported and counted is not None
    ]
    # the worse of the two values decides
    verdict = next((v for v in ("residual", "truncated", "match") if v in verdicts), "not_countable")
    if row["verdict"] == "config" and not verdicts:
        verdict = "config"
    deviation = _deviation(row, params, flops)
    if deviation or (verdicts and verdict != row["verdict"]):
        verdict, reason = "wrong", deviation or f"expected: {row['verdict']}"
    printed = parse_row(row)
    return Result(
        family=printed.family,
        table=printed.table,
        row=printed.row,
        model=printed.model,
        options=printed.options,
        task=printed.task,
        head=printed.head,
        input_size=printed.input_size,
        printed_params=printed.params_m,
        params=params,
        params_rule=row["params_rule"],
        printed_flops=printed.flops_g,
        flops=flops,
        flops_rule=row["flops_rule"],
        verdict=verdict,
        reason=reason or printed.note or ("no reported value to compare with" if verdict == "not_countable" else ""),
        results={name: _plain(result) for name, result in printed.results.items()},
        source=row.get("source", ""),
    )


def _plain(result: Reported) -> dict[str, Any]:
    return {
        "label": result.kind.label,
        "unit": result.kind.unit,
        "value": result.value,
        "printed": result.printed,
        "caveat": result.caveat,
    }


def _counted(row: dict[str, str]) -> tuple[float | None, float | None, str]:
    """Parameters in millions and multiply-adds in billions, None where not counted, and the reason for that."""
    if row["family"] == COMPETITORS and not row["model"]:
        return None, None, ""
    if not row["model"]:
        return None, _module_flops(row) / 1e9, ""
    size = (int(row["input_h"] or 0), int(row["input_w"] or 0))
    if row["head"] in CLASSIFIERS:
        model, backbone = _network(row["model"], row["options"], row["task"], size)
        head = Counts()
    else:
        model, backbone, head = _with_head(
            row["model"], row["options"], head=row["head"], head_options=row["head_options"], size=size
        )
    params = count_parameters(model, row["params_rule"] or "all", row["params_scope"] or "total")
    params += _parameters_of(row["model"], row.get("kept", "")) - _parameters_of(row["model"], row.get("frozen", ""))
    return params / 1e6, total(backbone, head, rule_of(row["flops_rule"])) / 1e9 if row["flops_rule"] else None, ""


@cache
def _with_head(
    name: str, options: str, head: str, head_options: str, size: tuple[int, int]
) -> tuple[nn.Module, Counts, Counts]:
    """A network with a head on the meta device, and the counts of backbone and head for an image."""
    with torch.device("meta"):
        model = assemble(name, head, json.loads(options or "{}"), json.loads(head_options or "{}"))
    return model, *(count_with_head(model, head, size) if min(size) else (Counts(), Counts()))


@cache
def _network(name: str, options: str, task: str, size: tuple[int, int]) -> tuple[nn.Module, Counts]:
    """A network on the meta device, and its counts for an image."""
    classes = {"cifar10": 10, "cifar100": 100}.get(task, 1000)
    with torch.device("meta"):
        model = timm.create_model(name, **{"num_classes": classes, **json.loads(options or "{}")}).eval()
    return model, sum(count(model, (3, *size)).values(), Counts())


@cache
def _parameters_of(name: str, modules: str) -> int:
    """Parameters of modules of a classifier, such as "conv1 layer1": those that a printed value has or lacks."""
    if not modules:
        return 0
    with torch.device("meta"):
        network = timm.create_model(name)
    return sum(p.numel() for module in modules.split() for p in network.get_submodule(module).parameters())


def _module_flops(row: dict[str, str]) -> int:
    """Multiply-adds of the only row that is about a module: partial attention on a grid of tokens."""
    from ..models.partialformer import PartialAttention
    from .mixers import Called

    options = json.loads(row["options"])
    module = Called(PartialAttention(**options, device="meta"), takes_raw=True).eval()
    written = count(module, (options["dim"], int(row["input_h"]), int(row["input_w"])))
    return sum(written.values(), Counts()).weighted(rule_of(row["flops_rule"]).backbone)


def _deviation(row: dict[str, str], params: float | None, flops: float | None) -> str:
    """A sentence if the counts deviate from those of a correct implementation, else ""."""
    found = []
    if params is not None and row["expected_params_m"]:
        expected = float(row["expected_params_m"])
        if abs(params - expected) > 1.01 * PARAMS_TOLERANCE:
            found.append(f"{params:.6f} M parameters, a correct implementation has {expected:.6f} M")
    if flops is not None and row["expected_flops_g"]:
        expected = float(row["expected_flops_g"])
        if abs(flops - expected) > max(FLOPS_TOLERANCE[0], FLOPS_TOLERANCE[1] * expected):
            found.append(f"{flops:.4f} G multiply-adds, a correct implementation has {expected:.4f} G")
    return "; ".join(found)
