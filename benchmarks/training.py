"""Time and peak memory of forward and backward, compared with the reference form.

    python benchmarks/training.py [--networks NAME...] [--batch_size 16] [--image_size 224] [--threads 1] [--rounds N]
        [--output FILE.json]

Both forms run in one process, in interleaved rounds, with drop path as in training; memory is measured in a process of
its own for each (`memory.py`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from memory import call_for, measured, ratio
from vitrail.benchmark.benchmark import write
from vitrail.benchmark.machine import describe, load_average, pinned_threads
from vitrail.benchmark.roofline import rates, roofline, unsteady
from vitrail.benchmark.settings import DEFAULT, numbers
from vitrail.benchmark.speed import TimedForm, default_rounds, measure

FORMS = ("reference", "eager")
CPU = torch.device("cpu")
#: key of a row, heading, decimals
COLUMNS = [
    ("reference_ms", "reference, ms", 0),
    ("eager_ms", "ours, ms", 0),
    ("times_as_fast", "times as fast", 2),
    ("reference_mb", "reference, MB", 0),
    ("eager_mb", "ours, MB", 0),
    ("times_less_memory", "times less memory", 2),
]


def row(name: str, batch: int, side: int, rounds: int | None) -> dict[str, Any]:
    """Milliseconds and MB of both forms."""
    timed_forms = [TimedForm(form, call_for(name, form, batch, side, training=True), batch) for form in FORMS]
    reference, eager = measure(timed_forms, rounds or default_rounds(batch))
    memory = [measured(name, form, batch, side, training=True) for form in FORMS]
    return {
        "network": name,
        "batch": batch,
        "side": side,
        "reference_ms": 1e3 * reference.median,
        "eager_ms": 1e3 * eager.median,
        "times_as_fast": eager.speedup,  # against the first
        "reference_mb": memory[0] and memory[0] / 1e6,
        "eager_mb": memory[1] and memory[1] / 1e6,
        "times_less_memory": ratio(*memory),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a page's table."""
    heads = " | ".join(heading for _, heading, _ in COLUMNS)
    lines = [f"| network | batch x side | {heads} |", "|---|---|" + "---:|" * len(COLUMNS)]
    for found in rows:
        cells = ["-" if found[key] is None else f"{found[key]:.{places}f}" for key, _, places in COLUMNS]
        lines.append(f"| `{found['network']}` | {found['batch']} x {found['side']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(DEFAULT))
    parser.add_argument("--batch_size", default="16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    before = load_average()
    with pinned_threads(args.threads):
        start = rates(CPU)
        rows = []
        for name in args.networks:
            for batch in numbers("batch_size", args.batch_size):
                rows.append(row(name, batch, args.image_size, args.rounds))
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        found = roofline(start, rates(CPU))
    for sentence in unsteady(found):
        print(f"unsteady, measure again: {sentence}", file=sys.stderr)
    print(table(rows))
    if args.output:
        machine = {**describe(), "threads": args.threads, "load": [before, load_average()]}
        write({"machine": machine, "unsteady": unsteady(found), "rows": rows}, args.output)


if __name__ == "__main__":
    main()
