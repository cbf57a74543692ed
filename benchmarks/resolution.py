"""Time and memory as a function of the image size, compared with the multiply-adds.

    python benchmarks/resolution.py [--sizes 224,384,512,768,1024] [--networks NAME...] [--against NAME...]
        [--threads 1] [--rounds N] [--output FILE.json] [--plot FILE.png]

One image. "x pixels" is the cost per pixel relative to the first size: 1 throughout is linear growth. That of the
multiply-adds is the prediction. The sizes of a network take turns in one process, so that a slow minute of the machine
affects all of them; memory is measured in a process of its own for each (`memory.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from memory import call_for, measured
from vitrail.benchmark.benchmark import write
from vitrail.benchmark.machine import describe, load_average, pinned_threads
from vitrail.benchmark.networks import network_of
from vitrail.benchmark.settings import DEFAULT, numbers
from vitrail.benchmark.speed import TimedForm, measure, ratio
from vitrail.checkpoint.sources import TIMM
from vitrail.flops.profile import profile
from vitrail.utils.progress import bar

COLUMNS = ("network", "size", "ms", "GMAC", "time x pixels", "GMAC x pixels", "peak MB", "peak MB x pixels")


def rows_of(name: str, sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """Time, multiply-adds and memory of a network at every size; `time_growth` is the median of the rounds' ratios."""
    timings = measure([TimedForm(str(size), call_for(name, "eager", 1, size)) for size in sizes], rounds)
    return [
        {
            "network": name,
            "size": size,
            "ms": 1e3 * timing.median,
            "time_growth": 1 / (ratio(timings[0], timing) or float("nan")),
            "gmac": profile(network_of(name, (size, size)), (3, size, size)).macs / 1e9,
            "mb": (measured(name, "eager", 1, size) or float("nan")) / 1e6,
        }
        for size, timing in zip(sizes, timings, strict=True)
    ]


def per_pixel(rows: list[dict[str, Any]], value: str) -> list[float]:
    """Cost per pixel at every size of one network, relative to the first size."""
    costs = [row[value] / row["size"] ** 2 for row in rows]
    return [cost / costs[0] for cost in costs]


def table(networks: list[list[dict[str, Any]]]) -> str:
    """Times, growth and memory, as a page's table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for rows in networks:
        growth = zip(*(per_pixel(rows, value) for value in ("time_growth", "gmac", "mb")), strict=True)
        for row, (time, macs, memory) in zip(rows, growth, strict=True):
            numbers = f"{row['ms']:.1f} | {row['gmac']:.2f} | {time:.2f} | {macs:.2f} | {row['mb']:.1f} | {memory:.2f}"
            lines.append(f"| `{row['network']}` | {row['size']} | {numbers} |")
    return "\n".join(lines)


def draw(networks: list[list[dict[str, Any]]], path: Path) -> None:
    """Time against pixels, and memory against pixels; dashed is what the multiply-adds predict from the first size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), dpi=110)
    for rows, color in zip(networks, plt.get_cmap("tab10").colors, strict=False):
        pixels, start = [row["size"] ** 2 for row in rows], rows[0]["ms"]
        grown, predicted = ([start * row[key] / rows[0][key] for row in rows] for key in ("time_growth", "gmac"))
        left.plot(pixels, grown, "-o", color=color, label=rows[0]["network"], markersize=4)
        left.plot(pixels, predicted, "--", color=color, linewidth=0.8)
        right.plot(pixels, [row["mb"] for row in rows], "-o", color=color, markersize=4)
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
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    networks, before = [], load_average()
    names, sizes = [*args.networks, *(TIMM + name for name in args.against)], numbers("sizes", args.sizes)
    with pinned_threads(args.threads), bar("networks", len(names)) as advance:
        for name in names:
            networks.append(rows_of(name, sizes, args.rounds))
            advance()
    print(table(networks))
    if args.output:
        machine = {**describe(), "threads": args.threads, "load": [before, load_average()]}
        write({"machine": machine, "networks": networks}, args.output)
    if args.plot:
        draw(networks, args.plot)


if __name__ == "__main__":
    main()
