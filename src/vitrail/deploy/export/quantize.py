"""Post-training int8: weights and activations of the convolutions and linear layers, judged by accuracy.

Softmax, norms, the products of attention, the first convolution and the classifier stay in float,
where int8 costs most.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint.description import KEY
from ...config.data import DataConfig
from ...config.export import ExportOptions
from ...data import EvalLoader, eval_transform, open_dataset
from ...data.datasets.base import ImageSet
from ...data.datasets.classes import with_classes_of
from ...errors import UserError
from ...utils.progress import bar
from .formats import FORMATS, Format, require
from .metadata import INPUT, KINDS, Sidecar
from .runtime import DeployedNetwork, open_runtime
from .trace import first_line
from .verify import latency, size_of
from .writing import quiet, save_openvino


@dataclass
class Quantization:
    """An int8 file beside the float one.

    Attributes:
        data: what it was measured on.
        images: held-back pictures.
        calibration_images: training pictures the ranges are from.
        top1_float: accuracy of the float file in %.
        top1_int8: accuracy of the int8 file in %.
        agreement: share of pictures for which both name the same class, in %.
        size_ratio: bytes of the int8 file over those of the float one.
        latency_ratio: milliseconds of the int8 file over those of the float one.
        without: what of the library's method could not be used for this graph; "" = nothing.
    """

    data: str
    images: int
    calibration_images: int
    top1_float: float
    top1_int8: float
    agreement: float
    size_ratio: float
    latency_ratio: float
    without: str = ""

    @property
    def drop(self) -> float:
        """Points of top-1 lost."""
        return self.top1_float - self.top1_int8


def check_quantizable(format: Format, data: DataConfig | None, kind: str) -> None:
    """Refuse what cannot be quantised, before any work is done.

    Raises:
        UserError: the format has no int8 form here, a package or the data is missing, or there are no classes.
    """
    if not format.quantizes:
        able = " and ".join(f.name for f in FORMATS.values() if f.quantizes)
        raise UserError(f"--quantize int8 is for {able} files, not for {format.name}.")
    if kind != KINDS["classification"]:
        hint = ": leave --features out" if kind == "features" else ""
        raise UserError(f"--quantize int8 is judged by the classes it gets right; there are none in {kind}{hint}.")
    if format.name == "openvino":
        require("nncf", format.extra)
    if data is None:
        raise UserError("--quantize int8 needs pictures to calibrate on: name them with --data and --data.root.")


def quantize(
    path: Path, format: Format, sidecar: Sidecar, data: DataConfig, graph: nn.Module, options: ExportOptions
) -> Quantization:
    """Replace a float file by its int8 form and measure both.

    Raises:
        LosesAccuracy: the int8 file loses more than `options.max_drop` points of top-1.
        UserError: data that cannot be used.
    """
    calibration = calibration_inputs(data, sidecar, options.calibration_images)
    held = with_classes_of(
        sidecar.meta.classes, open_dataset(data, train=False, levels=sidecar.meta.preprocess.levels), "the network"
    )
    before = path.with_name(f"float_{path.name}")
    for file in format.files(path)[:-1]:
        os.replace(file, before.with_suffix(file.suffix))
    try:
        with quiet():
            without = QUANTIZERS[format.name](before, path, sidecar, calibration)
    except OSError:
        raise
    except Exception as error:  # every library has kinds of its own, and some graphs that it cannot take
        others = " or ".join(f.name for f in FORMATS.values() if f.quantizes and f is not format)
        raise UserError(
            f"{format.name} has no int8 form of this graph ({type(error).__name__}: {first_line(error)}); leave "
            f"--quantize out, or try --format {others}."
        ) from error
    runtimes = open_runtime(before, format, options.threads), open_runtime(path, format, options.threads)
    networks = [DeployedNetwork(path, runtime, sidecar) for runtime in runtimes]
    try:
        top1, agreement, images = measure_both(networks[0], networks[1], held, sidecar, data.workers)
    except UserError:
        raise
    except Exception as error:  # every runtime has kinds of its own; some refuse a graph only when it runs
        raise UserError(f"{format.runtime} cannot run the int8 file: {first_line(error)}.") from error
    array = calibration[0].numpy()
    ms = latency(lambda: runtimes[0](array), lambda: runtimes[1](array), seconds=2)
    found = Quantization(
        data=data.title,
        images=images,
        calibration_images=len(calibration),
        top1_float=top1[0],
        top1_int8=top1[1],
        agreement=agreement,
        size_ratio=size_of(format.files(path)[:-1]) / size_of(format.files(before)[:-1]),
        latency_ratio=ms[1] / ms[0],
        without=without,
    )
    if found.drop > options.max_drop:
        raise LosesAccuracy(
            f"int8 loses {found.drop:.2f} points of top-1 ({found.top1_float:.2f} % to {found.top1_int8:.2f} % of "
            f"{images} pictures), more than --max_drop {options.max_drop:g}"
        )
    return found


class LosesAccuracy(UserError):
    """An int8 file that is not worth keeping; other axes would not mend it."""


def calibration_inputs(data: DataConfig, sidecar: Sidecar, count: int) -> list[Tensor]:
    """Inputs of one picture each (as many as a fixed batch has, repeated), spread over the training part.

    Raises:
        UserError: there are none, or they come as a stream.
    """
    pictures = open_dataset(data, train=True, levels=sidecar.meta.preprocess.levels)
    if not isinstance(pictures, ImageSet):
        raise UserError("--quantize int8 calibrates on pictures that can be found by number, not on a stream.")
    if not len(pictures):
        raise UserError(f"The data {data.title} has no pictures to calibrate on.")
    transform = eval_transform(sidecar.input_preprocess)
    count = min(count, len(pictures))
    batch = sidecar.shape[0] if isinstance(sidecar.shape[0], int) else 1
    return [transform(pictures.image(i * len(pictures) // count)).expand(batch, -1, -1, -1) for i in range(count)]


@torch.no_grad()
def measure_both(
    first: nn.Module, second: nn.Module, held: Any, sidecar: Sidecar, workers: int
) -> tuple[tuple[float, float], float, int]:
    """Top-1 of two networks in %, how often they name the same class in %, and the number of pictures."""
    loader = EvalLoader(held, eval_transform(sidecar.input_preprocess), 16, workers=workers)
    right, same, total = [0, 0], 0, 0
    with bar("Measuring int8", None if held.streaming else len(loader)) as advance:
        for x, y, *_ in loader:
            a, b = first(x).argmax(1), second(x).argmax(1)
            right[0] += int((a == y).sum())
            right[1] += int((b == y).sum())
            same += int((a == b).sum())
            total += len(y)
            advance()
    if not total:
        raise UserError("There are no held-back pictures to measure int8 on.")
    return (100 * right[0] / total, 100 * right[1] / total), 100 * same / total, total


# ---- ONNX Runtime -----------------------------------------------------------------------------------------------


def _onnx(before: Path, path: Path, sidecar: Sidecar, calibration: list[Tensor]) -> str:
    """Write the int8 file; returns what of the method had to be left out, nothing."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            x = next(self.inputs, None)
            return None if x is None else {INPUT: np.ascontiguousarray(x.numpy())}

    model = onnx.load(before)
    quantize_static(
        model,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8,
        nodes_to_exclude=onnx_kept_float(model),
    )
    made = onnx.load(path)
    onnx.helper.set_model_props(made, {KEY: sidecar.text()})
    onnx.save(made, path)
    return ""


def onnx_kept_float(model: Any) -> list[str]:
    """Names of the layers that stay in float: products of two activations, the first convolution, the classifier.

    Also products with several matrices of weights at once: the runtime has no int8 kernel with scales a channel there.
    """
    axes = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]

    def learned_by(node: Any) -> bool:
        return any(name in axes and (node.op_type == "Conv" or axes[name] <= 2) for name in node.input)

    products = [node.name for node in layers if not learned_by(node)]
    learned = [node.name for node in layers if node.name not in products]
    return [*products, learned[0], learned[-1]]


# ---- OpenVINO ---------------------------------------------------------------------------------------------------


def _openvino(before: Path, path: Path, sidecar: Sidecar, calibration: list[Tensor]) -> str:
    """Write the int8 file; returns what of NNCF's method had to be left out."""
    nncf = require("nncf", "openvino")
    ov = require("openvino", "openvino")
    model = ov.Core().read_model(before)
    layers = [op for op in model.get_ordered_ops() if op.get_type_name() in ("MatMul", "Convolution")]
    ignored = nncf.IgnoredScope(
        names=[layers[0].get_friendly_name(), layers[-1].get_friendly_name()], types=["Softmax", "MVN"], validate=False
    )
    smoothing = nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)  # -1 = none
    attempts: dict[str, dict[str, Any]] = {
        "": {},
        "bias correction": {"disable_bias_correction": True},
        "bias correction and smoothing": {"disable_bias_correction": True, "smooth_quant_alphas": smoothing},
    }

    def quantized(**advanced: Any) -> Any:
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
        with contextlib.suppress(Exception):  # NNCF's corrections do not know the shapes of every graph
            save_openvino(quantized(**advanced), path)
            return without
    save_openvino(quantized(**options), path)
    return fewest


QUANTIZERS: dict[str, Callable[[Path, Path, Sidecar, list[Tensor]], str]] = {"onnx": _onnx, "openvino": _openvino}
