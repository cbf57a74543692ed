"""Print how far the networks' outputs are from the stored ones of reference implementations.

    python tests/parity/table.py [FAMILY ...] [--form eager|compiled|both] [--json | --markdown]

FAMILY is pslt, lvt (with VOLO), pale, emsnet, mat or partialformer; all without one. VITRAIL_TEST_DATA names the folder
beside which the stored outputs lie. Every network is built by `timm.create_model(name, checkpoint_path=FILE)` and run
in float32 on one CPU thread; the compiled form takes inductor a minute or more a network. Ends with 1 if a difference
exceeds 1e-4.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cases import FAMILIES, Case, cases
from compare import FORMS, TOLERANCE, Difference, measure
from rich.console import Console
from rich.table import Table

from vitrail.utils.progress import bar

Row = tuple[Case, dict[str, Difference]]


def rows(families: list[str], forms: tuple[str, ...]) -> list[Row]:
    """Every case in the forms wanted; a bar on standard error, or a line a case where that is no terminal."""
    chosen = cases(*families)
    out: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, bar("comparing", len(chosen) * len(forms)) as advance:
        for case in chosen:
            found = {}
            for form in forms:
                started = time.perf_counter()
                found[form] = measure(case, Path(folder), form)
                advance()
                if not sys.stderr.isatty():
                    print(f"{case} {form}: {found[form]}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
            out.append((case, found))
    return out


def cells(case: Case, found: dict[str, Difference]) -> list[str]:
    """One row as text."""
    options = {name: value for name, value in case.options.items() if name != "features_only"}
    seed, batch, height, width = case.input
    shown = [case.family, case.model, json.dumps(options) if options else "", f"{height}x{width}", f"{seed} / {batch}"]
    for difference in found.values():
        shown.append("maps only" if difference.logits is None else f"{difference.logits:.1e}")
        shown.append(f"{difference.features:.1e} ({difference.where})")
    return shown


def heads(forms: tuple[str, ...]) -> list[str]:
    """The names of the columns."""
    of_forms = [f"{form}: {what}" for form in forms for what in ("logits", "features")]
    return ["family", "model", "options", "size", "seed / batch", *of_forms]


def print_table(found: list[Row], forms: tuple[str, ...]) -> None:
    table = Table(*heads(forms), title="Largest differences from the stored outputs")
    for row in found:
        within = all(difference.within(TOLERANCE) for difference in row[1].values())
        table.add_row(*cells(*row), style=None if within else "bold red")
    console = Console()
    console.width = max(console.width, 160 if not console.is_terminal else 0)
    console.print(table)
    console.print(summary(found), highlight=False)


def markdown(found: list[Row], forms: tuple[str, ...]) -> str:
    """The table as a page."""
    columns = heads(forms)
    lines = [
        "# Outputs compared with reference implementations",
        "",
        f"Written by `python tests/parity/table.py --form {forms[0] if len(forms) == 1 else 'both'} --markdown`. "
        "PSLT, LVT and VOLO against their authors' code, Pale, EMSNet, MAT and PartialFormer against independent "
        "implementations of the papers; both with the same random weights, loaded here by "
        "`timm.create_model(name, checkpoint_path=FILE)`.",
        "",
        "Float32 on one CPU thread; *compiled*: by `torch.compile` (inductor, `dynamic=False`). Logits: the largest "
        "absolute difference. Features: the largest difference of mean, deviation and first values of stem, stages and "
        "final norm, in standard deviations of the one named.",
        "",
        summary(found),
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(cells(*row))} |" for row in found),
    ]
    return "\n".join(lines)


def summary(found: list[Row]) -> str:
    """One sentence on all rows."""
    outside = sum(not difference.within(TOLERANCE) for _, forms in found for difference in forms.values())
    compared = sum(len(forms) for _, forms in found)
    return f"{compared - outside} of {compared} comparisons within {TOLERANCE:g}."


def as_json(found: list[Row]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    names = ("seed", "batch", "height", "width")
    return [
        {
            "family": case.family,
            "case": case.key,
            "model": case.model,
            "options": case.options,
            **dict(zip(names, case.input, strict=True)),
            **{form: dataclasses.asdict(difference) for form, difference in forms.items()},
        }
        for case, forms in found
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--form", choices=(*FORMS, "both"), default="eager")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the rows as JSON")
    how.add_argument("--markdown", action="store_true", help="print a page for docs/papers/parity.md")
    args = parser.parse_args()
    if unknown := set(args.family) - set(FAMILIES):
        parser.error(f"no family {', '.join(sorted(unknown))}; choose from {', '.join(FAMILIES)}")
    torch.set_num_threads(1)

    forms = FORMS if args.form == "both" else (args.form,)
    found = rows(args.family, forms)
    if not found:
        parser.error("no stored outputs: VITRAIL_TEST_DATA is not set, or no folder `parity` lies beside it")
    if args.json:
        print(json.dumps(as_json(found), indent=1))
    elif args.markdown:
        print(markdown(found, forms))
    else:
        print_table(found, forms)
    return 0 if all(d.within(TOLERANCE) for _, by_form in found for d in by_form.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
