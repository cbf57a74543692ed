"""Speed of every family on one GPU beside two networks of timm each, in slots that print as they finish.

    python benchmarks/gpu.py [--minutes 9] [--output gpu.json] [--device cuda] [--forms eager,graph,compiled]
    python benchmarks/gpu.py --show gpu.json
    python benchmarks/gpu.py --device cpu --smoke --output smoke.json    # that the program works, in seconds

A slot that would not fit into the minutes is left for the next call of the same command, which measures what its file
lacks. First come the card's peak rates, then every network's throughput at batch 1, 64 and 256 in bf16 and fp16,
eagerly and as one CUDA graph, with peak memory and launched kernels; then a training step at batch 128 (bf16 autocast,
AdamW in one kernel); PSLT's Table 10; and last `torch.compile`, which takes up to a minute a network.

Calls are queued without waiting in between, as batches of a data set are. Weights are random, with random statistics.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.benchmark.benchmark import write
from vitrail.benchmark.machine import describe
from vitrail.benchmark.networks import Build, images_of, network_of
from vitrail.benchmark.paper_tables import rows_of
from vitrail.benchmark.roofline import synchronise
from vitrail.benchmark.speed import difference
from vitrail.errors import UserError
from vitrail.flops.profile import profile
from vitrail.flops.reported import reported_rows
from vitrail.utils.files import read_json
from vitrail.utils.tf32 import tf32

FORMS = ("eager", "graph", "compiled")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: ours, each with two of timm's of about its accuracy
NETWORKS = {
    "pslt": ("deit_small_patch16_224", "tiny_vit_5m_224"),
    "lvt": ("mobilevitv2_075", "swiftformer_xs"),
    "pale_tiny": ("swin_tiny_patch4_window7_224", "pvt_v2_b2"),
    "emsnet_tiny": ("mobilevitv2_100", "tiny_vit_5m_224"),
    "mat_2": ("pvt_v2_b1", "efficientvit_b1"),
    "partialformer_b1": ("efficientvit_b1", "tiny_vit_5m_224"),
}
ONE_BLOCK = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
#: seconds of a slot before one of its kind was measured
EXPECTED = {"peaks": 10.0, "speed": 25.0, "training": 15.0, "table": 20.0, "compiled": 60.0}


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long.

    Attributes:
        networks: ours, each with networks of timm.
        builds: constructor options, where they are not the default ones.
        side: height and width of the images.
        batches, precisions, forms: of the throughput.
        training_batch: of the training step.
        matmul: rows and columns of the products of the peak rates.
        window: seconds of a measurement; three are taken, and their median counts.
        table: the rows of PSLT's Table 10 are measured.
    """

    networks: dict[str, tuple[str, ...]]
    builds: dict[str, dict[str, Any]]
    side: int = 224
    batches: tuple[int, ...] = (1, 64, 256)
    precisions: tuple[str, ...] = ("bf16", "fp16")
    forms: tuple[str, ...] = FORMS
    training_batch: int = 128
    matmul: int = 8192
    window: float = 0.2
    table: bool = True

    @property
    def sources(self) -> list[str]:
        """Ours first."""
        theirs = dict.fromkeys(name for names in self.networks.values() for name in names)
        return [*self.networks, *(f"timm:{name}" for name in theirs)]


FULL = Plan(NETWORKS, {})
SMOKE = Plan(
    {"mat_1": ("test_vit",)},
    {"mat_1": ONE_BLOCK},
    side=64,
    batches=(1, 2),
    precisions=("bf16",),
    forms=("eager", "graph"),
    training_batch=2,
    matmul=64,
    window=0.01,
    table=False,
)


# ---- measuring --------------------------------------------------------------------------------------------------


def seconds_a_call(call: Callable[[], Any], device: torch.device, window: float) -> float:
    """Seconds of a call among calls that are queued without waiting: the median of three windows."""
    for _ in range(3):
        call()
    synchronise(device)

    def taken(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            call()
        synchronise(device)
        return (time.perf_counter() - started) / count

    count = max(1, int(window / max(taken(2), 1e-6)))
    return statistics.median(taken(count) for _ in range(3))


def graphed(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A network as one CUDA graph for images of this shape; call it without gradients.

    The output of a call is overwritten by the next one.
    """
    held = x.clone()
    stream = torch.cuda.Stream(x.device)
    stream.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(stream):  # libraries choose their kernels and workspaces before the capture
        for _ in range(3):
            model(held)
    torch.cuda.current_stream(x.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(held)

    def run(x: Tensor) -> Tensor:
        held.copy_(x)
        graph.replay()
        return out

    return run


def launches(call: Callable[[], Any], device: torch.device) -> int:
    """Kernels and copies that a call launches on a GPU; operators that it calls on a processor."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    gpu = device.type == "cuda"
    call()
    with recorded(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
        call()
        synchronise(device)
    kind = DeviceType.CUDA if gpu else DeviceType.CPU
    return sum(event.device_type == kind for event in found.events() or ())


def peak_mb(call: Callable[[], Any], device: torch.device) -> float | None:
    """Megabytes that PyTorch holds at the peak of a call, weights included; None on a processor."""
    if device.type != "cuda":
        return None
    call()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) / 1e6


def peaks(plan: Plan, device: torch.device) -> list[dict[str, Any]]:
    """GMAC/s of a large product in every precision, with TF32 too, and GB/s of a copy (read and written)."""
    n = plan.matmul
    rows = []
    for name, dtype in (*DTYPES.items(), ("tf32", torch.float32)):
        x = torch.randn(n, n, device=device).to(dtype)
        with tf32(name == "tf32"):
            rate = n**3 / seconds_a_call(partial(torch.mm, x, x), device, plan.window) / 1e9
        rows.append({"name": name, "gmac_per_second": rate})
    source = torch.ones(4 * n * n, device=device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / seconds_a_call(partial(target.copy_, source), device, plan.window) / 1e9
    return [*rows, {"name": "copy", "gb_per_second": rate}]


def built(source: str, plan: Plan) -> nn.Module:
    """The network in evaluation mode, in fp32 on the processor."""
    return network_of(source, (plan.side, plan.side), Build(plan.builds.get(source, {})))


def placed(network: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    return copy.deepcopy(network).to(device, dtype).to(memory_format=torch.channels_last)


def batch_of(network: nn.Module, plan: Plan, batch: int, device: torch.device) -> Tensor:
    x = images_of(network, batch, (plan.side, plan.side)).to(device)
    return x.contiguous(memory_format=torch.channels_last)


def form_of(form: str, model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A network in a form, for images like x."""
    if form == "graph":
        return graphed(model, x)
    return torch.compile(model, dynamic=False) if form == "compiled" else model


def speed_row(plan: Plan, network: nn.Module, precision: str, *, batch: int, form: str, device: torch.device) -> dict:
    """Images a second of a network in one form; the memory of a graph is a pool of its own, which is not counted."""
    model = placed(network, DTYPES[precision], device)
    x = batch_of(network, plan, batch, device).to(DTYPES[precision])
    with torch.inference_mode():
        first_image = images_of(network, 1, (plan.side, plan.side))
        x[:1] = first_image.to(device)
        run = form_of(form, model, x)
        off = difference(network(first_image), run(x)[:1])
        seconds = seconds_a_call(lambda: run(x), device, plan.window)
        memory = None if form == "graph" else peak_mb(lambda: run(x), device)
        first = form == "eager" and batch == plan.batches[0]
        found = {"launches": launches(lambda: run(x), device)} if first else {}
    return {
        "precision": precision,
        "batch": batch,
        "form": form,
        "images_per_second": batch / seconds,
        "peak_mb": memory,
        "difference": off if off < float("inf") else None,
        **found,
    }


def speeds(plan: Plan, source: str, forms: tuple[str, ...], device: torch.device) -> list[dict[str, Any]]:
    """Rows of a network; a form that fails says why."""
    network = built(source, plan)
    macs = profile(network, (3, plan.side, plan.side)).macs
    rows = []
    for precision in plan.precisions:
        for batch in plan.batches:
            for form in forms:
                with_reason = {"precision": precision, "batch": batch, "form": form}
                try:
                    row = speed_row(plan, network, precision, batch=batch, form=form, device=device)
                except Exception as error:  # capturing, compiling and a lack of memory raise errors of their own types
                    row = {**with_reason, "refused": (str(error).strip() or type(error).__name__).splitlines()[0]}
                rows.append({"source": source, "gmac": macs / 1e9, **row})
                _free(device)
    return rows


def training(plan: Plan, source: str, device: torch.device) -> list[dict[str, Any]]:
    """A training step: bf16 autocast, weights in fp32, AdamW in one kernel."""
    model = placed(built(source, plan), torch.float32, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x = batch_of(model, plan, plan.training_batch, device)
    y = torch.arange(len(x), device=device) % 10

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            out = model(x)
        F.cross_entropy((out[0] if isinstance(out, tuple) else out).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    rate = plan.training_batch / seconds_a_call(step, device, plan.window)
    return [
        {"source": source, "batch": plan.training_batch, "images_per_second": rate, "peak_mb": peak_mb(step, device)}
    ]


def table10(plan: Plan, device: torch.device) -> list[dict[str, Any]]:
    """PSLT's Table 10 in fp32 without TF32, at batch 1 and 64, as the paper states neither; with its printed speeds."""
    printed = {row.entry.source: (row.entry.name, float(row.printed["fps"])) for row in rows_of("pslt:10")}
    for row in reported_rows("competitors"):
        if row.task == "classification" and "fps" in row.results:
            printed[f"timm:{row.model}"] = (row.row, float(row.results["fps"].printed))
    rows = []
    for source, (name, fps) in printed.items():
        network = built(source, plan)
        for batch in (1, 64):
            found = speed_row(plan, network, "fp32", batch=batch, form="eager", device=device)
            rows.append({"source": source, "name": name, "printed": fps, **found})
            _free(device)
    return rows


def _free(device: torch.device) -> None:
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- slots ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A measurement that is made in one go.

    Attributes:
        kind: a key of `EXPECTED`.
        name: in the file.
        measure: its rows.
    """

    kind: str
    name: str
    measure: Callable[[], list[dict[str, Any]]]


def slots(plan: Plan, device: torch.device) -> Iterator[Slot]:
    """All slots, the most telling first."""
    gpu = device.type == "cuda"
    forms = tuple(form for form in plan.forms if form == "eager" or (form == "graph" and gpu))
    yield Slot("peaks", "peaks", lambda: peaks(plan, device))
    if forms:
        for source in plan.sources:
            yield Slot("speed", f"speed {source}", partial(speeds, plan, source, forms, device))
    for source in plan.sources:
        yield Slot("training", f"training {source}", partial(training, plan, source, device))
    if plan.table:
        yield Slot("table", "table pslt:10", lambda: table10(plan, device))
    if "compiled" not in plan.forms:
        return
    middle = plan.batches[len(plan.batches) // 2]
    for precision, batch in ((p, b) for b in (middle, *plan.batches) for p in plan.precisions):
        for source in plan.sources:
            one = replace(plan, batches=(batch,), precisions=(precision,))
            name = f"compiled {source} {precision} {batch}"
            yield Slot("compiled", name, partial(speeds, one, source, ("compiled",), device))


def run(plan: Plan, device: torch.device, document: dict[str, Any], *, minutes: float, file: Path) -> list[str]:
    """Measure the slots that the document lacks, as far as the minutes go; returns the names of those left."""
    started, expected, left = time.perf_counter(), dict(EXPECTED), []
    for slot in slots(plan, device):
        if slot.name in document["slots"] or slot.name in left:
            continue
        if time.perf_counter() - started + expected[slot.kind] > 60 * minutes:
            left.append(slot.name)
            continue
        began = time.perf_counter()
        try:
            rows = slot.measure()
        except Exception as error:  # one network must not cost the others' results
            rows = [{"refused": f"{type(error).__name__}: {str(error).strip()[:300]}"}]
            _free(device)
        expected[slot.kind] = time.perf_counter() - began
        document["slots"][slot.name] = rows
        write(document, file)
        for row in rows:
            print(f"{slot.name}: {line(row)}", flush=True)
    return left


def line(row: dict[str, Any]) -> str:
    """A row as a line of text."""
    values = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if value is not None
    )
    return ", ".join(values)


def opened(file: Path, device: torch.device, smoke: bool) -> dict[str, Any]:
    """The document of an earlier call on the same device, or a new one.

    Raises:
        UserError: the file is something else, or of another device or version.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    own = {"what": "vitrail on one device", "device": name, "smoke": smoke, "torch": torch.__version__}
    if not file.exists():
        return {**own, "machine": describe(), "slots": {}}
    found = read_json(file)
    if not isinstance(found, dict) or not isinstance(found.get("slots"), dict):
        raise UserError(f"{file} was not written by this command: choose another --output.")
    for key, value in own.items():
        if found.get(key) != value:
            raise UserError(
                f"{file} holds measurements of {key} {found.get(key)}, not {value}: choose another --output."
            )
    return found


# ---- tables -----------------------------------------------------------------------------------------------------


def tables(document: dict[str, Any]) -> str:
    """The document as tables of a page."""
    rows = [row for found in document["slots"].values() for row in found]
    peak = {row["name"]: row["gmac_per_second"] for row in rows if "gmac_per_second" in row}
    lines = [f"{document['device']}, torch {document['torch']}", ""]
    lines += [
        f"- {row['name']}: {line({key: value for key, value in row.items() if key != 'name'})}"
        for row in document["slots"].get("peaks", [])
        if "name" in row
    ]
    lines += ["", "| network | precision | batch | form | images/s | of the peak product | peak MB | launches |"]
    lines += ["|---|---|---:|---|---:|---:|---:|---:|"]
    for row in rows:
        if "form" not in row or "printed" in row:
            continue
        cells = [f"`{row['source']}`", row["precision"], row["batch"], row["form"]]
        if "refused" in row:
            lines.append(f"| {' | '.join(map(str, cells))} | {row['refused'][:80]} | - | - | - |")
            continue
        rate = row["images_per_second"]
        share = f"{100 * row['gmac'] * rate / peak[row['precision']]:.1f} %" if row["precision"] in peak else "-"
        cells += [f"{rate:.0f}", share, _whole(row.get("peak_mb")), _whole(row.get("launches"))]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| training | batch | images/s | peak MB |", "|---|---:|---:|---:|"]
    lines += [
        f"| `{row['source']}` | {row['batch']} | {row['images_per_second']:.0f} | {_whole(row['peak_mb'])} |"
        for name, found in document["slots"].items()
        if name.startswith("training ")
        for row in found
        if "images_per_second" in row
    ]
    return "\n".join([*lines, *orders([row for row in rows if "printed" in row])])


def orders(rows: list[dict[str, Any]]) -> list[str]:
    """The networks of PSLT's Table 10 from the fastest on, as printed and as measured."""
    found = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        own = [row for row in rows if row["batch"] == batch]
        for key, title in (("printed", "as printed"), ("images_per_second", f"measured, fp32, batch {batch}")):
            ranked = sorted(own, key=lambda row: -row[key])
            found.append(f"- {title}: " + " > ".join(f"{row['name']} {row[key]:.0f}" for row in ranked))
    return ["", "PSLT, Table 10, images/s:", "", *dict.fromkeys(found)] if found else []


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop; the same command goes on")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="JSON file, continued if it is there")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--forms", help="some of eager,graph,compiled; all by default, with --smoke not compiled")
    parser.add_argument("--smoke", action="store_true", help="small networks, to see that the program works")
    parser.add_argument("--show", type=Path, help="print the tables of a JSON file and measure nothing")
    args = parser.parse_args(argv)
    try:
        if args.show:
            print(tables(read_json(args.show)))
            return 0
        plan = SMOKE if args.smoke else FULL
        if args.forms is not None:
            plan = replace(plan, forms=tuple(args.forms.split(",")))
        if not set(plan.forms) <= set(FORMS):
            raise UserError(f"--forms {args.forms}: choose from {', '.join(FORMS)}.")
        if args.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError("no usable CUDA device; --device cpu --smoke shows that the program works.")
        device = torch.device(args.device)
        document = opened(args.output, device, args.smoke)
        torch.backends.cudnn.benchmark = True
        with tf32(False):
            left = run(plan, device, document, minutes=args.minutes, file=args.output)
    except UserError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    print(f"\n{tables(document)}")
    if left:
        print(f"\n{len(left)} slots are left, from {left[0]!r} on: the same command measures them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
