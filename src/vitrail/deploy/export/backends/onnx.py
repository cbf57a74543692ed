"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional as F

from ....checkpoint.description import KEY
from ....errors import UserError
from ....layers.rebuild import rebuild
from ....models.emsnet import Propagate
from ....utils.environment import vector_instructions
from ....utils.files import shortened
from ..forms import FORMS
from ..metadata import INPUT, Metadata
from ..trace import Shape, first_line
from .base import Backend, last_layers, passed, require

#: public rules of `onnxscript.rewriter.rules.common`, in its default order
RULES = (
    "mul_by_1_rule",
    "add_0_rule",
    "sub_0_rule",
    "div_by_1_rule",
    "one_reshape_matmul_reshape_rule",
    "two_reshapes_matmul_reshape_rule",
    "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule",
    "collapse_slice_rule",
    "collapse_slice2_rule",
    "materialize_reshape_shape_rule",
    "min_max_rule",
    "max_min_rule",
    "cast_cast_rule",
    "no_op_cast_rule",
    "no_op_expand_rule",
    "flatten_to_reshape_rule",
    "reshape_reshape_rule",
    "no_op_transpose_rule",
    "transpose_transpose_rule",
    "unsqueeze_unsqueeze_rule",
    "squeeze_reshape_1d_rule",
    "normalize_pad_format_conv_rule",
    "fuse_pad_into_conv_rule",
    "fuse_batchnorm_into_conv_rule",
    "fuse_batchnorm_into_conv_transpose_rule",
    "fuse_batchnorm_into_gemm_rule",
    "remove_optional_bias_from_conv_rule",
    "remove_optional_bias_from_conv_transpose_rule",
    "remove_optional_bias_from_gemm_rule",
)


class TransposedPropagate(Propagate):
    """EMSNet's `Propagate` as the transposed convolution it is."""

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """See `Propagate`."""
        patch, groups = self.weight.shape[2], self.bias.shape[0]
        return F.conv_transpose2d(x, self.weight, self.bias, patch, groups=groups)[:, :, :height, :width]


def transposed_propagate(layer: Propagate) -> TransposedPropagate:
    """The transposed convolution, for which ONNX Runtime has a fast kernel; OpenVINO is faster with the products."""
    return rebuild(layer, TransposedPropagate)


class Onnx(Backend):
    """One .onnx file with weights and metadata."""

    name = "onnx"
    suffix = ".onnx"
    runtime = "onnxruntime"
    extra = "export"
    modules = ("onnx", "onnxscript", "onnxruntime")
    quantizes = True
    end_to_end = True
    forms: ClassVar = {**FORMS, Propagate: transposed_propagate}

    def write_graph(self, program: ExportedProgram, path: Path, metadata: Metadata, shape: Shape) -> None:
        """See `Backend`."""
        import onnx

        written = torch.onnx.export(
            program,
            (shape.example(),),
            dynamo=True,
            verbose=False,
            optimize=False,
            input_names=[INPUT],
            output_names=metadata.outputs,
        )
        assert written is not None
        simplify(written.model)
        model = written.model_proto
        _name_axes(model, shape, metadata.outputs)
        onnx.helper.set_model_props(model, {KEY: metadata.text()})
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def open_file(self, path: Path, threads: int) -> OnnxFile:
        """See `Backend`."""
        return OnnxFile(path, threads)

    def check_file(self, path: Path) -> None:
        """Refuse a file with weights in other files: `vitrail export` writes none, and their paths may lead anywhere.

        Raises:
            UserError: it is no ONNX file, or names another file.
        """
        onnx = require("onnx", "export")
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # protobuf's own error types
            raise UserError(
                f"{path} is damaged or no onnx file ({first_line(error)}); export the network again."
            ) from error
        for message in _messages(model):
            if getattr(message, "data_location", 0) == onnx.TensorProto.EXTERNAL:
                names = [entry.value for entry in message.external_data if entry.key == "location"]
                raise UserError(
                    f"{path} is refused: it takes weights from another file, {shortened(', '.join(names))}; a file of "
                    "vitrail export holds its own."
                )

    def quantize_file(self, before: Path, path: Path, metadata: Metadata, calibration: list[Tensor]) -> str:
        """See `Backend`.

        Activations are unsigned: ONNX Runtime has no fast product of two signed numbers for x86.
        """
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.inputs: Iterator[Tensor] = iter(calibration)

            def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
                x = next(self.inputs, None)
                return None if x is None else {INPUT: np.ascontiguousarray(x.numpy())}

        model, reduced = onnx.load(before), int8_overflows()
        quantize_static(
            model,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            reduce_range=reduced,
            nodes_to_exclude=kept_float(model),
        )
        made = onnx.load(path)
        onnx.helper.set_model_props(made, {KEY: metadata.text()})
        onnx.save(made, path)
        return "the weights' eighth bit, with which sums overflow on processors without VNNI" if reduced else ""

    def embedded_metadata(self, path: Path) -> str | None:
        """See `Backend`; read with ONNX Runtime, so that the onnx package is not needed."""
        self.check_file(path)
        return OnnxFile(path).metadata().get(KEY)


class OnnxFile:
    """An ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, threads: int = 1):
        ort = require("onnxruntime", "export")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one input."""
        return self.session.run(None, {self.input: images})

    def metadata(self) -> dict[str, str]:
        """The entries of the file's metadata."""
        return dict(self.session.get_modelmeta().custom_metadata_map)


def int8_overflows() -> bool:
    """True if this processor adds int8 products in 16 bits, as x86 does without VNNI, or if that is not known."""
    if platform.machine().lower() not in ("x86_64", "amd64", "x86", "i386", "i686"):
        return False
    return not any("vnni" in name for name in vector_instructions())


# ---- graphs -----------------------------------------------------------------------------------------------------


def simplify(model: Any) -> None:
    """Fold constants, rewrite by `RULES`, eliminate common subexpressions, drop debug information; in place.

    Args:
        model: of `onnx_ir`.
    """
    from onnx_ir.passes import Sequential, common
    from onnxscript import optimizer
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common as rules

    optimizer.inline(model)
    described = [(output.type, output.shape) for output in model.graph.outputs]
    for _ in range(2):  # rules create constants, which allow further rules
        optimizer.fold_constants(model)
        rewrite(model, [getattr(rules, name) for name in RULES])
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        # shapes only: ONNX Runtime's quantiser tears shared biases apart, under names that may be taken
        common.DeduplicateInitializersPass(size_limit=8),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.ClearMetadataAndDocStringPass(),  # source lines and this machine's paths: 7 of 27 MB of pslt_tiny
    )(model)
    # of two equal values the one that is merged into may be an inner one, of which no type is known
    for output, (kind, shape) in zip(model.graph.outputs, described, strict=True):
        output.type, output.shape = kind, shape


def _name_axes(model: Any, shape: Shape, outputs: Sequence[str]) -> None:
    """Name the free axes batch, height and width, and the inputs and outputs; drop shapes of inner values."""
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


def kept_float(model: Any) -> list[str]:
    """Names of the layers that stay in float: products of two activations, the first convolution, the last layers.

    Also batched products with learned matrices: the runtime has no int8 kernel with one scale per channel for them.
    """
    axes = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]

    def learned_by(node: Any) -> bool:
        return any(name in axes and (node.op_type == "Conv" or axes[name] <= 2) for name in node.input)

    products = [node.name for node in layers if not learned_by(node)]
    learned = [node.name for node in layers if node.name not in products]
    makers = {name: node for node in model.graph.node for name in node.output}

    def before(node: Any) -> list[Any]:
        computed = [makers[name] for name in node.input if name in makers]
        return passed(node.op_type, computed, first=computed[:1] if node.input[0] in makers else [])

    ends = [makers[output.name] for output in model.graph.output]
    last = last_layers(ends, before, is_layer=lambda node: node.name in learned) or learned[-1:]
    return list(
        dict.fromkeys([*products, learned[0], *(node if isinstance(node, str) else node.name for node in last)])
    )


def _messages(message: Any) -> Iterator[Any]:
    """All tensors in a protobuf message, also in subgraphs and attributes."""
    todo = [message]
    while todo:
        message = todo.pop()
        if message.DESCRIPTOR.name == "TensorProto":
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                todo += value if hasattr(value, "__len__") else [value]
