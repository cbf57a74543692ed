"""Post-training int8 quantisation of convolutions and linear layers, with a check of the accuracy.

Softmax, norms, attention products, the first convolution and the classifier stay in float: int8 costs most accuracy
there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...checkpoint.description import WeightsMeta
from ...config.data import DataConfig
from ...config.export import ExportOptions
from ...data import EvalLoader, eval_transform, open_dataset
from ...data.datasets.base import AnnotatedSet, ImageSet
from ...data.datasets.classes import with_classes_of
from ...errors import UserError
from ...tasks import measure, task_of
from ...utils.progress import bar
from .backends import BACKENDS, Backend
from .backends.base import quiet, require
from .metadata import KINDS, Metadata
from .runtime import DeployedNetwork
from .trace import first_line
from .verify import latency, size_of

#: highest scores of an image that are compared, of a detector
BOXES = 100
#: kind of a network's outputs -> what `Quantization.agreement` counts
AGREEMENT = {
    KINDS["classification"]: "images with the same class",
    KINDS["semantic_segmentation"]: "positions with the same class",
    KINDS["keypoints"]: "keypoints with their maximum at the same position",
    KINDS["reid"]: "cosine similarity of the embeddings",
    "raw_boxes": f"anchors and classes among the {BOXES} highest scores of both",
}


@dataclass
class Quantization:
    """Comparison of an int8 file with the float file.

    Attributes:
        data: title of the data set.
        images: number of validation images.
        calibration_images: number of training images for the activation ranges.
        metric: by which both files are judged: "top1" of a classifier, the task's main metric of a network with a head,
            None of raw boxes, which are not decoded.
        metric_float: of the float file, in % (None with the metric).
        metric_int8: of the int8 file.
        agreement: of the outputs of both on the validation images in %, see `AGREEMENT`.
        agreement_of: what is counted there.
        size_ratio: bytes of the int8 file over those of the float one.
        latency_ratio: milliseconds of the int8 file over those of the float one.
        without: what the quantiser left out, and why; "" = nothing.
        kept: the form that the file has: "float" where int8 takes more than `max_slowdown` times as long.
    """

    data: str
    images: int
    calibration_images: int
    metric: str | None
    metric_float: float | None
    metric_int8: float | None
    agreement: float
    agreement_of: str
    size_ratio: float
    latency_ratio: float
    without: str = ""
    kept: Literal["int8", "float"] = "int8"

    @property
    def drop(self) -> float:
        """Loss of the metric in percentage points; 0 where there is none."""
        if self.metric_float is None or self.metric_int8 is None:
            return 0.0
        return self.metric_float - self.metric_int8


def check_quantizable(
    backend: Backend, meta: WeightsMeta, data: DataConfig | None, *, kind: str, options: ExportOptions
) -> None:
    """Refuse exports that cannot be quantised, before the export begins.

    Raises:
        UserError: the format has no int8 form here, a package or the data is missing, or the outputs cannot be judged.
    """
    if not backend.quantizes:
        able = " and ".join(f.name for f in BACKENDS.values() if f.quantizes)
        raise UserError(f"--quantize int8 is for {able} files, not for {backend.name}.")
    if kind not in AGREEMENT:
        raise UserError(f"--quantize int8 is judged by predictions; there are none in {kind}: leave --features out.")
    if kind not in KINDS.values() and options.max_drop != ExportOptions.max_drop:
        raise UserError(
            f"--max_drop {options.max_drop:g} has no effect: {kind} are not decoded, so no metric is measured; "
            "leave it out."
        )
    for module in backend.quantizer_modules:
        require(module, backend.extra)
    if data is None:
        raise UserError("--quantize int8 needs images to calibrate on: name them with --data and --data.root.")
    training_images(meta, data)


def quantize(
    path: Path, backend: Backend, metadata: Metadata, data: DataConfig, graph: nn.Module, options: ExportOptions
) -> Quantization:
    """Replace a float file by its int8 form and measure both; a slower one is replaced by float again.

    Raises:
        LosesAccuracy: the int8 file loses more than `options.max_drop` points of top-1.
        UserError: data that cannot be used.
    """
    judged = _Judged(metadata, data)
    calibration = judged.calibration(options.calibration_images)
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
        metrics, agreement, images = judged.compare(networks[0], networks[1])
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
        metric=judged.metric,
        metric_float=metrics and metrics[0],
        metric_int8=metrics and metrics[1],
        agreement=agreement,
        agreement_of=AGREEMENT[metadata.output_kind],
        size_ratio=size_of(backend.files(path)[:-1]) / size_of(backend.files(before)[:-1]),
        latency_ratio=ms[1] / ms[0],
        without=without,
    )
    if found.drop > options.max_drop:
        raise LosesAccuracy(
            f"int8 loses {found.drop:.2f} points of {found.metric} ({found.metric_float:.2f} % to "
            f"{found.metric_int8:.2f} % of {images} images), more than --max_drop {options.max_drop:g}"
        )
    if found.latency_ratio > options.max_slowdown:
        for file in backend.files(path)[:-1]:
            os.replace(before.with_suffix(file.suffix), file)
        found.kept = "float"
    return found


class LosesAccuracy(UserError):
    """The int8 file loses too much accuracy; other axes would not change that."""


def training_images(meta: WeightsMeta, data: DataConfig) -> ImageSet | AnnotatedSet:
    """The images to calibrate on.

    Raises:
        UserError: there are none, or they come as a stream.
    """
    levels = meta.preprocess.levels
    images = open_dataset(data, train=True, levels=levels) if meta.head is None else task_of(meta, data).train_set
    if not isinstance(images, (ImageSet, AnnotatedSet)):
        raise UserError("--quantize int8 calibrates on images that can be found by number, not on a stream.")
    if not len(images):
        raise UserError(f"The data {data.title} has no images to calibrate on.")
    return images


class _Judged:
    """The data that an int8 file is calibrated and judged on.

    Args:
        metadata: of the file.
        data: options of the data set.

    Attributes:
        metric: name of the main metric; None of raw boxes.

    Raises:
        UserError: data that cannot be used.
    """

    def __init__(self, metadata: Metadata, data: DataConfig):
        meta, self.metadata, self.data = metadata.meta, metadata, data
        self.transform = eval_transform(metadata.input_preprocess)
        self.learned = training_images(meta, data)
        self.task = None if meta.head is None else task_of(meta, data)
        if self.task is not None:
            self.validation: Any = self.task.eval_set
            self.metric = self.task.best_metric if metadata.output_kind in KINDS.values() else None
        else:
            opened = open_dataset(data, train=False, levels=meta.preprocess.levels)
            self.validation = with_classes_of(meta.classes, opened, "the network")
            self.metric = "top1"

    def calibration(self, count: int) -> list[Tensor]:
        """Inputs of one image each (repeated to the size of a fixed batch), spread over the training images."""
        return list(self._inputs(self.learned, min(count, len(self.learned))))

    def _inputs(self, images: Any, count: int) -> Iterator[Tensor]:
        batch = self.metadata.shape[0] if isinstance(self.metadata.shape[0], int) else 1
        for i in range(count):
            yield self.transform(images.image(i * len(images) // count)).expand(batch, -1, -1, -1)

    def compare(self, first: nn.Module, second: nn.Module) -> tuple[tuple[float, float] | None, float, int]:
        """The metric of two networks in % (None if there is none), their agreement in %, and the number of images."""
        if self.task is None:
            return measure_both(first, second, self.validation, metadata=self.metadata, workers=self.data.workers)
        count = len(self.validation)
        if not count:
            raise UserError("There are no validation images to measure int8 on.")
        total = 0.0
        with bar("Comparing int8", count) as advance:
            for x in self._inputs(self.validation, count):
                outputs = (_of_first_image(first(x)), _of_first_image(second(x)))
                total += agreement(*outputs, kind=self.metadata.output_kind)
                advance()
        metrics = None if self.metric is None else (self._metric(first), self._metric(second))
        return metrics, 100 * total / count, count

    def _metric(self, network: nn.Module) -> float:
        assert self.task is not None
        assert self.metric is not None
        inference = self.task.inference
        batches = inference.batches(self.validation, 1, workers=self.data.workers, rank=0, world=1)
        with bar("Measuring int8", len(self.validation)) as advance:
            found = measure(network, batches, inference.metrics(self.validation), each=advance, infer=inference.infer)
        return 100 * found.compute()[self.metric]


def _of_first_image(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(output[:1] for output in ((outputs,) if isinstance(outputs, Tensor) else outputs))


def agreement(first: tuple[Tensor, ...], second: tuple[Tensor, ...], kind: str) -> float:
    """Agreement in 0..1 of two networks' outputs of one image, of a kind in `AGREEMENT`."""
    a, b = first[0], second[0]
    if kind == KINDS["reid"]:
        return float(torch.cosine_similarity(a, b).clamp(min=0).mean())
    if kind == "raw_boxes":
        count = min(BOXES, a.numel())
        best = [set(scores.flatten().topk(count).indices.tolist()) for scores in (a, b)]
        return len(best[0] & best[1]) / count
    if kind == KINDS["keypoints"]:
        a, b = a.flatten(2).transpose(1, 2), b.flatten(2).transpose(1, 2)
    return float((a.argmax(1) == b.argmax(1)).double().mean())


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
