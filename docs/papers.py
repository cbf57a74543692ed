"""Write docs/papers/<family>.md: the papers' tables with our counts, and differences of paper, code and this library.

    python docs/papers.py [FAMILY...]

The tables are counted; the differences are written by hand in docs/papers/notes/. The family "competitors" is
other networks under our heads.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from vitrail.flops.reported import COMPETITORS, GROUPS
from vitrail.flops.reproduce import Result, reproduce, result_columns, verdicts

HERE = Path(__file__).parent / "papers"
TITLES = {
    "pslt": "PSLT: Wu et al., TPAMI 2023",
    "lvt": "LVT: Yang et al., CVPR 2022",
    "pale": "Pale Transformer: Wu et al., AAAI 2022",
    "emsnet": "EMSNet: Vo, thesis 2023, chapter 3",
    "mat": "MAT: Vo, thesis 2023, chapter 4",
    "partialformer": "PartialFormer: Vo et al., ECCV 2024; thesis 2023, chapter 5",
    "competitors": "Other networks under our heads",
}
#: heading of the hand-written part of a page
DIFFERENCES, COMPARED = "Where paper, authors' code and this library differ", "What is compared"


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
        "nothing to compare. Results are those that the papers report, not ours; \\* marks an uncertain number.",
        "",
        f"## {COMPARED if family == COMPETITORS else DIFFERENCES}",
        "",
        (HERE / "notes" / f"{family}.md").read_text(encoding="utf-8").strip(),
        "",
    ]
    for table, rows in groupby(results, key=lambda r: r.table):
        lines += ["", f"## {table}", "", *_table(list(rows))]
    return "\n".join([*lines, ""])


def _table(rows: Sequence[Result]) -> list[str]:
    results, with_source = result_columns(rows), any(r.source for r in rows)
    heads = ["row", "task, input", *(["printed in"] if with_source else [])]
    numbers = ["M reported", "M counted", "G reported", "G counted", *results.values()]
    lines = [_line([*heads, *numbers, "verdict"]), f"|{'---|' * len(heads)}{'---:|' * len(numbers)}---|"]
    for r in rows:
        counted = ["-" if value is None else f"{value:.4f}" for value in (r.params, r.flops)]
        height, width = r.input_size
        lines.append(
            _line(
                [
                    r.row,
                    f"{r.task.replace('_', ' ')}, {height}x{width}",
                    *([r.source] if with_source else []),
                    *(r.printed_params or "-", counted[0], r.printed_flops or "-", counted[1]),
                    *(r.printed_result(name).replace("*", "\\*") for name in results),
                    r.verdict.replace("_", " ") + ("" if r.verdict in ("match", "config") else f": {r.reason}"),
                ]
            )
        )
    caveats = dict.fromkeys(caveat for r in rows for caveat in r.caveats)
    return [*lines, *(line for caveat in caveats for line in ("", f"\\* {caveat[0].upper()}{caveat[1:]}."))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("\n", " ")


def main() -> None:
    """Write the pages named, or all."""
    for family in sys.argv[1:] or GROUPS:
        (HERE / f"{family}.md").write_text(page(family, list(reproduce(family))), encoding="utf-8")


if __name__ == "__main__":
    main()
