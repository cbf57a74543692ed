"""Write docs/papers/<family>.md: the papers' tables with our counts, and differences of paper, code and this library.

    python docs/papers.py [FAMILY...]

The tables are counted; the differences are written by hand in docs/papers/notes/.
"""

import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from vitrail.flops.reproduce import PAPERS, Result, reproduce, verdicts

HERE = Path(__file__).parent / "papers"
TITLES = {
    "pslt": "PSLT: Wu et al., TPAMI 2023",
    "lvt": "LVT: Yang et al., CVPR 2022",
    "pale": "Pale Transformer: Wu et al., AAAI 2022",
    "emsnet": "EMSNet: Vo, thesis 2023, chapter 3",
    "mat": "MAT: Vo, thesis 2023, chapter 4",
    "partialformer": "PartialFormer: Vo et al., ECCV 2024; thesis 2023, chapter 5",
}


def page(family: str, results: list[Result]) -> str:
    """One family's page."""
    totals = ", ".join(f"{number} {verdict.replace('_', ' ')}" for verdict, number in verdicts(results).items())
    lines = [
        f"# {TITLES[family]}",
        "",
        f"Written by `python docs/papers.py`; `vitrail reproduce {family}` prints the same. {totals}.",
        "",
        "Parameters in millions, multiply-adds in billions. *match*: the reported value is our count, rounded; "
        "*truncated*: our count with digits cut off; *residual*: neither, for the reason given; *not countable*: "
        "nothing to compare.",
        "",
        "## Where paper, authors' code and this library differ",
        "",
        (HERE / "notes" / f"{family}.md").read_text(encoding="utf-8").strip(),
        "",
    ]
    for table, rows in groupby(results, key=lambda r: r.table):
        lines += ["", f"## {table}", "", *_table(rows)]
    return "\n".join([*lines, ""])


def _table(rows: Iterable[Result]) -> list[str]:
    lines = [
        "| row | task, input | M reported | M counted | G reported | G counted | verdict |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for r in rows:
        counted = ["-" if value is None else f"{value:.4f}" for value in (r.params, r.flops)]
        shown = r.verdict.replace("_", " ") + ("" if r.verdict in ("match", "config") else f": {r.reason}")
        height, width = r.input_size
        lines.append(
            f"| {r.row} | {r.task.replace('_', ' ')}, {height}x{width} | {r.printed_params or '-'} | {counted[0]} | "
            f"{r.printed_flops or '-'} | {counted[1]} | {shown} |".replace("\n", " ")
        )
    return lines


def main() -> None:
    """Write the pages named, or all."""
    for family in sys.argv[1:] or PAPERS:
        (HERE / f"{family}.md").write_text(page(family, list(reproduce(family))), encoding="utf-8")


if __name__ == "__main__":
    main()
