"""From a graph to a file of each format."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ...checkpoint.description import KEY
from .formats import Format, require, unreported
from .metadata import INPUT, Sidecar
from .simplify import simplify
from .trace import CannotExport, Shape, first_line
from .xnnpack import rewritten


def write(program: ExportedProgram, format: Format, path: Path, sidecar: Sidecar, shape: Shape) -> None:
    """Write a graph as one file of `format` (OpenVINO: and the weights beside it), without its JSON.

    Raises:
        CannotExport: the format has no form of this graph.
        OSError: the file cannot be written.
    """
    try:
        with quiet():
            WRITERS[format.name](program, path, sidecar, shape)
    except OSError:
        raise
    except Exception as error:  # each library has its own kinds
        raise CannotExport(f"{format.name} has no form of this graph: {first_line(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' running commentary from standard output and error, and their reports from the network."""
    old = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), unreported():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(old)


# ---- ONNX -------------------------------------------------------------------------------------------------------


def _onnx(program: ExportedProgram, path: Path, sidecar: Sidecar, shape: Shape) -> None:
    import onnx

    written = torch.onnx.export(
        program,
        (shape.example(),),
        dynamo=True,
        verbose=False,
        optimize=False,
        input_names=[INPUT],
        output_names=sidecar.outputs,
    )
    assert written is not None
    simplify(written.model)
    model = written.model_proto
    _name_axes(model, shape, sidecar.outputs)
    onnx.helper.set_model_props(model, {KEY: sidecar.text()})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _name_axes(model: Any, shape: Shape, outputs: Sequence[str]) -> None:
    """Call the free axes batch, height and width, and everything by its own name; inner shapes follow from those."""
    graph = model.graph
    names = {graph.input[0].name: INPUT, **{o.name: name for o, name in zip(graph.output, outputs, strict=True)}}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    symbols = {graph.input[0].type.tensor_type.shape.dim[i].dim_param: axis for i, axis in shape.free.items()}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = symbols[dim.dim_param]
    del graph.value_info[:]


# ---- OpenVINO ---------------------------------------------------------------------------------------------------


def openvino_model(program: ExportedProgram, sidecar: Sidecar, shape: Shape) -> Any:
    """The graph as a model of OpenVINO, with our names and with no axis freer than `shape` says."""
    ov = require("openvino", "openvino")
    with quiet():
        try:
            model = ov.convert_model(program if shape.free_size else with_small_pools(program))
        except Exception as error:  # a place in OpenVINO's code comes first, and behind dashes what it lacks
            lacks = [line.removeprefix("-- ") for line in str(error).splitlines() if line.startswith("-- ")]
            raise CannotExport(lacks[0] if lacks else first_line(error)) from None
    # the converter leaves every axis but the channels open, and would promise sizes the graph does not serve
    model.reshape(ov.PartialShape([-1 if isinstance(axis, str) else axis for axis in shape.axes]))
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, sidecar.outputs, strict=True):
        output.get_tensor().set_names({name})
    return model


def with_small_pools(program: ExportedProgram) -> ExportedProgram:
    """The same graph for one size with pooling kernels no larger than the map: OpenVINO refuses larger ones."""
    table = torch.export.default_decompositions()
    for op in (torch.ops.aten.avg_pool2d.default, torch.ops.aten.max_pool2d_with_indices.default):
        table[op] = partial(_small_pool, op)
    return program.run_decompositions(table)


def _small_pool(op: Any, x: Tensor, kernel: Sequence[int], stride: Sequence[int], *rest: Any) -> Any:
    """Over the whole of an axis that the kernel exceeds: beyond a map without padding nothing is counted."""
    padding = rest[0] if rest else ()
    larger = [isinstance(side, int) and k > side for k, side in zip(kernel, x.shape[2:], strict=True)]
    if not any(larger) or any(padding) or list(stride) != list(kernel):
        return NotImplemented
    clipped = [side if clip else k for k, side, clip in zip(kernel, x.shape[2:], larger, strict=True)]
    return op(x, clipped, clipped, *rest)


def save_openvino(model: Any, path: Path) -> None:
    """Write the .xml and the .bin beside it, with full precision."""
    require("openvino", "openvino").save_model(model, path, compress_to_fp16=False)


def _openvino(program: ExportedProgram, path: Path, sidecar: Sidecar, shape: Shape) -> None:
    save_openvino(openvino_model(program, sidecar, shape), path)


# ---- ExecuTorch -------------------------------------------------------------------------------------------------


def _executorch(program: ExportedProgram, path: Path, sidecar: Sidecar, shape: Shape) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(rewritten(program), partitioner=[XnnpackPartitioner()])
    with open(path, "wb") as file:
        lowered.to_executorch().write_to_file(file)


# ---- torch.export -----------------------------------------------------------------------------------------------


def _torch_export(program: ExportedProgram, path: Path, sidecar: Sidecar, shape: Shape) -> None:
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    torch.export.save(program, path)


WRITERS: dict[str, Callable[[ExportedProgram, Path, Sidecar, Shape], None]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "executorch": _executorch,
    "torch_export": _torch_export,
}
