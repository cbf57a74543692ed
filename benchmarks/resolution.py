"""Time and memory against the size of the image, beside what the multiply-adds predict.

    python benchmarks/resolution.py [--sizes 224,384,512,768,1024] [--networks NAME...] [--against NAME...]
        [--threads 1] [--rounds N] [--output FILE.json] [--picture FILE.png]

One image. "x pixels" is what a size costs a pixel, with the first size as 1: 1 throughout is linear growth. The same of
the multiply-adds is the formula's prediction.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vitrail.bench.benchmark import benchmark, write
from vitrail.bench.settings import DEFAULT, Settings, numbers
from vitrail.progress import bar


def per_pixel(rows: list[dict[str, Any]], value: str) -> list[float]:
    """A value's cost a pixel at every size of one network, the first size's as 1."""
    costs = [row[value] / (row["image_size"][0] * row["image_size"][1]) for row in rows]
    return [cost / costs[0] for cost in costs]


def by_network(documents: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of every network that was timed at every size."""
    found: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        for row in document["rows"]:
            if not row["refused"]:
                found.setdefault(row["source"], []).append(row)
    return {name: rows for name, rows in found.items() if len(rows) == len(documents)}


def table(documents: list[dict[str, Any]]) -> str:
    """Times, growth and memory, as a page's table."""
    lines = [
        "| network | size | ms | GMAC | time x pixels | GMAC x pixels | peak MB | peak MB x pixels |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rows in by_network(documents).items():
        times, macs = per_pixel(rows, "median_ms"), per_pixel(rows, "gmac")
        known = all(row["peak_mb"] for row in rows)
        peaks = per_pixel(rows, "peak_mb") if known else [None] * len(rows)
        for row, time, mac, peak in zip(rows, times, macs, peaks, strict=True):
            memory = "- | -" if peak is None else f"{row['peak_mb']:.1f} | {peak:.2f}"
            lines.append(
                f"| `{name}` | {row['image_size'][0]} | {row['median_ms']:.1f} | {row['gmac']:.2f} | {time:.2f} | "
                f"{mac:.2f} | {memory} |"
            )
    return "\n".join(lines)


def draw(documents: list[dict[str, Any]], path: Path) -> None:
    """Time against pixels, and memory against pixels; dashed is what the multiply-adds predict from the first size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), dpi=110)
    for (name, rows), color in zip(by_network(documents).items(), plt.get_cmap("tab10").colors, strict=False):
        pixels = [row["image_size"][0] * row["image_size"][1] for row in rows]
        predicted = [rows[0]["median_ms"] * row["gmac"] / rows[0]["gmac"] for row in rows]
        left.plot(pixels, [row["median_ms"] for row in rows], "-o", color=color, label=name, markersize=4)
        left.plot(pixels, predicted, "--", color=color, linewidth=0.8)
        right.plot(pixels, [row["peak_mb"] or float("nan") for row in rows], "-o", color=color, markersize=4)
    left.set(xlabel="pixels", ylabel="milliseconds (dashed: by multiply-adds)", xscale="log", yscale="log")
    right.set(xlabel="pixels", ylabel="peak memory of a call, MB", xscale="log", yscale="log")
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25, which="both")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="224,384,512,768,1024")
    parser.add_argument("--networks", nargs="*", default=list(DEFAULT))
    parser.add_argument("--against", nargs="*", default=["deit_small_patch16_224", "swin_tiny_patch4_window7_224"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    documents = []
    for size in numbers("sizes", args.sizes):
        settings = Settings(
            args.networks,
            args.against,
            image_size=(size, size),
            threads=args.threads,
            rounds=args.rounds,
            device="cpu",
        )
        with bar(f"{size} pixels", settings.work()) as advance:
            documents.append(benchmark(settings, advance))
        for sentence in documents[-1]["unsteady"]:
            print(f"{size} pixels: unsteady, measure again: {sentence}", file=sys.stderr)
    print(table(documents))
    if args.output:
        write({"sizes": documents}, args.output)
    if args.picture:
        draw(documents, args.picture)


if __name__ == "__main__":
    main()
