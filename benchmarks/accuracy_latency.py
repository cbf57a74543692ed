"""Published top-1 against measured time: our networks and timm's, on this machine.

    python benchmarks/accuracy_latency.py --results FILE.json [--plot docs/accuracy_latency.png] [--batch_size 1]
        [--runtime onnxruntime,openvino] [--precision fp32,int8] [--form eager] [--threads 1] [--rounds N]
        [--networks PATTERN...] [--baselines PATTERN...] [--files DIR] [--draw]

Of several runtimes the faster one counts, network by network. Networks are measured in lots. Every lot includes the
same network, the anchor, whose ratios make the times of different lots comparable. The results are written after each
lot; networks in the file are not measured again. --draw only draws. Accuracies are those that the papers and timm
report, in fp32: nothing was trained here, and int8.py measures what int8 costs. A network published at 256 pixels is
measured at 256.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.benchmark.baselines import baselines
from vitrail.benchmark.benchmark import benchmark, write
from vitrail.benchmark.settings import Settings, numbers
from vitrail.checkpoint.sources import TIMM
from vitrail.models import FAMILIES
from vitrail.models.catalog import TOP1_CAVEATS, catalog
from vitrail.utils.plot import place_labels
from vitrail.utils.progress import bar

ANCHOR = "mat_2"  # measured in every lot
LOT = 5  # networks measured with the anchor in one process


def published() -> dict[str, dict[str, Any]]:
    """Every network with a reported accuracy, ours first: top1, family ("" = of timm), distilled, and its size."""
    ours = {e.name: {"top1": e.top1, "family": e.family, "distilled": False, "size": 224} for e in catalog() if e.top1}
    others = {
        TIMM + b.name: {"top1": b.top1, "family": "", "distilled": b.distilled, "size": b.image_size}
        for b in baselines()
    }
    return {**ours, **others}


def lots(names: list[str], size: int = LOT) -> list[list[str]]:
    """The networks in lots, each of which begins with the anchor."""
    rest = [name for name in names if name != ANCHOR]
    return [[ANCHOR, *rest[start : start + size]] for start in range(0, max(len(rest), 1), size)]


def measured(documents: list[dict[str, Any]]) -> set[str]:
    return {row["source"] for document in documents for row in document["rows"]}


def measure(args: argparse.Namespace, names: list[str]) -> Iterator[dict[str, Any]]:
    """The documents of the lots."""
    known = published()
    for lot in lots(names):
        settings = Settings(
            models=lot,
            batch_size=numbers("batch_size", args.batch_size),
            forms=[args.form],
            runtime=args.runtime,
            precision=args.precision,
            threads=args.threads,
            rounds=args.rounds,
            device="cpu",
            sizes={name: (known[name]["size"],) * 2 for name in lot},
        )
        with bar(", ".join(lot), settings.work()) as advance:
            yield benchmark(settings, advance, files=args.files, memory=False)


def points(documents: list[dict[str, Any]], batch: int, precision: str) -> list[dict[str, Any]]:
    """Milliseconds an image of every network in the faster runtime, fastest first; comparable across lots."""
    rows = [
        {**row, "steady": not document["unsteady"]}
        for document in documents
        for row in document["rows"]
        if row["batch"] == batch and row.get("speedup")
    ]
    # ratios are those to the anchor's first row
    firsts = [document["rows"][0]["label"] for document in documents[:1]]
    anchors = [row["median_ms"] for row in rows if row["source"] == ANCHOR and row["label"] in firsts]
    anchor, known = statistics.median(anchors or [0.0]), published()
    found: dict[str, dict[str, Any]] = {}
    for row in (row for row in rows if row["precision"] == precision):
        point = {
            **known[row["source"]],
            "name": row["source"].removeprefix(TIMM),
            "runtime": row["runtime"],
            "milliseconds": anchor / row["speedup"] / batch,
            "params": row["params"],
            "gmac": row["gmac"],
            "steady": row["steady"],
        }
        best = found.get(row["source"])
        if best is None or (point["runtime"] != best["runtime"] and point["milliseconds"] < best["milliseconds"]):
            found[row["source"]] = point
    return sorted(found.values(), key=lambda point: point["milliseconds"])


def panels_of(documents: list[dict[str, Any]], batches: list[int]) -> list[tuple[int, str]]:
    """The batch sizes and precisions that were measured."""
    precisions = documents[0]["settings"]["precision"]
    return [(b, p) for b, p in itertools.product(batches, precisions) if points(documents, b, p)]


def table(documents: list[dict[str, Any]], batches: list[int]) -> str:
    """All networks with their times, as a page's table; "ort" stands for ONNX Runtime where it is the faster one."""
    panels = panels_of(documents, batches)
    columns = [{p["name"]: p for p in points(documents, *panel)} for panel in panels]
    heads = " | ".join(f"ms an image, {precision}, batch {batch}" for batch, precision in panels)
    lines = [
        f"| network | top-1, % | parameters, M | GMAC | {heads} |",
        "|---|---:|---:|---:|" + "---:|" * len(panels),
    ]
    several = len(documents[0]["settings"]["runtime"]) > 1
    for name, point in columns[0].items():
        own = [found.get(name) for found in columns]
        times = ["-" if p is None else _time(p, several) for p in own]
        marks = (" (distilled)" if point["distilled"] else "") + ("" if point["family"] else " (timm)")
        size = f" at {point['size']}" if point["size"] != 224 else ""
        mark = "\\*" if name in TOP1_CAVEATS else ""
        numbers = f"{point['top1']:.1f}{mark}{size} | {point['params'] / 1e6:.1f} | {point['gmac']:.2f}"
        lines.append(f"| `{name}`{marks} | {numbers} | {' | '.join(times)} |")
    shown = columns[0].keys() & TOP1_CAVEATS.keys()
    return "\n".join([*lines, *(f"\n\\* `{name}`: {TOP1_CAVEATS[name]}." for name in shown)])


def _time(point: dict[str, Any], several: bool) -> str:
    ort = " ort" if several and point["runtime"] == "onnxruntime" else ""
    return f"{point['milliseconds']:.1f}{ort}{'' if point['steady'] else ' (unsteady)'}"


def draw(documents: list[dict[str, Any]], batches: list[int], path: Path) -> None:
    """Accuracy against time, one panel a batch size and precision; ours by family, timm's in grey."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured_in = panels_of(documents, batches)
    colors = dict(zip(FAMILIES, plt.get_cmap("tab10").colors, strict=False))
    every = []
    figure, panels = plt.subplots(
        1, len(measured_in), figsize=(9.5 * len(measured_in), 7), dpi=110, squeeze=False, sharey=True
    )
    for axes, (batch, precision) in zip(panels[0], measured_in, strict=True):
        found, labels = points(documents, batch, precision), []
        for family in ("", *FAMILIES):
            own = sorted((p for p in found if p["family"] == family), key=lambda p: p["top1"])
            xs, ys = [p["milliseconds"] for p in own], [p["top1"] for p in own]
            color = colors.get(family, "#999999")
            if family and own:
                axes.plot(xs, ys, "-o", color=color, label=family, linewidth=1.2, markersize=5, zorder=3)
            else:
                axes.scatter(xs, ys, 18, color=color, label="timm" if own else None)
            for point in own:
                text = point["name"].split("_patch")[0] + (" (d)" if point["distilled"] else "")
                text += "*" if point["name"] in TOP1_CAVEATS else ""
                labels.append((text, point["milliseconds"], point["top1"], 3.0))
        every.append(labels)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "235" else "")  # others would overlap
        axes.set_xlabel(f"milliseconds an image, {precision}, batch {batch}")
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("ImageNet-1K top-1 as published, %")
    panels[0][-1].legend(frameon=False, loc="lower right")
    machine, settings = documents[0]["machine"], documents[0]["settings"]
    runtimes = " or ".join(settings["runtime"])
    faster = " (the faster one)" if len(settings["runtime"]) > 1 else ""
    where = f"{settings['forms'][0]} in {runtimes}{faster}, {settings['threads']} thread(s) of {machine['cpu']}"
    notes = [f"* {name}: {caveat}" for name, caveat in TOP1_CAVEATS.items()]
    figure.suptitle("\n".join([f"{where}; (d) = trained with a teacher", *notes]), fontsize=9)
    figure.tight_layout()
    for axes, labels in zip(panels[0], every, strict=True):
        place_labels(axes, labels)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, type=Path, help="JSON file, read and added to")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--batch_size", default="1")
    parser.add_argument("--runtime", default="onnxruntime,openvino", type=lambda text: text.split(","))
    parser.add_argument("--precision", default="fp32,int8", type=lambda text: text.split(","))
    parser.add_argument("--form", default="eager")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--files", type=Path, help="folder of exported files, which are used again and kept")
    parser.add_argument("--networks", nargs="*", default=["*"], help="patterns of our names")
    parser.add_argument("--baselines", nargs="*", default=["*"], help="patterns of timm's names")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.files:
        args.files.mkdir(parents=True, exist_ok=True)
    documents = json.loads(args.results.read_text())["lots"] if args.results.is_file() else []
    patterns = [*args.networks, *(TIMM + pattern for pattern in args.baselines)]
    names = [name for name in published() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    left = [name for name in names if name not in measured(documents)]
    if left and not args.draw:
        for document in measure(args, left):
            documents.append(document)
            write({"lots": documents}, args.results)
            for sentence in document["unsteady"]:
                print(f"unsteady, measure again: {sentence}", file=sys.stderr)
    batches = numbers("batch_size", args.batch_size)
    print(table(documents, batches))
    if args.plot:
        draw(documents, batches, args.plot)


if __name__ == "__main__":
    main()
