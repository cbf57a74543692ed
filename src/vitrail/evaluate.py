"""Measure trained weights on a data set: accuracy, per class, and who is taken for whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .data import EvalLoader, eval_transform, open_dataset
from .data.config import DataConfig
from .deploy.runtimes import open_any
from .errors import UserError
from .networks import check_classes, pick_device
from .progress import bar
from .runs import data_of_run, saving
from .tasks.base import measure
from .tasks.classification import ClassificationMetrics
from .weights import meta_of, write_whole


def evaluate(
    weights: str,
    data: DataConfig | None = None,
    model: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    output: Path | None = None,
    runtime: str = "auto",
) -> dict[str, Any]:
    """The classification metrics of trained weights on held-back pictures.

    Args:
        weights: a .safetensors, a run directory, an authors' file with `model`, "random:MODEL", or a file
            of `vitrail export`.
        data: which pictures; their validation part. None = those of the run, where `weights` is a run directory.
        model: the network an authors' file belongs to.
        batch_size: pictures in one forward pass.
        device: "auto", "cpu", "cuda", ...
        output: folder for `metrics.json`, `per_class.csv` and `confusion.png`; None writes nothing.
        runtime: "auto", or the one runtime that runs an exported file; another is refused.

    Returns:
        top1, top5, mean_class in %, loss, images, and per_class rows of {"class", "accuracy" in %, "images"}.

    Raises:
        UserError: weights or data that cannot be used, or classes the network does not know.
    """
    network = open_any(weights, model, runtime)
    meta = meta_of(network)
    data = data or data_of_run(weights)
    if data is None:
        raise UserError(
            f"{weights} is no run directory, which would know its data: name it with --data and --data.root."
        )
    pictures = open_dataset(data, train=False)
    check_classes(meta, pictures, weights)
    loader = EvalLoader(pictures, eval_transform(meta.preprocess), batch_size, workers=data.workers)
    counts = ClassificationMetrics(meta.classes)
    chosen = pick_device(device)
    batches = None if pictures.streaming else len(loader)
    with bar("Evaluating", batches) as advance:
        measure(network.to(chosen), loader, counts, chosen, each=advance)
    figures = counts.compute()
    if output is not None:
        with saving(output):
            output.mkdir(parents=True, exist_ok=True)
            write_whole(output / "metrics.json", json.dumps(figures, indent=2))
            counts.report(output)
    return figures
