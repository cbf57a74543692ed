"""`vitrail export`."""

from __future__ import annotations

import dataclasses

from ..config.data import DataConfig
from ..config.export import ExportOptions
from .parsing import WEIGHTS, Call, Parser, parser_of
from .printing import new_table, print_json, say, show, write_line


def parser() -> Parser:
    """Its options."""
    made = parser_of("export")
    made.add_argument("weights", help=WEIGHTS)
    made.add_class_arguments(ExportOptions)
    made.add_class_arguments(DataConfig, "data", help="images to calibrate, measure and compare on")
    made.add_argument("--images", nargs="+", default=[], help="images to compare on: files, folders or globs")
    return made


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    values, names = call.values, [field.name for field in dataclasses.fields(ExportOptions)]
    options = ExportOptions(**{name: values.pop(name) for name in names})
    data = values.pop("data")
    return export(options=options, data=data if call.data_named else None, **values, as_json=call.as_json)


def export(weights: str, options: ExportOptions, data: DataConfig | None, images: list[str], as_json: bool) -> int:
    """Write a network as a file that runs without Python or PyTorch; see `ExportOptions`."""
    from ..deploy import export_network

    made = export_network(weights, options, data, images)
    if as_json:
        return print_json(dataclasses.asdict(made))
    for note in made.notes:
        say(note)
    axes = " x ".join(map(str, made.shape))
    write_line(
        f"{made.network} in {made.file}: {made.megabytes:.1f} MB, input {axes}, output {', '.join(made.outputs)}"
    )
    differences = new_table(
        ">batch", ">pixels", ">largest difference", ">of the largest output", title=f"Compared on {made.compared_on}"
    )
    for check in made.checks:
        pixels = " x ".join(map(str, check.size))
        differences.add_row(str(check.batch), pixels, f"{check.absolute:.2g}", f"{check.relative:.2g}")
    show(differences)
    write_line(
        f"latency with {made.threads} thread(s): PyTorch {made.torch_ms:.2f} ms, {made.format} {made.runtime_ms:.2f} ms"
    )
    if made.quantization is not None:
        q = made.quantization
        write_line(
            f"int8 on {q.images} validation images of {q.data}: "
            f"top-1 {q.top1_int8:.2f} % (float {q.top1_float:.2f} %), the same class as float in {q.agreement:.2f} %; "
            f"{q.size_ratio:.2f} of the size, {q.latency_ratio:.2f} of the time"
            + (f"; without {q.without}, which NNCF cannot do for this graph" if q.without else "")
        )
    return 0
