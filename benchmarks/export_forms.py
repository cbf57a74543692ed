"""Latency of exported files without and with their export forms, side by side.

    python benchmarks/export_forms.py NETWORK... [--classes PaleAttention ...] [--model_options JSON] [--free]

For every network and runtime one file is written without the forms of its format (`forms` of its `Backend`) and one
with them; both are compared with PyTorch and then timed in interleaved rounds. bf16 runs OpenVINO's float file with its
precision hint. `--classes` leaves out these classes' forms only, all others stay in both files. `--free` writes files
of any batch and size, as `vitrail export` does by default; otherwise the shape is fixed. With one thread times are
those of the processor, so that the turns of other processes on its core do not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitrail.benchmark.machine import describe, load_average, pinned_threads
from vitrail.benchmark.networks import Build, images_of, network_of, sources
from vitrail.benchmark.runtimes import has_bf16, opened
from vitrail.benchmark.speed import REWRITTEN, TimedForm, default_rounds, measure
from vitrail.deploy.export.backends import BACKENDS, Backend
from vitrail.deploy.export.metadata import Metadata
from vitrail.deploy.export.trace import Graph, Shape

#: runtime and precision -> format of the file
RUNTIMES = {"onnxruntime": "onnx", "openvino": "openvino", "openvino bf16": "openvino"}
HEADER = (
    "network",
    "runtime",
    "batch",
    "before ms",
    "after ms",
    "before / after (quartiles)",
    "difference before, after",
)


@dataclass
class Row:
    """Times of one network in one runtime.

    Attributes:
        before, after: median milliseconds of the file without and with the forms.
        ratio: median of the rounds' ratios before / after.
        quartiles: of these ratios.
        differences: of each file's outputs from PyTorch's, relative to the largest.
        load: average number of waiting processes at the end.
    """

    network: str
    runtime: str
    batch: int
    before: float
    after: float
    ratio: float
    quartiles: tuple[float, float]
    differences: tuple[float, float]
    load: float | None

    def cells(self) -> tuple[str, ...]:
        ratio = f"{self.ratio:.2f} ({self.quartiles[0]:.2f} to {self.quartiles[1]:.2f})"
        differences = ", ".join(f"{each:.1e}" for each in self.differences)
        return (
            self.network,
            self.runtime,
            str(self.batch),
            f"{self.before:.2f}",
            f"{self.after:.2f}",
            ratio,
            differences,
        )


def formed() -> dict[str, type[nn.Module]]:
    """The classes that have a form in some runtime, by name."""
    backends = (BACKENDS[format] for format in RUNTIMES.values())
    return {kind.__name__: kind for backend in backends for kind in backend.forms}


def without_forms(backend: Backend, classes: Sequence[type[nn.Module]]) -> Backend:
    """The backend without the forms of some classes."""
    kept = {kind: form for kind, form in backend.forms.items() if kind not in classes}
    return type(type(backend).__name__, (type(backend),), {"forms": kept})()


def write(network: nn.Module, backend: Backend, shape: Shape, path: Path) -> None:
    """Write a network as a file of a format, in its forms."""
    metadata = Metadata(network.meta, backend.name, shape.axes, ["logits"])
    graph = Graph(backend.in_form(network))
    backend.write(backend.trace(graph, shape), path, metadata, shape)


def compared(
    name: str, files: Sequence[Path], runtime: str, images: np.ndarray, expected: np.ndarray, args: argparse.Namespace
) -> Row:
    """The row of the two files, without and with the forms, in one runtime."""
    if runtime == "openvino bf16" and not has_bf16():
        raise SystemExit("this processor has no bf16 instructions: leave 'openvino bf16' out of --runtimes")
    exact = None if runtime == "openvino bf16" else REWRITTEN
    name_of_runtime, _, precision = runtime.partition(" ")
    forms = []
    for label, file in zip(("before", "after"), files, strict=True):
        run = opened(
            str(file), name_of_runtime, precision=precision or "fp32", threads=args.threads, shape=images.shape
        )
        forms.append(
            TimedForm(f"{name} {label}", partial(run, images), len(images), reference=expected, tolerance=exact)
        )
    clock = time.process_time if args.threads == 1 else time.perf_counter
    before, after = measure(forms, args.rounds or default_rounds(len(images)), clock)
    for timing in (before, after):
        if timing.refused:
            raise SystemExit(f"{timing.name} in {runtime} {timing.refused}")
    low, middle, high = np.quantile(np.divide(before.seconds, after.seconds), (0.25, 0.5, 0.75))
    return Row(
        network=name,
        runtime=runtime,
        batch=len(images),
        before=1e3 * before.median,
        after=1e3 * after.median,
        ratio=float(middle),
        quartiles=(float(low), float(high)),
        differences=(before.difference or 0.0, after.difference or 0.0),
        load=load_average(),
    )


def rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    """The rows of one network, one a runtime."""
    size = (args.image_size[0], args.image_size[-1])
    network = network_of(name, size, Build(json.loads(args.model_options)))
    images = images_of(network, args.batch_size, size)
    with torch.inference_mode():
        expected = network(images).numpy()
    shape = Shape(None if args.free else args.batch_size, size, free_size=args.free, channels=images.shape[1])
    left_out = [formed()[each] for each in args.classes or formed()]
    with tempfile.TemporaryDirectory() as folder:
        written: dict[str, list[Path]] = {}
        for runtime in args.runtimes:
            backend = BACKENDS[RUNTIMES[runtime]]
            if backend.name not in written:
                paths = [Path(folder) / f"{label}{backend.suffix}" for label in ("before", "after")]
                write(network, without_forms(backend, left_out), shape, paths[0])
                write(network, backend, shape, paths[1])
                written[backend.name] = paths
            yield compared(name, written[backend.name], runtime, images.numpy(), expected, args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="names of our networks, or patterns")
    parser.add_argument("--classes", nargs="+", help="leave out the forms of these classes only")
    parser.add_argument("--model_options", default="{}", help="constructor options of the networks, as JSON")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--image_size", nargs="+", type=int, default=[224], help="pixels: side, or height and width")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--free", action="store_true", help="files of any batch and size")
    parser.add_argument("--rounds", type=int, help="default 15, from a batch of 16 on 7")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file of the rows and the machine")
    args = parser.parse_args()
    if unknown := set(args.classes or ()) - {*formed()}:
        known = ", ".join(formed())
        parser.error(f"--classes {' '.join(sorted(unknown))}: no such form; there are those of {known}")
    if args.output and args.output.exists():
        parser.error(f"--output {args.output} exists already")
    return args


def show(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    args = arguments()
    found: list[Row] = []
    show(HEADER)
    show(["---"] * len(HEADER))
    with pinned_threads(args.threads):
        for name in sources(args.networks, []):
            for row in rows(name, args):
                found.append(row)
                show(row.cells())
    if args.output:
        document: dict[str, Any] = {"machine": describe(), "rows": [asdict(row) for row in found]}
        document["settings"] = {key: value for key, value in vars(args).items() if key != "output"}
        args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
