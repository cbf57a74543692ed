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
from .reported import CLASSIFIERS, PAPERS, read_rows

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
    """

    family: str
    table: str
    row: str
    model: str
    options: dict[str, Any]
    task: str
    input_size: tuple[int, int]
    printed_params: str
    params: float | None
    params_rule: str
    printed_flops: str
    flops: float | None
    flops_rule: str
    verdict: str
    reason: str


def reproduce(family: str | None = None, table: str | None = None) -> Iterator[Result]:
    """Compare every row of the papers' tables with our counts.

    Args:
        family: one family; all if none is named.
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


def _rows(family: str | None, table: str | None) -> list[dict[str, str]]:
    rows = [row for name in ([family] if family else PAPERS) for row in read_rows(name)]
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
    return Result(
        family=row["family"],
        table=row["table"],
        row=row["row"],
        model=row["model"],
        options=json.loads(row["options"] or "{}"),
        task=row["task"],
        input_size=(int(row["input_h"] or 0), int(row["input_w"] or 0)),
        printed_params=row["params_m"],
        params=params,
        params_rule=row["params_rule"],
        printed_flops=row["flops_g"],
        flops=flops,
        flops_rule=row["flops_rule"],
        verdict=verdict,
        reason=reason or row["note"] or ("no reported value to compare with" if verdict == "not_countable" else ""),
    )


def _counted(row: dict[str, str]) -> tuple[float | None, float | None, str]:
    """Parameters in millions and multiply-adds in billions, None where not counted, and the reason for that."""
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
    params = count_parameters(model, row["params_rule"] or "all", row["params_scope"] or "total") / 1e6
    return params, total(backbone, head, rule_of(row["flops_rule"])) / 1e9 if row["flops_rule"] else None, ""


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
    model = timm.create_model(name, device="meta", **{"num_classes": classes, **json.loads(options or "{}")}).eval()
    return model, sum(count(model, (3, *size)).values(), Counts())


def _module_flops(row: dict[str, str]) -> int:
    """Multiply-adds of the only row that is about a module: partial attention on a grid of tokens."""
    from ..models.partialformer import PartialAttention

    options = json.loads(row["options"])

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = PartialAttention(**options, device="meta")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(x, x)

    written = count(Attention().eval(), (options["dim"], int(row["input_h"]), int(row["input_w"])))
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
