"""Draw the plot of docs/tasks.md: `python docs/learned.py RUNS --output docs/learned.png`.

RUNS is a folder of run directories of `configs/mini`. Each has one plot: its task's best metric over the epochs.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vitrail.checkpoint.format import meta_of
from vitrail.checkpoint.load import load_network
from vitrail.checkpoint.run_dir import read_log
from vitrail.tasks import task_of

COLUMNS = 3


def curve(axis: Any, run: Path, metric: str) -> None:
    """The task's best metric at the epochs with an evaluation."""
    rows = read_log(run)
    axis.plot([row["epoch"] for row in rows], [row[f"val_{metric}"] for row in rows], marker=".")
    axis.set(title=run.name, xlabel="epoch", ylabel=metric, ylim=(0, 1))
    axis.grid(alpha=0.25)


def main() -> None:
    """Draw and save the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/learned.png"))
    args = parser.parse_args()
    runs = sorted(path.parent for path in args.runs.glob("*/summary.json"))
    lines = -(-len(runs) // COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(10.5, 2.6 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(runs) :]:
        axis.axis("off")
    for axis, run in zip(axes.flat, runs, strict=False):
        curve(axis, run, task_of(meta_of(load_network(run))).best_metric)
    figure.savefig(args.output, dpi=80)


if __name__ == "__main__":
    main()
