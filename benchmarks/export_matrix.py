"""Every family in every format, two sizes and two batches: largest difference to PyTorch, latency and file size.

    python benchmarks/export_matrix.py [--models lvt mat_1] [--formats onnx] [--image_size 224] [--other_size 160]

Full-size networks with random weights, one thread. A file with free axes is compared at other sizes and batches than it
was traced at; where an axis is fixed, further files are written. Exits with 1 if a file disagrees. Takes 1 to 2 hours.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.config.export import ExportOptions
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.export import Exported, export_network
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
    numbers = (f"{made.torch_ms:.1f}", f"{made.runtime_ms:.1f}", f"{made.megabytes:.1f}")
    return model, made.format, ", ".join(checks), *numbers


def show(cells: tuple[str, ...]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def further(made: Exported, other_size: int) -> list[dict[str, Any]]:
    """Options of the files that are needed besides one, so that two sizes and two batches are compared."""
    free = [axis for axis in made.shape if isinstance(axis, str)]
    if "height" in free:
        return []
    if "batch" in free:
        return [{"image_size": other_size}]
    return [{"batch_size": 2}, {"image_size": other_size}, {"image_size": other_size, "batch_size": 2}]


def exported(model: str, format: str, **options: Any) -> Exported:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{model}{BACKENDS[format].suffix}"
        return export_network(f"random:{model}", ExportOptions(format, str(path), **options))


def files(model: str, format: str, image_size: int, other_size: int) -> Iterator[Exported]:
    """One file, and those that its fixed axes ask for."""
    made = exported(model, format, image_size=image_size)
    yield made
    for options in further(made, other_size):
        yield exported(model, format, **{"image_size": image_size, **options})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--formats", nargs="+", default=tuple(BACKENDS), choices=tuple(BACKENDS))
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--other_size", type=int, default=160)
    args = parser.parse_args()
    failed = 0
    show(HEADER)
    show(("---",) * len(HEADER))
    for model, format in itertools.product(args.models, args.formats):
        try:
            for made in files(model, format, args.image_size, args.other_size):
                show(row(model, made))
                for note in made.notes:
                    show(("", "", note, "", "", ""))
        except UserError as error:
            failed += 1
            show((model, format, str(error), "", "", ""))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
