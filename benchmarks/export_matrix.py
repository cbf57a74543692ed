"""Every family in every format: largest difference to PyTorch, latency and file size, as a table.

    python benchmarks/export_matrix.py [--models lvt mat_1] [--formats onnx] [--image_size 224]

Full-size networks with random weights, one thread; two batches, and two more sizes where family and format allow. Ends
with 1 if a file disagrees. It takes about an hour.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from vitrail.deploy.export import Exported, export
from vitrail.deploy.formats import FORMATS
from vitrail.deploy.options import ExportOptions
from vitrail.errors import UserError

MODELS = ("pslt_tiny", "lvt", "pale_tiny", "emsnet_xxtiny", "mat_1", "partialformer_b0")
HEADER = (
    "network",
    "format",
    "batch x pixels: largest difference of the largest output",
    "PyTorch ms",
    "file ms",
    "MB",
)


def row(model: str, made: Exported) -> tuple[str, ...]:
    checks = (f"{c.batch} x {c.size[0]}x{c.size[1]}: {c.relative:.1e}" for c in made.checks)
    figures = (f"{made.torch_ms:.1f}", f"{made.runtime_ms:.1f}", f"{made.megabytes:.1f}")
    return model, made.format, ", ".join(checks), *figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--formats", nargs="+", default=tuple(FORMATS), choices=tuple(FORMATS))
    parser.add_argument("--image_size", type=int, default=224)
    args = parser.parse_args()
    failed = 0
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for model in args.models:
        for format in args.formats:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{model}{FORMATS[format].suffix}"
                try:
                    made = export(f"random:{model}", ExportOptions(format, str(path), image_size=args.image_size))
                    cells = row(model, made)
                    notes = made.notes
                except UserError as error:
                    failed += 1
                    cells, notes = (model, format, str(error), "", "", ""), []
            print("| " + " | ".join(cells) + " |", flush=True)
            for note in notes:
                print(f"| | | {note} | | | |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
