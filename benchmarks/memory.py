"""Peak memory of one call of every family's network and of its reference form.

    python benchmarks/memory.py [--networks NAME...] [--cases 16x224,1x1024] [--output FILE.json]

A case is batch x image size. The memory is what the second call adds to the resident memory of a process of its own,
whose allocator returns free memory at once (`vitrail.benchmark.memory`).
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reference import reference_form
from vitrail.benchmark.benchmark import write
from vitrail.benchmark.forms import Candidate, call_of
from vitrail.benchmark.machine import describe
from vitrail.benchmark.memory import host_peak
from vitrail.benchmark.networks import network_of
from vitrail.benchmark.settings import DEFAULT

FORMS = ("reference", "eager", "fused")


def call_for(name: str, form: str, batch: int, side: int, training: bool = False) -> Callable[[], Any]:
    """One call of a network in one of `FORMS`: a prediction, or forward and backward; the reference form in NCHW."""
    layout = "contiguous" if form == "reference" else "channels_last"
    candidate = Candidate(
        name,
        "fused" if form == "fused" else "eager",
        batch=batch,
        image_size=(side, side),
        memory_format=layout,
        training=training,
    )
    network = network_of(name, (side, side))
    return call_of(candidate, reference_form(network) if form == "reference" else network)


def peak(name: str, form: str, batch: int, side: int, training: bool) -> float | None:
    """Bytes one call adds, in this process."""
    torch.set_num_threads(1)
    return host_peak(lambda: call_for(name, form, batch, side, training), again=True)


def measured(name: str, form: str, batch: int, side: int, training: bool = False) -> float | None:
    """`peak` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, (name, form, batch, side, training))


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: MB, and the ratio of the reference form's memory to ours."""
    lines = [
        "| network | batch x side | reference, MB | eager, MB | fused, MB | reference / eager | reference / fused |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row[form] for form in FORMS] + [ratio(row["reference"], row[form]) for form in FORMS[1:]]
        text = " | ".join(
            "-" if value is None else f"{value:.2f}" if i > 2 else f"{value:.0f}" for i, value in enumerate(cells)
        )
        lines.append(f"| `{row['network']}` | {row['batch']} x {row['side']} | {text} |")
    return "\n".join(lines)


def ratio(theirs: float | None, own: float | None) -> float | None:
    return theirs / own if theirs and own else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(DEFAULT))
    parser.add_argument("--cases", default="16x224,1x1024")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        for case in args.cases.split(","):
            batch, side = map(int, case.split("x"))
            found = {form: measured(name, form, batch, side) for form in FORMS}
            megabytes = {form: None if value is None else value / 1e6 for form, value in found.items()}
            rows.append({"network": name, "batch": batch, "side": side, **megabytes})
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if args.output:
        write({"machine": describe(), "rows": rows}, args.output)


if __name__ == "__main__":
    main()
