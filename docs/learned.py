"""Draw the plot of docs/tasks.md: `python docs/learned.py RUNS --output docs/learned.png`.

RUNS is a folder of run directories of `configs/mini`. Each is one row: the task's best metric over the epochs, and the
network's predictions for three validation images, on empty canvases, as the photographs may not be published.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image

from vitrail.checkpoint.format import meta_of
from vitrail.checkpoint.load import load_network
from vitrail.checkpoint.run_dir import data_of_run
from vitrail.tasks import task_of

SHOWN, CANVAS = 3, (245, 245, 240)


def drawn(run: Path) -> list[Image.Image]:
    """Predictions for validation images, without the images; none for re-identification, whose results are images."""
    network = load_network(run)
    if meta_of(network).task == "reid":
        return []
    task = task_of(meta_of(network), data_of_run(str(run)))
    examples = task.iter_examples(network, torch.device("cpu"), SHOWN)
    return [example.prediction.draw(Image.new("RGB", example.image.size, CANVAS)) for example in examples]


def curve(axis: Any, run: Path, metric: str) -> None:
    """The task's best metric at the epochs with an evaluation."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    axis.plot([int(row["epoch"]) + 1 for row in rows], [float(row[f"val_{metric}"]) for row in rows], marker=".")
    axis.set(title=run.name, xlabel="epoch", ylabel=metric, ylim=(0, 1))
    axis.grid(alpha=0.25)


def main() -> None:
    """Draw and save the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/learned.png"))
    args = parser.parse_args()
    runs = sorted(path.parent for path in args.runs.glob("*/summary.json"))
    figure, axes = plt.subplots(
        len(runs), 1 + SHOWN, figsize=(12, 2.6 * len(runs)), squeeze=False, layout="constrained"
    )
    for row, run in zip(axes, runs, strict=True):
        metric = task_of(meta_of(load_network(run))).best_metric
        curve(row[0], run, metric)
        for axis in row[1:]:
            axis.axis("off")
        for axis, image in zip(row[1:], drawn(run), strict=False):
            axis.imshow(image)
    figure.savefig(args.output, dpi=80)


if __name__ == "__main__":
    main()
