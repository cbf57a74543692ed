"""Post-training int8 quantisation of convolutions and linear layers, with a check of the accuracy.

Softmax, norms, attention products, the first convolution and the classifier stay in float: int8 costs most accuracy
there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config.data import DataConfig
from ...config.export import ExportOptions
from ...data import EvalLoader, eval_transform, open_dataset
from ...data.datasets.base import ImageSet
from ...data.datasets.classes import with_classes_of
from ...errors import UserError
from ...utils.progress import bar
from .backends import BACKENDS, Backend
from .backends.base import quiet, require
from .metadata import KINDS, Metadata
from .runtime import DeployedNetwork
from .trace import first_line
from .verify import latency, size_of


@dataclass
class Quantization:
    """Comparison of an int8 file with the float file.

    Attributes:
        data: title of the data set.
        images: number of validation images.
        calibration_images: number of training images for the activation ranges.
        top1_float: accuracy of the float file in %.
        top1_int8: accuracy of the int8 file in %.
        agreement: share of images for which both name the same class, in %.
        size_ratio: bytes of the int8 file over those of the float one.
        latency_ratio: milliseconds of the int8 file over those of the float one.
        without: what the quantiser left out, and why; "" = nothing.
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
        """Loss of top-1 accuracy in percentage points."""
        return self.top1_float - self.top1_int8


def check_quantizable(backend: Backend, data: DataConfig | None, kind: str) -> None:
    """Refuse exports that cannot be quantised, before the export begins.

    Raises:
        UserError: the format has no int8 form here, a package or the data is missing, or there are no classes.
    """
    if not backend.quantizes:
        able = " and ".join(f.name for f in BACKENDS.values() if f.quantizes)
        raise UserError(f"--quantize int8 is for {able} files, not for {backend.name}.")
    if kind != KINDS["classification"]:
        hint = ": leave --features out" if kind == "features" else ""
        raise UserError(f"--quantize int8 is judged by the classes it gets right; there are none in {kind}{hint}.")
    for module in backend.quantizer_modules:
        require(module, backend.extra)
    if data is None:
        raise UserError("--quantize int8 needs images to calibrate on: name them with --data and --data.root.")


def quantize(
    path: Path, backend: Backend, metadata: Metadata, data: DataConfig, graph: nn.Module, options: ExportOptions
) -> Quantization:
    """Replace a float file by its int8 form and measure both.

    Raises:
        LosesAccuracy: the int8 file loses more than `options.max_drop` points of top-1.
        UserError: data that cannot be used.
    """
    calibration = calibration_inputs(data, metadata, options.calibration_images)
    validation = with_classes_of(
        metadata.meta.classes, open_dataset(data, train=False, levels=metadata.meta.preprocess.levels), "the network"
    )
    before = path.with_name(f"float_{path.name}")
    for file in backend.files(path)[:-1]:
        os.replace(file, before.with_suffix(file.suffix))
    try:
        with quiet():
            without = backend.quantize_file(before, path, metadata, calibration)
    except OSError:
        raise
    except Exception as error:  # each library raises errors of its own types, for graphs it cannot quantise
        others = " or ".join(f.name for f in BACKENDS.values() if f.quantizes and f is not backend)
        raise UserError(
            f"{backend.name} has no int8 form of this graph ({type(error).__name__}: {first_line(error)}); leave "
            f"--quantize out, or try --format {others}."
        ) from error
    runtimes = backend.open(before, options.threads), backend.open(path, options.threads)
    networks = [DeployedNetwork(path, runtime, metadata) for runtime in runtimes]
    try:
        top1, agreement, images = measure_both(
            networks[0], networks[1], validation=validation, metadata=metadata, workers=data.workers
        )
    except UserError:
        raise
    except Exception as error:  # each runtime raises errors of its own types; some refuse a graph only when it runs
        raise UserError(f"{backend.runtime} cannot run the int8 file: {first_line(error)}.") from error
    array = calibration[0].numpy()
    ms = latency(lambda: runtimes[0](array), lambda: runtimes[1](array), seconds=2)
    found = Quantization(
        data=data.title,
        images=images,
        calibration_images=len(calibration),
        top1_float=top1[0],
        top1_int8=top1[1],
        agreement=agreement,
        size_ratio=size_of(backend.files(path)[:-1]) / size_of(backend.files(before)[:-1]),
        latency_ratio=ms[1] / ms[0],
        without=without,
    )
    if found.drop > options.max_drop:
        raise LosesAccuracy(
            f"int8 loses {found.drop:.2f} points of top-1 ({found.top1_float:.2f} % to {found.top1_int8:.2f} % of "
            f"{images} images), more than --max_drop {options.max_drop:g}"
        )
    return found


class LosesAccuracy(UserError):
    """The int8 file loses too much accuracy; other axes would not change that."""


def calibration_inputs(data: DataConfig, metadata: Metadata, count: int) -> list[Tensor]:
    """Calibration inputs, one image each (repeated to the size of a fixed batch), spread over the training images.

    Raises:
        UserError: there are none, or they come as a stream.
    """
    images = open_dataset(data, train=True, levels=metadata.meta.preprocess.levels)
    if not isinstance(images, ImageSet):
        raise UserError("--quantize int8 calibrates on images that can be found by number, not on a stream.")
    if not len(images):
        raise UserError(f"The data {data.title} has no images to calibrate on.")
    transform = eval_transform(metadata.input_preprocess)
    count = min(count, len(images))
    batch = metadata.shape[0] if isinstance(metadata.shape[0], int) else 1
    return [transform(images.image(i * len(images) // count)).expand(batch, -1, -1, -1) for i in range(count)]


@torch.no_grad()
def measure_both(
    first: nn.Module, second: nn.Module, validation: Any, metadata: Metadata, workers: int
) -> tuple[tuple[float, float], float, int]:
    """Top-1 of two networks in %, their agreement on the class in %, and the number of images."""
    loader = EvalLoader(validation, eval_transform(metadata.input_preprocess), 16, workers=workers)
    right, same, total = [0, 0], 0, 0
    with bar("Measuring int8", None if validation.streaming else len(loader)) as advance:
        for x, y, *_ in loader:
            a, b = first(x).argmax(1), second(x).argmax(1)
            right[0] += int((a == y).sum())
            right[1] += int((b == y).sum())
            same += int((a == b).sum())
            total += len(y)
            advance()
    if not total:
        raise UserError("There are no validation images to measure int8 on.")
    return (100 * right[0] / total, 100 * right[1] / total), 100 * same / total, total
