"""Measure trained weights on a data set by their task's own metrics."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..checkpoint.load import pick_device
from ..checkpoint.run_dir import data_of_run
from ..config.data import TRAINING_IMAGES, DataConfig
from ..config.tasks import InferenceConfig
from ..data import EvalLoader, eval_transform, open_dataset
from ..data.datasets.classes import with_classes_of
from ..data.datasets.division import changed_options, check_division
from ..data.datasets.splits import for_measuring
from ..deploy.export.runtime import open_any
from ..errors import UserError
from ..metrics.classification import ClassificationMetrics
from ..tasks import Metrics, measure, task_of
from ..utils.files import write_whole
from ..utils.output_folder import OutputFolder
from ..utils.progress import bar

#: pictures in one forward pass, where they have one size
OF_ONE_SIZE = 64
#: what is written into a folder: the metrics, and what tasks report besides
METRICS = "metrics.json"
REPORTS = ("per_class.csv", "confusion.png", "results.json", "panoptic.json")


def evaluate(
    weights: str,
    data: DataConfig | None = None,
    model: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    output: Path | None = None,
    runtime: str = "auto",
    inference: InferenceConfig | None = None,
) -> dict[str, Any]:
    """The task's metrics of trained weights on held-back pictures.

    Args:
        weights: a .safetensors, a run directory, an authors' file with `model`, "random:MODEL", or a file
            of `vitrail export`.
        data: which pictures; their validation part. None = those of the run, where `weights` is a run directory.
        model: the network an authors' file belongs to.
        batch_size: pictures in one forward pass; None = 64 where the network sees all pictures in one size, else 1, as
            others are padded.
        device: "auto", "cpu", "cuda", ...
        output: folder for `metrics.json` and what the task reports besides; None writes nothing. Files that are there
            and that no such call wrote are never replaced.
        runtime: "auto", or the one runtime that runs an exported file; another is refused.
        inference: how a network with a head is used; None = as usual.

    Returns:
        Of a classifier top1, top5, mean_class in %, loss, images, and per_class rows of {"class", "accuracy" in %,
        "images"}; of others the figures of `metrics/`, in [0, 1].

    Raises:
        UserError: weights or data that cannot be used, or classes the network does not know.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size {batch_size} must be at least 1.")
    folder = None if output is None else OutputFolder(output, "--output")
    if folder is not None:
        folder.check((METRICS, *REPORTS))
    network = open_any(weights, model, runtime)
    meta = meta_of(network)
    own = data_of_run(weights)
    named = data
    data = own if data is None else for_measuring(data, own or _as_title_says(meta, data))
    if named is not None and data is not None:
        check_division(data, meta.task, changed_options(named))
    if data is None:
        raise UserError(
            f"{weights} is no run directory, which would know its data: name it with --data and --data.root."
        )
    if meta.head is None:
        batches, counts, infer = _classifier(meta, data, weights, batch_size, inference)
    else:
        batches, counts, infer = _with_head(meta, data, batch_size, inference)
    chosen = pick_device(device, network)
    total = len(batches) if isinstance(batches, Sized) else None
    with bar("Evaluating", total) as advance:
        measure(network.to(chosen), batches, counts, chosen, each=advance, infer=infer)
    figures = counts.compute()
    if folder is not None:
        with folder.adding() as fresh:
            write_whole(fresh / METRICS, json.dumps(figures, indent=2))
            counts.report(fresh)
    return figures


def _as_title_says(meta: WeightsMeta, data: DataConfig) -> DataConfig | None:
    """The named data, where weights without their run say that they learned from data of this title."""
    return data if meta.training_data.split("; ")[0] == data.title else None


def _say(notes: Iterable[str]) -> None:
    """Warn of what the user should know of the data."""
    for note in notes:
        warnings.warn(f"{note.rstrip('.')}.", stacklevel=2)


#: batches, fresh counts, and what the counts take in of a network and inputs
Measurement = tuple[Iterable[Any], Metrics, Callable[[nn.Module, Any], Any]]


def _classifier(
    meta: WeightsMeta, data: DataConfig, weights: str, batch_size: int | None, inference: InferenceConfig | None
) -> Measurement:
    if inference is not None:
        inference.check("classification")
    pictures = with_classes_of(meta.classes, open_dataset(data, train=False, levels=meta.preprocess.levels), weights)
    _say(pictures.notes)
    batch_size = OF_ONE_SIZE if batch_size is None else batch_size
    loader = EvalLoader(pictures, eval_transform(meta.preprocess), batch_size, workers=data.workers)
    counts = ClassificationMetrics(meta.classes, TRAINING_IMAGES if data.deliberate else "")
    return loader, counts, lambda model, inputs: model(inputs)


def _with_head(
    meta: WeightsMeta, data: DataConfig, batch_size: int | None, inference: InferenceConfig | None
) -> Measurement:
    task = task_of(meta, data, inference)
    if batch_size is None:
        batch_size = OF_ONE_SIZE if task.one_size else 1
    _say(task.eval_set.notes())
    batches = task.inference.batches(task.eval_set, batch_size, data.workers, 0, 1)
    return batches, task.metrics(), task.infer
