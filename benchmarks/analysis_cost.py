"""Time and peak memory of every method of `vitrail explain` at 224 pixels, one network a family and DeiT-Ti.

    python benchmarks/analysis_cost.py [--networks NAME...] [--methods NAME...] [--threads 2] [--output FILE.json]

Fresh weights are written to a file, and `vitrail.analysis.explain` is called with it on images of noise: one image, or
`--images` of them for the methods that take images together. Time is from the first image that is read to the last
drawing that is written, without loading libraries and weights. Memory is measured in another process, whose allocator
returns free memory at once (`vitrail.benchmark.memory`): what the method adds to the loaded network, and the peak of
the whole process. Every measurement has a process of its own.

`interactions` takes 14,336 passes of the network with its default budget, minutes on two cores: it is measured with
`--budget`, and the time of the default budget is computed from that, by the number of passes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vitrail.analysis.explain import METHODS, explain
from vitrail.benchmark.benchmark import write
from vitrail.benchmark.machine import describe, load_average
from vitrail.benchmark.memory import STATUS, host_peak
from vitrail.benchmark.networks import network_of
from vitrail.checkpoint.format import meta_of, save_weights
from vitrail.checkpoint.sources import TIMM
from vitrail.data.transforms.classification import eval_transform
from vitrail.errors import UserError

#: the smallest of every family, and a column of tokens
NETWORKS = (
    *("pslt_tiny", "lvt", "pale_tiny", "emsnet_xxtiny", "mat_1", "partialformer_b0"),
    "timm:deit_tiny_patch16_224",
)
SIDE = 224
#: images, pairs, contexts and orders: measured, and `explain`'s default
BUDGET, DEFAULT_BUDGET = (1, 2, 4, 7), (4, 8, 16, 7)
HEADINGS = ("network", "method", "seconds", "added MB", "peak MB of the process")


def weights_of(name: str, folder: Path) -> Path:
    """A file of fresh weights."""
    network = network_of(name, (SIDE, SIDE))
    path = folder / f"{name.removeprefix(TIMM)}.safetensors"
    save_weights(path, network.state_dict(), meta_of(network))
    return path


def write_images(folder: Path, count: int) -> list[Path]:
    """Images of noise, a little larger than the network's input."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (256, 288, 3), dtype=np.uint8)).save(path)
    return paths


def likeliest(network: nn.Module, path: Path) -> str:
    """The number of the class that a network sees in an image: interactions are of images classified correctly."""
    with torch.inference_mode():
        prepared = eval_transform(meta_of(network).preprocess)(Image.open(path).convert("RGB"))
        return str(int(network(prepared[None]).argmax()))


def prepared(weights: Path, method: str, images: Sequence[Path], options: dict[str, Any]) -> Callable[[], Any]:
    """The work to measure: every image read, looked at, and drawn."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401 - loading it is not the method's time

    save = tempfile.mkdtemp(dir=weights.parent)
    found = explain(weights, images, method=method, save=save, device="cpu", note=lambda text: None, **options)  # pyright: ignore[reportArgumentType] - a name of METHODS

    def call() -> None:
        failed = [result.error for result in found if result.error]
        if failed:
            raise RuntimeError(failed[0])

    return call


def seconds(threads: int, *arguments: Any) -> float | str:
    """Seconds of `prepared(*arguments)`; a sentence where the method has no meaning for the network."""
    torch.set_num_threads(threads)
    try:
        call = prepared(*arguments)
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    except UserError as error:
        return str(error)


def memory(threads: int, *arguments: Any) -> tuple[float | None, float | None]:
    """Bytes that `prepared(*arguments)` adds at its peak, and the peak of this process; None where unknown."""
    torch.set_num_threads(threads)
    added = host_peak(lambda: prepared(*arguments), again=False)
    if added is None:
        return None, None
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return added, 1024.0 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def passes(budget: Sequence[int]) -> int:
    """Forward passes of interactions: four for each context."""
    images, pairs, contexts, orders = budget
    return 4 * images * pairs * contexts * orders


def measured(name: str, method: str, weights: Path, images: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """The row of one network and method."""
    options: dict[str, Any] = {}
    used = images if METHODS[method].together else images[:1]
    if method == "interactions":
        used = images[: args.budget[0]]
        options = {"budget": tuple(args.budget), "class_name": alone(_likeliest, name, images[0])}
    arguments = (args.threads, weights, method, used, options)
    row: dict[str, Any] = {"network": name, "method": method, "images": len(used), "options": options}
    took = alone(seconds, *arguments)
    if isinstance(took, str):
        return {**row, "refused": took}
    added, peak = alone(memory, *arguments)
    row |= {"seconds": took, "added_mb": _mb(added), "peak_mb": _mb(peak)}
    if method == "interactions":
        scale = passes(DEFAULT_BUDGET) / passes(args.budget)
        row |= {"passes": passes(args.budget), "seconds_of_default_budget_computed": took * scale}
    return row


def _likeliest(name: str, path: Path) -> str:
    return likeliest(network_of(name, (SIDE, SIDE)), path)


def _mb(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---|---:|---:|---:|"]
    for row in rows:
        count = f", {row['images']} images" if row["images"] > 1 else ""
        begin = f"| `{row['network']}` | {row['method']}{count}"
        if "refused" in row:
            lines.append(f"{begin} | not for this network | - | - |")
            continue
        extra = ""
        if "passes" in row:
            begin += f", {row['passes']:,} passes"
            minutes = row["seconds_of_default_budget_computed"] / 60
            extra = f" (computed for {passes(DEFAULT_BUDGET):,}: {minutes:.0f} min)"
        added, peak = ("-" if row[key] is None else f"{row[key]:.0f}" for key in ("added_mb", "peak_mb"))
        lines.append(f"{begin} | {row['seconds']:.1f}{extra} | {added} | {peak} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--images", type=int, default=8, help="images of methods that take them together")
    parser.add_argument("--budget", type=int, nargs=4, default=BUDGET, help="of interactions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args(argv)
    rows, load = [], load_average()
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), max(args.images, args.budget[0]))
        for name in args.networks:
            weights = weights_of(name, Path(folder))
            for method in args.methods:
                rows.append(measured(name, method, weights, images, args))
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if args.output:
        machine = {**describe(), "threads": args.threads, "load": [load, load_average()]}
        write({"machine": machine, "image_size": [SIDE, SIDE], "rows": rows}, args.output)


if __name__ == "__main__":
    main()
