"""Speed of each family relative to its reference form and to timm's networks, with the targets that were set.

    python benchmarks/targets.py [NETWORK...] [--forms FORM,...] [--batch_size 1,16] [--image_size 224] [--threads 1]
                                 [--rounds N] [--files DIR] [--output FILE.json]
    python benchmarks/targets.py [NETWORK...] --files DIR --prepare
    python benchmarks/targets.py --show FILE.json

The first batch size is measured in every form, further ones in eager and in the forms that have a target there. A ratio
of 2 means that ours is twice as fast; ratios come from interleaved rounds of one process, and with one thread from the
time of the processor. The reference form always runs eagerly in NCHW memory, whatever our form. A network of timm runs
in the same form as ours; where it cannot be fused, it runs eagerly, and the table says so. Only ours are compiled. The
authors' code may not be copied here, so its rows are not measured.

Exported files are those that `vitrail export` writes by default (timm's networks with merged branches), "itself, fixed"
those for one shape. Ranges of int8 files come from random images: their speed counts, not their outputs. The last table
compares the rate of multiply-adds with the ceiling that chains of layers reach (`ceilings.py`), in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ceilings import ceiling, ceilings
from reference import reference_form
from vitrail.benchmark.benchmark import write
from vitrail.benchmark.forms import Candidate, timed_form_of, with_file
from vitrail.benchmark.machine import describe, load_average, pinned_threads
from vitrail.benchmark.networks import images_of, network_of
from vitrail.benchmark.roofline import rates, roofline, unsteady
from vitrail.benchmark.settings import numbers
from vitrail.benchmark.speed import TimedForm, Timing, default_rounds, measure, ratio
from vitrail.flops.profile import profile
from vitrail.models import family_of

FORMS = ("eager", "fused", "compiled", "onnxruntime", "openvino", "openvino_bf16", "openvino_int8")
#: forms of exported files in floating point
FLOAT_FILES = FORMS[3:6]
REFERENCE, AUTHORS, OWN, FIXED = "reference", "authors", "itself, eager", "itself, fixed"
#: baselines that are no networks of timm
NO_PEERS = (REFERENCE, AUTHORS, OWN, FIXED)
CEILING_ROUNDS = 25
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Target:
    """Target speed-up of a network over `against` in a form, at a batch size."""

    network: str
    against: str
    form: str
    batch: int
    ratio: float


def _targets(network: str, against: str, **ratios: float) -> list[Target]:
    """Targets of one pair; `ratios` by form and batch, as eager_1."""
    keys = {key: key.rsplit("_", 1) for key in ratios}
    return [Target(network, against, form, int(batch), ratios[key]) for key, (form, batch) in keys.items()]


def _exported(network: str, against: str, ratio: float) -> list[Target]:
    """One target for files in floating point."""
    return _targets(network, against, **{f"{form}_1": ratio for form in FLOAT_FILES})


#: set before the forms were written, from the results of prototypes
TARGETS = [
    *_targets("pslt", AUTHORS, eager_1=1.3, eager_16=1.6, fused_1=1.8, fused_16=2.5, onnxruntime_1=2.2, openvino_1=3.0),
    *_targets("pslt", "deit_small_patch16_224", eager_1=1.5, fused_1=1.2),
    *_exported("pslt", "deit_small_patch16_224", 1.5),
    *_targets("lvt", AUTHORS, eager_1=1.4, eager_16=1.5, fused_1=2.0, fused_16=2.5, onnxruntime_1=2.2, openvino_1=2.6),
    *_targets("lvt", "mobilevitv2_075", eager_1=1.0, fused_1=1.0),
    *_exported("lvt", "mobilevitv2_100", 1.0),
    *_targets("lvt", "swiftformer_xs", onnxruntime_1=1 / 1.2, openvino_1=1 / 1.2),
    *_targets(
        "mat_2", REFERENCE, eager_1=1.2, eager_16=1.3, fused_1=1.5, fused_16=1.7, onnxruntime_1=1.9, openvino_1=2.3
    ),
    *_targets("mat_2", "pvt_v2_b1", eager_1=2.4, fused_1=2.5, onnxruntime_1=2.6, openvino_1=2.4),
    *_targets("mat_2", "tiny_vit_5m_224", eager_1=1.7, fused_1=1.7),
    *_exported("mat_2", "tiny_vit_5m_224", 1.3),
    *_targets("mat_2", "swiftformer_s", eager_1=1.3, fused_1=1.3),
    *_exported("mat_2", "swiftformer_s", 1.0),
    *_targets("mat_2", "efficientvit_b1", eager_1=0.9, fused_1=0.9, onnxruntime_1=0.7, openvino_1=0.7),
    *_targets("partialformer_b1", REFERENCE, eager_1=1.3, eager_16=1.5, fused_1=1.5, fused_16=2.5, openvino_1=2.5),
    *_targets("partialformer_b1", "pvt_v2_b1", eager_1=2.6, fused_1=2.6, onnxruntime_1=2.7, openvino_1=2.7),
    *_targets("partialformer_b1", "tiny_vit_5m_224", eager_1=1.8, fused_1=1.7),
    *_exported("partialformer_b1", "tiny_vit_5m_224", 1.4),
    *_targets(
        "partialformer_b1",
        "efficientvit_b1",
        eager_1=1.0,
        fused_1=1.0,
        fused_16=1.6,
        onnxruntime_1=0.8,
        openvino_1=0.8,
        onnxruntime_16=1.0,
        openvino_16=1.0,
    ),
    *_targets(
        "emsnet_tiny",
        REFERENCE,
        eager_1=1.3,
        eager_16=1.4,
        fused_1=1.6,
        fused_16=2.1,
        onnxruntime_1=3.0,
        openvino_1=3.0,
    ),
    *_targets("emsnet_xtiny", "mobilevitv2_100", eager_1=1.0),
    *_exported("emsnet_xtiny", "mobilevitv2_100", 1.2),
    *_targets("pale_tiny", "swin_tiny_patch4_window7_224", eager_1=1.05, fused_1=0.95),
    *_exported("pale_tiny", "swin_tiny_patch4_window7_224", 1.15),
    *_exported("pale_tiny", "caformer_s18", 1.0),
    # compiled: not slower than eager, and mat_2 1.2 times as fast
    *[
        target
        for name in ("pslt", "lvt", "pale_tiny", "emsnet_tiny", "mat_2", "partialformer_b1")
        for target in _targets(name, OWN, compiled_1=1.2 if name == "mat_2" else 1.0)
    ],
]
#: networks of timm of similar accuracy or time, without targets
PEERS = {
    "pslt": ["efficientformer_l1", "repvit_m1_0"],
    "lvt": ["mobilenetv3_large_100", "convnext_atto"],
    "emsnet_xtiny": ["efficientvit_m5"],
    "emsnet_tiny": ["efficientvit_b1"],
    "partialformer_b2": ["efficientvit_b2", "pvt_v2_b2"],
    "pale_tiny": ["efficientvit_b3"],
}
NETWORKS = list(dict.fromkeys([*(target.network for target in TARGETS), *PEERS]))
#: share of the layers' ceiling that a family is to reach in fp32, in the better of two runtimes
SHARES = {"mat": 0.80, "lvt": 0.80, "pale": 0.80, "pslt": 0.70, "emsnet": 0.70, "partialformer": 0.70}


def baselines_of(network: str) -> list[str]:
    """The baselines of a network: its reference form, its own eager form, its files for one shape, and its peers."""
    named = [target.against for target in TARGETS if target.network == network]
    return list(dict.fromkeys([REFERENCE, OWN, FIXED, *named, *PEERS.get(network, [])]))


def target_of(network: str, against: str, form: str, batch: int) -> float | None:
    """The target, None if none is set."""
    wanted = (network, against, form, batch)
    return next((t.ratio for t in TARGETS if (t.network, t.against, t.form, t.batch) == wanted), None)


def timm_baselines(network: str) -> list[str]:
    """The baselines that are networks of timm."""
    return [name for name in baselines_of(network) if name not in NO_PEERS]


def forms_of(network: str, batch: int, args: argparse.Namespace) -> list[str]:
    """The forms to measure: the first batch size gets all of `args.forms`, others those with a target, and eager."""
    everything = batch == numbers("batch_size", args.batch_size)[0]
    wanted = {target.form for target in TARGETS if (target.network, target.batch) == (network, batch)}
    return ["eager", *(form for form in args.forms if form != "eager" and (everything or form in wanted))]


def candidate_of(
    source: str, form: str, batch: int, args: argparse.Namespace, layout: str = "channels_last"
) -> Candidate:
    """A network in one of `FORMS`; exported networks are not fused first, since the export has its own forms.

    "fixed" after the form of an exported network stands for a file for one shape.
    """
    form, *fixed = form.split(" ")
    exported = form in FORMS[3:]
    runtime, precision = _runtime_of(form)
    return Candidate(
        source,
        form="eager" if exported else form,
        runtime=runtime if exported else "torch",
        batch=batch,
        image_size=(args.image_size, args.image_size),
        precision=precision,
        memory_format=layout,
        threads=args.threads,
        dynamic="none" if fixed else None,
    )


def _runtime_of(form: str) -> tuple[str, str]:
    """Runtime and precision of an exported form."""
    runtime, _, precision = form.partition("_")
    return runtime, precision or "fp32"


class Comparison:
    """The timed forms of one network at one batch size.

    Args:
        network: one of ours.
        args: of the command line.
        folder: for exported files.
    """

    def __init__(self, network: str, batch: int, args: argparse.Namespace, folder: Path):
        self.network, self.batch, self.args, self.folder = network, batch, args, folder
        self.timed_forms: list[TimedForm] = []
        self.notes: dict[tuple[str, str], str] = {}
        size = (args.image_size, args.image_size)
        ours = network_of(network, size)
        self.gmac = profile(ours, (3, *size)).macs / 1e9
        self.add((network, "eager"), ours)
        self.add((REFERENCE, "eager"), reference_form(ours), ours, layout="contiguous")
        others = {name: network_of("timm:" + name, size) for name in timm_baselines(network)}
        self.forms = forms_of(network, batch, args)
        for form in self.forms[1:]:
            self.add((network, form), ours)
            if form in fixed_forms(batch, args):
                self.add((network, f"{form} fixed"), ours)
        for name, other in others.items():
            for form in self.forms:
                if form != "compiled":
                    self.add((name, form), other)

    def add(
        self, key: tuple[str, str], module: nn.Module, original: nn.Module | None = None, layout: str = "channels_last"
    ) -> None:
        """Add a timed form, or a note if it is not available."""
        source, form = key
        candidate = candidate_of(source, form, self.batch, self.args, layout)
        with torch.inference_mode():
            expected = (original or module)(images_of(original or module, self.batch, candidate.image_size))
        timed_form = timed_form_of(candidate, module, expected, self.folder)[1]
        if timed_form.refused:
            self.notes[key] = timed_form.refused
            return
        timed_form.name = " ".join(key)
        self.timed_forms.append(timed_form)

    def rows(self) -> list[dict[str, Any]]:
        """Measure, and compare every form of ours with every baseline."""
        rounds = self.args.rounds or default_rounds(self.batch)
        timings = {timing.name: timing for timing in measure(self.timed_forms, rounds, clock_of(self.args))}
        pairs = [(against, form) for against in baselines_of(self.network) for form in self.forms]
        return [self.row(timings, *pair) for pair in pairs if self.compares(*pair)]

    def compares(self, against: str, form: str) -> bool:
        """False where a baseline does not exist in a form."""
        if against == FIXED:
            return form in fixed_forms(self.batch, self.args)
        return (against, form) != (OWN, "eager") and (against in (REFERENCE, AUTHORS, OWN) or form != "compiled")

    def row(self, timings: dict[str, Timing], against: str, form: str) -> dict[str, Any]:
        """One ratio with its target, or the reason why there is none."""
        key = (self.network, form)
        own_forms = {REFERENCE: (REFERENCE, "eager"), OWN: (self.network, "eager")}
        other = {**own_forms, FIXED: (self.network, f"{form} fixed")}.get(against, (against, form))
        if form == "fused" and other in self.notes:
            other = (against, "eager")
        own, theirs = timings.get(" ".join(key)), timings.get(" ".join(other))
        why = "their code must not be copied" if against == AUTHORS else self.notes.get(key) or self.notes.get(other)
        for timing in (own, theirs):
            why = why or (timing.refused and f"{timing.name} {timing.refused}" if timing else None)
        return {
            "network": self.network,
            "gmac": self.gmac,
            "against": against,
            "form": form,
            "their_form": other[1],
            "batch": self.batch,
            "ratio": ratio(theirs, own) if own and theirs else None,
            "target": target_of(self.network, against, form, self.batch),
            "milliseconds": 1e3 * own.median if own and own.seconds else None,
            "their_milliseconds": 1e3 * theirs.median if theirs and theirs.seconds else None,
            "why": why,
        }


def fixed_forms(batch: int, args: argparse.Namespace) -> list[str]:
    """The forms in which a file for one shape is measured beside the default one: in fp32, of the first batch size."""
    first = numbers("batch_size", args.batch_size)[0]
    return [form for form in args.forms if batch == first and form in FLOAT_FILES and "bf16" not in form]


def clock_of(args: argparse.Namespace) -> Any:
    """Time of the processor where one thread works: it does not count other processes' turns."""
    return time.process_time if args.threads == 1 else time.perf_counter


def shares(rows: list[dict[str, Any]], rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """What each network reaches of the layers' ceiling in the runtimes of `rates`, at every batch size."""
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in rows:
        if row["form"] in rates and row["milliseconds"] is not None:
            rate = row["gmac"] * row["batch"] / row["milliseconds"] * 1e3
            found[row["network"], row["batch"], row["form"]] = {
                **{key: row[key] for key in ("network", "batch", "form", "gmac")},
                "gmac_per_second": rate,
                "share": rate / ceiling(rates[row["form"]]),
            }
    return list(found.values())


def prepare(network: str, batch: int, args: argparse.Namespace, folder: Path) -> None:
    """Export a network and its baselines, unless the files exist."""
    forms = [form for form in forms_of(network, batch, args) if form in FORMS[3:]]
    fixed = [f"{form} fixed" for form in fixed_forms(batch, args)]
    for source in [network, *map("timm:".__add__, timm_baselines(network))] if forms else []:
        module = network_of(source, (args.image_size, args.image_size))
        for form in [*forms, *(fixed if source == network else [])]:
            print(f"{source}, {form}, batch {batch}", file=sys.stderr, flush=True)
            with_file(candidate_of(source, form, batch, args), module, folder)


def table(rows: list[dict[str, Any]]) -> str:
    """The ratios as a Markdown table: a line for each baseline and batch size, a column for each form.

    Targets are in brackets; a ratio that reaches its target is bold.
    """
    cells = {(row["network"], row["against"], row["batch"], row["form"]): _cell(row) for row in rows}
    lines = list(dict.fromkeys(key[:3] for key in cells))
    body = [[f"`{n}`", a, str(b), *(cells.get((n, a, b, form), "-") for form in FORMS)] for n, a, b in lines]
    return _page(["network", "against", "batch", *FORMS], body)


def _cell(row: dict[str, Any]) -> str:
    measured, target = row["ratio"], row["target"]
    wanted = "" if target is None else f" ({target:.2f})"
    text = "-" if measured is None else f"{measured:.2f}"
    return f"**{text}{wanted}**" if None not in (measured, target) and measured >= target else text + wanted


def times(rows: list[dict[str, Any]]) -> str:
    """Milliseconds a call as a Markdown table; compare only within one comparison."""
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in rows:
        for name, form, key in (
            (row["network"], row["form"], "milliseconds"),
            (row["against"], row["their_form"], "their_milliseconds"),
        ):
            if row[key] is not None and name not in (OWN, FIXED):
                found.setdefault((row["network"], row["batch"], name), {})[form] = row[key]
    body = [
        [f"`{comparison}`", str(batch), name, *(f"{ms[form]:.1f}" if form in ms else "-" for form in FORMS)]
        for (comparison, batch, name), ms in found.items()
    ]
    return _page(["comparison", "batch", "ms a call of", *FORMS], body)


def _page(heads: list[str], body: list[list[str]]) -> str:
    named = len(heads) - len(FORMS)
    lines = [heads, ["---"] * (named - 1) + ["---:"] * (len(FORMS) + 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences below the tables: why a pair has no ratio, and which networks of timm run in another form."""
    found = [f"{row['network']} against {row['against']}, {row['form']}: {row['why']}" for row in rows if row["why"]]
    found += [
        f"{row['against']} runs in its {row['their_form']} form beside {row['network']}, {row['form']}"
        for row in rows
        if row["ratio"] and row["against"] not in NO_PEERS and row["their_form"] != row["form"]
    ]
    return list(dict.fromkeys(found))


def ceiling_table(found: list[dict[str, Any]], rates: dict[str, list[float]]) -> str:
    """The shares as a Markdown table; the target is for the better of the runtimes in fp32."""
    heads = [f"{form}, {ceiling(own):.0f} GMAC/s" for form, own in rates.items()]
    lines = [f"| network | batch | GMAC | {' | '.join(heads)} | target |", "|---" + "|---:" * (len(heads) + 3) + "|"]
    for network, batch in dict.fromkeys((row["network"], row["batch"]) for row in found):
        own = {row["form"]: row for row in found if (row["network"], row["batch"]) == (network, batch)}
        first = next(iter(own.values()))
        target, whole = SHARES[family_of(network)], [own[form]["share"] for form in own if "bf16" not in form]
        texts = {form: f"{row['gmac_per_second']:.0f} ({row['share']:.2f})" for form, row in own.items()}
        cells = [texts.get(form, "-") for form in rates]
        reached = f"**{target:.2f}**" if max(whole, default=0) >= target else f"{target:.2f}"
        lines.append(f"| `{network}` | {batch} | {first['gmac']:.2f} | {' | '.join(cells)} | {reached} |")
    return "\n".join(lines)


def show(document: dict[str, Any]) -> None:
    """Print the tables of a run."""
    for sentence in document["unsteady"]:
        print(f"unsteady, measure again: {sentence}", file=sys.stderr)
    tables = [table(document["rows"]), times(document["rows"])]
    if document["ceilings"]:
        tables.append(ceiling_table(shares(document["rows"], document["ceilings"]), document["ceilings"]))
    print(*tables, sep="\n\n")
    print(*(f"- {sentence}" for sentence in notes(document["rows"])), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="our networks; default: all with targets")
    parser.add_argument("--forms", default=",".join(FORMS), type=lambda text: text.split(","))
    parser.add_argument("--batch_size", default="1,16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--files", type=Path, help="folder of exported files, which are used again and kept")
    parser.add_argument("--prepare", action="store_true", help="only write the exported files")
    parser.add_argument("--output", type=Path, help="file for the JSON document")
    parser.add_argument("--show", type=Path, help="print the tables of such a file; nothing is measured")
    args = parser.parse_args()
    if args.show:
        show(json.loads(args.show.read_text(encoding="utf-8")))
        return
    networks, batches = args.networks or NETWORKS, numbers("batch_size", args.batch_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.prepare:
            for network, batch in itertools.product(networks, batches):
                prepare(network, batch, args, folder)
            return
        with pinned_threads(args.threads):
            run(networks, batches, args, folder)


def layer_rates(args: argparse.Namespace) -> dict[str, list[float]]:
    """`ceilings` by form, of the forms to measure."""
    wanted = [form for form in FLOAT_FILES if form in args.forms]
    if not wanted:
        return {}
    found = ceilings(args.threads, args.rounds or CEILING_ROUNDS, clock_of(args))
    return {form: found[_runtime_of(form)] for form in wanted if _runtime_of(form) in found}


def run(networks: list[str], batches: list[int], args: argparse.Namespace, folder: Path) -> None:
    """Measure, print the tables and write the document."""
    rows, before = [], load_average()
    start, layers = rates(CPU), layer_rates(args)
    for network, batch in itertools.product(networks, batches):
        print(f"{network}, batch {batch}", file=sys.stderr, flush=True)
        rows += Comparison(network, batch, args, folder).rows()
    found = roofline(start, rates(CPU))
    machine = {**describe(), "threads": args.threads, "load": [before, load_average()]}
    document = {"machine": machine, "unsteady": unsteady(found), "image_size": args.image_size, "ceilings": layers}
    document["rows"] = rows
    if args.output:
        write(document, args.output)
    show(document)


if __name__ == "__main__":
    main()
