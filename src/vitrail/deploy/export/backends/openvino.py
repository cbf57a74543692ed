"""OpenVINO's intermediate representation, run by OpenVINO on Intel's processors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from timm.layers import LayerNorm2d
from torch import Tensor
from torch.export import ExportedProgram

from ....models.emsnet import Propagate
from ....models.lvt import LVT
from ....models.pale import PaleBlock
from ....models.pslt import LadderAttention
from ....models.volo import VOLO
from ..forms import FORMS
from ..forms.emsnet import shuffled_propagate
from ..forms.layers import token_layer_norm
from ..forms.lvt import on_parity_planes
from ..forms.pale import token_pale_block
from ..forms.pslt import windows_as_batch
from ..metadata import INPUT, Metadata
from ..trace import CannotExport, Shape, first_line
from .base import Backend, last_layers, passed, quiet, require

CANNOT = "which NNCF cannot do for this graph"


class OpenVino(Backend):
    """An .xml file with the graph and a .bin file with the weights."""

    name = "openvino"
    suffix = ".xml"
    runtime = "openvino"
    extra = "openvino"
    modules = ("openvino",)
    quantizer_modules = ("nncf",)
    quantizes = True
    explicit_attention = True
    compiles_shapes = True
    forms: ClassVar = {
        **FORMS,
        LayerNorm2d: token_layer_norm,
        LVT: on_parity_planes,
        LadderAttention: windows_as_batch,
        PaleBlock: token_pale_block,
        Propagate: shuffled_propagate,
        VOLO: on_parity_planes,
    }

    def write_graph(self, program: ExportedProgram, path: Path, metadata: Metadata, shape: Shape) -> None:
        """See `Backend`."""
        save_model(openvino_model(program, metadata, shape), path)

    def open_file(self, path: Path, threads: int) -> OpenVinoFile:
        """See `Backend`."""
        return OpenVinoFile(path, threads)

    def open_as_written(self, path: Path, threads: int) -> OpenVinoFile:
        """See `Backend`."""
        return OpenVinoFile(path, threads, free=True)

    def quantize_file(self, before: Path, path: Path, metadata: Metadata, calibration: list[Tensor]) -> str:
        """See `Backend`."""
        nncf = require("nncf", "openvino")
        model = new_core().read_model(before)
        ignored = nncf.IgnoredScope(
            names=kept_float(model),
            types=["Softmax", "MVN"],
            validate=False,
        )
        smoothing = nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)  # -1 = none
        attempts: dict[str, dict[str, Any]] = {
            "": {},
            "bias correction": {"disable_bias_correction": True},
            "bias correction and smoothing": {"disable_bias_correction": True, "smooth_quant_alphas": smoothing},
        }

        def quantized(**advanced: Any) -> Any:
            with signal_stack_kept():  # it makes cores of its own
                return nncf.quantize(
                    model,
                    nncf.Dataset([x.numpy() for x in calibration]),
                    preset=nncf.QuantizationPreset.MIXED,
                    subset_size=len(calibration),
                    model_type=nncf.ModelType.TRANSFORMER,
                    ignored_scope=ignored,
                    advanced_parameters=nncf.AdvancedQuantizationParameters(**advanced),
                )

        *most, (fewest, options) = attempts.items()
        for without, advanced in most:
            with contextlib.suppress(Exception):  # NNCF's corrections fail on some graphs
                save_model(quantized(**advanced), path)
                return without and f"{without}, {CANNOT}"
        save_model(quantized(**options), path)
        return f"{fewest}, {CANNOT}"

    def weights(self, path: Path) -> list[Path]:
        """The .bin file."""
        return [path.with_suffix(".bin")]


class _SignalStack(ctypes.Structure):
    """C's stack_t on Linux."""

    _fields_: ClassVar = [("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t)]


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give the thread its own stack for signals back after OpenVINO's plug-in for the CPU is loaded.

    On Linux the plug-in of every core installs such a stack, and at its end puts the one back that was there before.
    Two that end in the order in which they began leave a stack that is gone: with the next signal that Python handles
    (Ctrl-C, the end of a data worker) the process dies. One core for all files is no way out: with it, inference of
    files that were opened and closed in turn crashes inside OpenVINO 2026.4.
    """
    if sys.platform != "linux":
        yield
        return
    libc, own = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(own))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(own), None)


def new_core() -> Any:
    """OpenVINO's runtime with its plug-in for the CPU loaded."""
    with signal_stack_kept():
        core = require("openvino", "openvino").Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plug-in, else the first compiled graph does
    if os.name == "nt":  # which deletes and replaces no file that is mapped
        core.set_property({"ENABLE_MMAP": False})
    return core


class OpenVinoFile:
    """An OpenVINO IR on the CPU, computed in float32: OpenVINO's own default on some processors is bfloat16.

    A graph for one shape is faster than one with free axes (1.3 to 1.6 times), but has to be compiled for that shape,
    which takes seconds and two to three times the memory of the weights. So a file with free axes is compiled for the
    first `SHAPES` shapes that it meets, and other inputs run in the graph with free axes, compiled once. Of these, a
    shape that comes `IN_A_ROW` times in a row replaces the compiled shape that was least recently used.

    Args:
        path: the .xml file.
        threads: of the runtime.
        free: run every input in the graph as it is in the file.
        precision: of the computation, "f32" or "bf16" where the processor has it.
    """

    SHAPES = 3
    IN_A_ROW = 32

    def __init__(self, path: Path, threads: int = 1, free: bool = False, precision: str = "f32"):
        self.options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        self.core = new_core()
        self.graph = self.core.read_model(str(path))
        self.axes = list(self.graph.inputs[0].get_partial_shape())
        self.fixes = self.graph.is_dynamic() and not free
        self.as_written = None if self.fixes else self._compiled(self.graph)
        self.fixed: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self.last: tuple[int, ...] = ()
        self.in_a_row = 0
        self.lock = threading.Lock()  # a compiled model takes one input at a time

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one input."""
        with self.lock:
            results = self._model_for(images.shape)(images)
            return [results[i] for i in range(len(self.graph.outputs))]

    def compile_for(self, shape: tuple[int, ...]) -> None:
        """Compile for inputs of a shape now instead of with the first of them."""
        with self.lock:
            self._model_for(shape)

    def _model_for(self, shape: tuple[int, ...]) -> Any:
        """The compiled model that runs an input of this shape."""
        if shape in self.fixed:
            self.fixed.move_to_end(shape)
            return self.fixed[shape]
        self.in_a_row = self.in_a_row + 1 if shape == self.last else 1
        self.last = shape
        if not self.fixes or (len(self.fixed) == self.SHAPES and self.in_a_row < self.IN_A_ROW):
            return self._in_free_graph()
        if len(self.fixed) == self.SHAPES:
            self.fixed.popitem(last=False)  # before the next one takes memory
        self.fixed[shape] = self._for(shape)
        return self.fixed[shape]

    def _for(self, shape: tuple[int, ...]) -> Any:
        """The graph compiled for one shape; the one with free axes where OpenVINO cannot fix them."""
        graph = self.graph.clone()
        try:
            graph.reshape([own if own.is_static else given for own, given in zip(self.axes, shape, strict=True)])
            return self._compiled(graph)
        except RuntimeError:  # the graph with free axes runs, or says what is wrong with the shape
            return self._in_free_graph()

    def _in_free_graph(self) -> Any:
        if self.as_written is None:
            self.as_written = self._compiled(self.graph)
        return self.as_written

    def _compiled(self, graph: Any) -> Any:
        return self.core.compile_model(graph, "CPU", self.options)


# ---- graphs -----------------------------------------------------------------------------------------------------


def openvino_model(program: ExportedProgram, metadata: Metadata, shape: Shape) -> Any:
    """The graph as a model of OpenVINO, with our names and with no axis freer than `shape` says."""
    ov = require("openvino", "openvino")
    with quiet():
        try:
            model = ov.convert_model(program if shape.free_size else with_small_pools(program))
        except Exception as error:  # the message begins with a line of OpenVINO's code; the reasons follow after dashes
            lacks = [line.removeprefix("-- ") for line in str(error).splitlines() if line.startswith("-- ")]
            raise CannotExport(lacks[0] if lacks else first_line(error)) from None
    # the converter leaves all axes but the channels free, also those that are fixed in the graph
    model.reshape(ov.PartialShape([-1 if isinstance(axis, str) else axis for axis in shape.axes]))
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, metadata.outputs, strict=True):
        output.get_tensor().set_names({name})
    return model


def kept_float(model: Any) -> list[str]:
    """Names of the first and the last layers, which stay in float."""
    layers = [op for op in model.get_ordered_ops() if _is_layer(op)]
    last = last_layers(model.get_results(), _before, _is_layer) or layers[-1:]
    return list(dict.fromkeys(op.get_friendly_name() for op in (layers[0], *last)))


def _is_layer(op: Any) -> bool:
    return op.get_type_name() in ("MatMul", "Convolution")


def _before(op: Any) -> list[Any]:
    inputs = [value.get_node() for value in op.input_values()]
    computed = [node for node in inputs if node.get_type_name() != "Constant"]
    return passed(op.get_type_name(), computed, first=computed[:1] if computed[:1] == inputs[:1] else [])


def with_small_pools(program: ExportedProgram) -> ExportedProgram:
    """The same graph for one size with pooling kernels no larger than the map: OpenVINO refuses larger ones."""
    table = torch.export.default_decompositions()
    for op in (torch.ops.aten.avg_pool2d.default, torch.ops.aten.max_pool2d_with_indices.default):
        table[op] = partial(_small_pool, op)
    return program.run_decompositions(table)


def _small_pool(op: Any, x: Tensor, kernel: Sequence[int], stride: Sequence[int], *rest: Any) -> Any:
    """Pooling with the kernel clipped to the map: without padding, positions outside of it do not count."""
    padding = rest[0] if rest else ()
    larger = [isinstance(size, int) and k > size for k, size in zip(kernel, x.shape[2:], strict=True)]
    if not any(larger) or any(padding) or list(stride) != list(kernel):
        return NotImplemented
    clipped = [size if clip else k for k, size, clip in zip(kernel, x.shape[2:], larger, strict=True)]
    return op(x, clipped, clipped, *rest)


def save_model(model: Any, path: Path) -> None:
    """Write the .xml and .bin files with full precision."""
    require("openvino", "openvino").save_model(model, path, compress_to_fp16=False)
