"""`vitrail export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitrail_commands import COMMANDS

from ..config.data import DataConfig
from ..config.export import ExportOptions
from ..deploy import export_network
from .help_page import OWN_DATA, Page, sections_of
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, say, show, write_line


def parser() -> Parser:
    """Its options."""
    made = parser_of("export", page)
    made.add_argument("weights", help=help_of(export_network, "weights"))
    made.add_class_arguments(ExportOptions)
    made.add_class_arguments(DataConfig, "data", help=help_of(export_network, "data"))
    made.add_argument("--images", nargs="+", default=[], help=help_of(export_network, "images"))
    return made


def page(made: Parser, given: Mapping[str, Any]) -> Page:
    """The help page."""
    return Page(COMMANDS["export"], sections_of(made), defaults={"data.name": OWN_DATA})


def run(call: Call) -> int:
    """Write the file, and print the comparison with PyTorch; returns the exit code."""
    values = call.values
    weights, data, images = (values.pop(name) for name in ("weights", "data", "images"))
    made = export_network(weights, ExportOptions(**values), data if call.data_named else None, images)
    if call.as_json:
        return print_json(dataclasses.asdict(made))
    for note in made.notes:
        say(note)
    axes = " x ".join(map(str, made.shape))
    write_line(
        f"{made.network} in {made.file}: {made.megabytes:.1f} MB, input {axes}, output {', '.join(made.outputs)}"
    )
    counts = [check.detections for check in made.checks if check.detections is not None]
    title = f"Compared on {made.compared_on}" + (f": {sum(counts)} detections" if counts else "")
    differences = new_table(">batch", ">pixels", ">largest difference", ">of the largest output", title=title)
    for check in made.checks:
        pixels = " x ".join(map(str, check.size))
        differences.add_row(str(check.batch), pixels, f"{check.absolute:.2g}", f"{check.relative:.2g}")
    show(differences)
    write_line(
        f"latency with {made.threads} thread(s): PyTorch {made.torch_ms:.2f} ms, {made.format} {made.runtime_ms:.2f} ms"
    )
    if made.quantization is not None:
        q = made.quantization
        judged = (
            "no metric, since raw boxes are not decoded"
            if q.metric is None
            else f"{q.metric} {q.metric_int8:.2f} % (float {q.metric_float:.2f} %)"
        )
        write_line(
            f"int8 on {q.images} validation images of {q.data}: {judged}; agreement with float {q.agreement:.2f} % "
            f"({q.agreement_of}); {q.size_ratio:.2f} of the size, {q.latency_ratio:.2f} of the time"
            + (f"; without {q.without}" if q.without else "")
            + ("; float is kept" if q.kept == "float" else "")
        )
    return 0
