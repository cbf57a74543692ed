"""Evaluation of trained weights on a data set, by their task's metrics."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..checkpoint.load import notes, pick_device
from ..checkpoint.run_dir import data_of_run
from ..config.data import TRAINING_IMAGES, DataConfig
from ..config.export import RuntimeName
from ..config.tasks import InferenceConfig
from ..data import EvalLoader, eval_transform, open_dataset
from ..data.datasets.classes import with_classes_of
from ..data.datasets.division import changed_options, check_division, validation_split
from ..data.datasets.splits import HOLDOUT, for_measuring
from ..deploy.export.runtime import open_any
from ..errors import UserError
from ..metrics.classification import ClassificationMetrics
from ..tasks import DenseTask, Metrics, measure, task_of
from ..utils.files import write_whole
from ..utils.output_folder import OutputFolder
from ..utils.progress import bar

#: how to measure all of them
ALL = "--data.val_split all measures all"
#: images in one forward pass, where all have one size
DEFAULT_BATCH_SIZE = 64
#: files written into a folder: the metrics, and the reports of tasks
METRICS = "metrics.json"
REPORTS = ("per_class.csv", "confusion.png", "results.json", "panoptic.json")


def evaluate(
    weights: str | Path,
    data: DataConfig | None = None,
    *,
    model: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    runtime: RuntimeName = "auto",
    inference: InferenceConfig | None = None,
    timed: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """The task's metrics of trained weights on validation images.

    Args:
        weights: a .safetensors, a run directory, timm:NAME, hf-hub:ORG/NAME, a folder in the Hub's form, a file of
            tensors with `model`, random:MODEL, or a file of vitrail export.
        data: data set, of which the validation split is evaluated; by default that of the run.
        model: the network a file of tensors (authors', timm's, torchvision's) belongs to.
        batch_size: images in one forward pass; None = 64 if all images have one size, else 1, as images of several
            sizes are padded.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        output: folder for metrics.json and further results of the task, such as confusion.png or results.json; only
            files of an earlier evaluation are replaced. None = nothing is written.
        runtime: runtime of an exported file; auto = by its ending.
        inference: inference of a network with a head; None = the defaults.
        timed: called with the images per second, from their files to the metrics' counts.

    Returns:
        Of a classifier top1, top5, mean_class and ece in %, loss, images, per_class rows of {"class", "accuracy" and
        "precision" in %, "images"} and the rows of its `calibration`; of others the metrics of `metrics/`, in [0, 1].

    Raises:
        UserError: weights or data that cannot be used, or classes the network does not know.
    """
    folder = None if output is None else OutputFolder(Path(output), "--output")
    if folder is not None:
        folder.check((METRICS, *REPORTS))
    opened = open_evaluation(weights, data, model=model, batch_size=batch_size, runtime=runtime, inference=inference)
    values = opened.run(device)
    if timed is not None:
        timed(opened.images_per_second)
    if folder is not None:
        with folder.adding() as fresh:
            write_whole(fresh / METRICS, json.dumps(values, indent=2))
            opened.metrics.report(fresh)
    return values


@dataclass
class Evaluation:
    """Trained weights with the data that they are measured on.

    Attributes:
        network: with its description.
        data: options of the data.
        images: the data set: an `ImageSet` or `ImageStream` of a classifier, else an `AnnotatedSet`.
        task: of a network with a head; None of a classifier.
        batches: of the data set.
        metrics: empty; filled by `run`.
        infer: from the network and a batch's inputs to what the metrics take.
        images_per_second: of `run`: reading, preprocessing, the network, decoding and counting together.
    """

    network: nn.Module
    data: DataConfig
    images: Any
    task: DenseTask | None
    batches: Iterable[Any]
    metrics: Metrics
    infer: Callable[[nn.Module, Any], Any]
    images_per_second: float = 0.0

    def run(self, device: str = "auto") -> dict[str, Any]:
        """Measure with a progress bar; returns the metrics, see `evaluate`."""
        chosen = pick_device(device, self.network)
        total = len(self.batches) if isinstance(self.batches, Sized) else None
        count, started = 0, time.perf_counter()

        def counted(model: nn.Module, inputs: Any) -> Any:
            nonlocal count
            count += len(inputs)
            return self.infer(model, inputs)

        with bar("Evaluating", total) as advance:
            measure(self.network.to(chosen), self.batches, self.metrics, chosen, each=advance, infer=counted)
        self.images_per_second = count / (time.perf_counter() - started)
        return self.metrics.compute()


def open_evaluation(
    weights: str | Path,
    data: DataConfig | None = None,
    *,
    model: str | None = None,
    batch_size: int | None = None,
    runtime: RuntimeName = "auto",
    inference: InferenceConfig | None = None,
) -> Evaluation:
    """Open weights and the data that they are measured on; the arguments are those of `evaluate`.

    Raises:
        UserError: weights or data that cannot be used, or classes the network does not know.
    """
    weights = str(weights)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size {batch_size} must be at least 1.")
    network = open_any(weights, model, runtime)
    _warn(f"{weights}: {text}" for text in notes(network))
    meta = meta_of(network)
    own = data_of_run(weights)
    given = data
    data = own if data is None else for_measuring(data, own or _learned_from(meta, data))
    if given is not None and data is not None:
        check_division(data, meta.task, changed_options(given))
    if data is None:
        raise UserError(
            f"{weights} is no run directory, which would know its data: name it with --data and --data.root."
        )
    if meta.head is None:
        opened = _classifier(network, data, weights=weights, batch_size=batch_size, inference=inference)
    else:
        opened = _with_head(network, data, batch_size, inference)
    if given is not None and data.val_split == HOLDOUT and validation_split(data, meta.task) is None:
        why = "the others are training images" if own else "the weights say that they learned from data of this name"
        _warn([f"only the held-out share, {len(opened.images):,} images, is measured, as {why}; {ALL}"])
    return opened


def with_kind_of(data: DataConfig, weights: str) -> DataConfig:
    """Options of data that were given without the kind of data, completed by those of a run.

    Args:
        data: with the default's name. If they name a place, such as `root`, it is taken to be of the kind that the run
            learned from; if not, they change the run's own data.
        weights: which may be a run.

    Raises:
        UserError: a place is named, and the weights are no run.
    """
    own = data_of_run(weights)
    given = {name: getattr(data, name) for name in changed_options(data)}
    place = next((name for name in ("root", "images", "annotations", "source") if name in given), None)
    if own is not None:
        return replace(own, **given) if place is None else replace(data, name=own.name)
    if place is not None:
        raise UserError(
            f"--data.{place} {given[place]}: say which kind of data it is, such as --data folder; {weights} is no run "
            "directory, which would know."
        )
    return data


def _learned_from(meta: WeightsMeta, data: DataConfig) -> DataConfig | None:
    """`data`, if the weights were trained on data of this title by their own description."""
    return data if meta.training_data.split("; ")[0] == data.title else None


def _warn(sentences: Iterable[str]) -> None:
    """Show notes on weights and data as warnings."""
    for note in sentences:
        warnings.warn(f"{note.rstrip('.')}.", stacklevel=2)


def _classifier(
    network: nn.Module, data: DataConfig, weights: str, batch_size: int | None, inference: InferenceConfig | None
) -> Evaluation:
    if inference is not None:
        inference.check("classification")
    meta = meta_of(network)
    images = with_classes_of(meta.classes, open_dataset(data, train=False, levels=meta.preprocess.levels), weights)
    _warn(images.notes())
    batch_size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    return Evaluation(
        network,
        data,
        images,
        task=None,
        batches=EvalLoader(images, eval_transform(meta.preprocess), batch_size, workers=data.workers),
        metrics=ClassificationMetrics(meta.classes, TRAINING_IMAGES if data.validates_on_training_split else ""),
        infer=lambda model, inputs: model(inputs),
    )


def _with_head(
    network: nn.Module, data: DataConfig, batch_size: int | None, inference: InferenceConfig | None
) -> Evaluation:
    task = task_of(meta_of(network), data, inference)
    if batch_size is None:
        batch_size = DEFAULT_BATCH_SIZE if task.one_size else 1
    _warn(task.eval_set.notes())
    batches = task.inference.batches(task.eval_set, batch_size, workers=data.workers, rank=0, world=1)
    return Evaluation(
        network, data, task.eval_set, task=task, batches=batches, metrics=task.metrics(), infer=task.infer
    )
