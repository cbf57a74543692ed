"""Write docs/papers/<family>.md: the papers' tables with our counts, and differences of paper, code and this library.

    python docs/papers.py [FAMILY or mixers...]

The tables are counted; the differences are written by hand in docs/papers/notes/. The family "competitors" is
other networks under our heads; "mixers" is docs/papers/mixers.md, the costs of token mixers.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from vitrail.flops.mixers import EXAMPLE, FORMULAS, HEADS, LOCAL_ATTENTIONS, PROPERTIES, count_mixer
from vitrail.flops.reported import COMPETITORS, GROUPS
from vitrail.flops.reproduce import Result, reproduce, result_columns, verdicts
from vitrail.models.mixers import MIXERS

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
#: name of the page of token mixers
MIXERS_PAGE = "mixers"
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


def mixers_page() -> str:
    """The page of token mixers: Table 1.1 of the thesis with constants, the papers' mixers, and Table 4.1."""
    height, width, dim = EXAMPLE
    size = f"{height}x{width} tokens of {dim} channels"
    marks = ["input-dependent weights", "global", "weights by distance"]
    lines = [
        "# Token mixers and what they cost",
        "",
        "Written by `python docs/papers.py mixers` from `flops/mixers.py`, whose formulas are tested against the "
        "counts of real modules. N tokens, C channels, h heads; multiply-adds of one map, without norms and "
        "activations; weights are matrices and kernels, without biases, tables of positions and learned tokens.",
        "",
        "## Formulas",
        "",
        "Table 1.1 of the thesis, which leaves out the constants, with spatially reduced attention (PVT), MAT and "
        f"partial attention. The last columns are for {size} and {HEADS} heads, the example of Section 5.3.3.",
        "",
        _line(["mixer", "multiply-adds", "weights", *marks, "M multiply-adds", "k weights"]),
        f"|{'---|' * 6}---:|---:|",
    ]
    for formula in FORMULAS.values():
        has = (formula.input_dependent, formula.is_global, formula.relative)
        numbers = (formula.macs(*EXAMPLE, HEADS) / 1e6, formula.weights(*EXAMPLE, HEADS) / 1e3)
        lines.append(_line([formula.title, formula.cost, formula.size, *map(_yes, has), *_numbers(numbers)]))
    lines += [
        "",
        "F is the foreground with the abstract token, m = max(8, C / 32) the width of the channel MLP, e = 2. The "
        "thesis prints Eq. 5.9 with e h in the place of e h^2; its 40.1 M need e h^2. Partial attention costs less "
        "than spatially reduced and window attention either way.",
        "",
        "## The papers' other mixers",
        "",
        f"Counted from their modules (`vitrail.models.mixers`) for {size} and {HEADS} heads, as in stage 1; the "
        "ladder has two branches here, as three do not divide 64 channels.",
        "",
        _line(["mixer", "paper", "what it is", *marks, "M multiply-adds", "k weights"]),
        f"|{'---|' * 6}---:|---:|",
    ]
    for name, has in PROPERTIES.items():
        kind, options = MIXERS[name], {"num_branches": 2} if name == "ladder" else None
        macs, weights = count_mixer(name, EXAMPLE, HEADS, options=options)
        numbers = _numbers((macs / 1e6, weights / 1e3))
        lines.append(_line([f"`{name}`", kind.family, kind.description, *map(_yes, has), *numbers]))
    lines += [
        "",
        "## Local attentions",
        "",
        "Table 4.1 of the thesis.",
        "",
        _line(["attention", "windows", "how windows communicate", "operation"]),
        f"|{'---|' * 4}",
        *(_line(row) for row in LOCAL_ATTENTIONS),
    ]
    return "\n".join([*lines, ""])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _numbers(values: Sequence[float]) -> list[str]:
    return [f"{value:,.1f}" for value in values]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("\n", " ")


def main() -> None:
    """Write the pages named, or all."""
    for family in sys.argv[1:] or [*GROUPS, MIXERS_PAGE]:
        if family == MIXERS_PAGE:
            (HERE / "mixers.md").write_text(mixers_page(), encoding="utf-8")
            continue
        (HERE / f"{family}.md").write_text(page(family, list(reproduce(family))), encoding="utf-8")


if __name__ == "__main__":
    main()
