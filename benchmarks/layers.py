"""Where the time of an exported network goes in OpenVINO, kind of layer by kind, beside the layers' ceiling.

    python benchmarks/layers.py NETWORK... [--precision fp32,bf16] [--image_size 224] [--batch_size 1] [--rounds 15]
                                [--files DIR] [--output FILE.json]

Networks are names of ours or timm:NAME. Each is written as `vitrail export` does it and run with OpenVINO's counters,
which add some percent to the time. "products" are convolutions and linear layers, "attention" products of two
activations, "fused attention" whole attention in one layer, whose products are not counted. Rates stand beside the
ceiling (`ceilings.py`) of the same process; the last line has the network's own count. Counters measure time on the
wall: let nothing else run.
"""

from __future__ import annotations

import argparse
import collections
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ceilings import ceiling, ceilings
from vitrail.benchmark.benchmark import write
from vitrail.benchmark.forms import Candidate, with_file
from vitrail.benchmark.machine import describe, load_average, pinned_threads
from vitrail.benchmark.networks import images_of, network_of, sources
from vitrail.deploy.export.backends.openvino import new_core
from vitrail.flops.profile import profile as count

HINTS = {"fp32": "f32", "bf16": "bf16"}
WARM_UP = 5
#: OpenVINO's types of layers, by what they are called here
KINDS = {
    "products": ("Convolution", "FullyConnected"),
    "depthwise": ("GroupConvolution",),
    "attention": ("MatMul", "ScaledDotProductAttention"),
    "softmax": ("Softmax",),
    "norms": ("MVN",),
    "copies": ("Reorder", "Transpose", "VariadicSplit", "Split", "Concat", "Gather", "StridedSlice", "Pad", "Tile"),
    "elementwise": ("Subgraph", "Eltwise", "Add", "Multiply", "Subtract", "Convert", "Gelu", "Swish"),
}


@dataclass
class Kind:
    """The layers of one kind.

    Attributes:
        layers: number of layers that ran.
        ms: milliseconds of all of them, the median of the calls.
        gmac: billions of multiply-adds; 0 of kinds that are no products.
    """

    name: str
    layers: int
    ms: float
    gmac: float


def kind_of(layer_type: str, made_of: str = "") -> str:
    """What a type of layer is called here; `made_of` names the layers it was made of."""
    if layer_type == "Subgraph" and "MatMul" in made_of:
        return "fused attention"
    return next((name for name, types in KINDS.items() if layer_type in types), "other")


def multiply_adds(op: Any) -> float:
    """Multiply-adds of a layer of a compiled graph; 0 of layers that are no products."""
    layer_type = op.get_rt_info()["layerType"].astype(str)
    if kind_of(layer_type) not in ("products", "depthwise", "attention"):
        return 0.0
    out = math.prod(op.output(0).get_shape())
    first, second = (tuple(op.input(i).get_shape()) for i in (0, 1))
    if layer_type == "FullyConnected":
        return float(out * first[-1])
    if (
        layer_type == "MatMul"
    ):  # transpositions may be part of the layer: its inputs' numbers say what the sum runs over
        rows = math.prod(op.output(0).get_shape()[:-2])
        return out * math.sqrt(math.prod(first) * math.prod(second) / (out * rows))
    outputs = op.output(0).get_shape()[1]
    return float(out * math.prod(second) / outputs)


def profile(path: Path, images: np.ndarray, precision: str, *, threads: int, rounds: int) -> list[Kind]:
    """The kinds of layers of an OpenVINO file, those that take most time first."""
    core = new_core()
    graph = core.read_model(path)
    graph.reshape(list(images.shape))
    options = {"PERF_COUNT": True, "INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": threads}
    model = core.compile_model(graph, "CPU", options)
    request = model.create_infer_request()
    calls: list[dict[str, float]] = []
    ops = {op.get_friendly_name(): op for op in model.get_runtime_model().get_ordered_ops()}
    ran: dict[str, str] = {}
    for number in range(WARM_UP + rounds):
        request.infer([images])
        times: dict[str, float] = collections.defaultdict(float)
        for layer in request.profiling_info:
            if layer.real_time.total_seconds() > 0:
                made_of = ops[layer.node_name].get_rt_info()["originalLayersNames"].astype(str)
                ran[layer.node_name] = kind = kind_of(layer.node_type, made_of)
                times[kind] += 1e3 * layer.real_time.total_seconds()
        if number >= WARM_UP:
            calls.append(times)
    found = []
    for kind in dict.fromkeys(ran.values()):
        layers = [name for name, own in ran.items() if own == kind]
        ms = float(np.median([times[kind] for times in calls]))
        found.append(Kind(kind, len(layers), ms, sum(multiply_adds(ops[name]) for name in layers) / 1e9))
    return sorted(found, key=lambda own: -own.ms)


def table(kinds: list[Kind], gmac: float, best: float) -> str:
    """The kinds of one network as a Markdown table; `gmac` is the network's count, `best` the ceiling in GMAC/s."""
    whole = sum(kind.ms for kind in kinds)
    lines = ["| kind | layers | ms | share of the time | GMAC | GMAC/s | of the ceiling |", "|---" + "|---:" * 6 + "|"]
    for kind in kinds:
        rate = 1e3 * kind.gmac / kind.ms if kind.gmac and kind.ms else None
        cells = ["-"] * 3 if rate is None else [f"{kind.gmac:.3f}", f"{rate:.0f}", f"{rate / best:.2f}"]
        lines.append(f"| {kind.name} | {kind.layers} | {kind.ms:.2f} | {kind.ms / whole:.2f} | {' | '.join(cells)} |")
    rate = 1e3 * gmac / whole
    lines.append(
        f"| all | {sum(k.layers for k in kinds)} | {whole:.2f} | 1 | {gmac:.3f} | {rate:.0f} | {rate / best:.2f} |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--precision", default="fp32,bf16", type=lambda text: text.split(","))
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=Path, help="folder of exported files, which are used again and kept")
    parser.add_argument("--output", type=Path, help="file for the JSON document")
    args = parser.parse_args()
    if unknown := {*args.precision} - {*HINTS}:
        parser.error(f"--precision {' '.join(sorted(unknown))}: must be of {', '.join(HINTS)}")
    size, documents = (args.image_size, args.image_size), []
    with pinned_threads(args.threads), tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        layers = ceilings(args.threads, args.rounds)
        for source in sources(args.networks, []):
            network = network_of(source, size)
            candidate = Candidate(source, runtime="openvino", batch=args.batch_size, image_size=size)
            file = Path(str(with_file(candidate, network, folder).file))
            images = images_of(network, args.batch_size, size).numpy()
            gmac = args.batch_size * count(network, images.shape[1:]).macs / 1e9
            for precision in args.precision:
                kinds = profile(file, images, precision, threads=args.threads, rounds=args.rounds)
                best = ceiling(layers["openvino", precision])
                print(f"\n`{source}`, {precision}, batch {args.batch_size}, ceiling {best:.0f} GMAC/s\n")
                print(table(kinds, gmac, best), flush=True)
                document = {"network": source, "precision": precision, "ceiling": best, "gmac": gmac}
                documents.append({**document, "kinds": [asdict(kind) for kind in kinds]})
    if args.output:
        settings = {"batch_size": args.batch_size, "image_size": args.image_size, "threads": args.threads}
        write({"machine": {**describe(), "load": load_average()}, "settings": settings, "rows": documents}, args.output)


if __name__ == "__main__":
    main()
