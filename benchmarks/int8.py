"""What int8 costs and gains on trained networks: accuracy, agreement, latency and size of float and int8 files.

    python benchmarks/int8.py RUN... [--formats onnx openvino] [--images 128] [--output FILE.json]

Every run directory is exported in float and in int8, as `vitrail export --quantize int8` does it: ranges of activations
are measured on `--images` of its training images, both files are run on all of its validation images, and their
latencies are measured side by side (batch 1, one thread, the run's size). Nothing is refused for a loss of accuracy.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail.benchmark.benchmark import write
from vitrail.benchmark.machine import describe, load_average
from vitrail.config.export import ExportOptions
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.export import export_network

HEADINGS = (
    "network",
    "format",
    "float, %",
    "int8, %",
    "loss",
    "agreement, %",
    "float, ms",
    "int8, ms",
    "faster",
    "smaller",
)


def measured(run: str, format: Any, images: int) -> dict[str, Any]:
    """The comparison of the int8 file of a run with its float file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{BACKENDS[format].suffix}"
        options = ExportOptions(format, str(path), quantize="int8", calibration_images=images, max_drop=100)
        made = export_network(run, options)
    int8 = made.quantization
    assert int8 is not None
    return {
        "run": Path(run).name,
        "network": made.network,
        "format": format,
        "image_size": made.shape[2:],
        "data": int8.data,
        "images": int8.images,
        "calibration_images": int8.calibration_images,
        "metric": int8.metric,
        "float": int8.metric_float,
        "int8": int8.metric_int8,
        "agreement": int8.agreement,
        "agreement_of": int8.agreement_of,
        "int8_ms": made.runtime_ms,
        "latency_ratio": int8.latency_ratio,
        "megabytes": made.megabytes,
        "size_ratio": int8.size_ratio,
        "without": int8.without,
        "notes": made.notes,
    }


def heads() -> str:
    """The head of the Markdown table."""
    return f"| {' | '.join(HEADINGS)} |\n|---|---|" + "---:|" * (len(HEADINGS) - 2)


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    scores = ["-"] * 3
    if row["float"] is not None:
        scores = [f"{row['float']:.1f}", f"{row['int8']:.1f}", f"{row['float'] - row['int8']:+.1f}"]
    cells = (
        *(f"`{row['network']}`", row["format"], *scores, f"{row['agreement']:.1f}"),
        *(f"{row['int8_ms'] / row['latency_ratio']:.2f}", f"{row['int8_ms']:.2f}"),
        *(f"{1 / row['latency_ratio']:.2f}x", f"{1 / row['size_ratio']:.2f}x"),
    )
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument(
        "--formats", nargs="+", default=["onnx", "openvino"], choices=[b.name for b in BACKENDS.values() if b.quantizes]
    )
    parser.add_argument("--images", type=int, default=128, help="training images for the ranges of activations")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    load = load_average()
    rows: list[dict[str, Any]] = []
    print(heads())
    for run, format in itertools.product(args.runs, args.formats):
        rows.append(measured(run, format, args.images))
        print(line(rows[-1]), flush=True)
        if args.output:  # after every row: a later run may be refused
            write({"machine": {**describe(), "load": [load, load_average()]}, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
