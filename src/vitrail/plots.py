"""Pictures of a run: learning curves and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .extras import require


def _figure(width: float, height: float) -> Any:
    # an own canvas: nothing is asked of a display, and pyplot's global state stays the user's
    figure = require("matplotlib.figure", "train").Figure(figsize=(width, height), layout="constrained")
    require("matplotlib.backends.backend_agg", "train").FigureCanvasAgg(figure)
    return figure


def draw_curves(rows: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """Loss, the task's metric and the learning rate over the epochs.

    Args:
        rows: those of `metrics.csv`, numbers by name.
        metric: name of the task's figure, drawn for "train_" and "val_" where they exist.
        path: the picture.
    """
    figure = _figure(12, 3.6)
    axes = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) == 1 else ""
    for axis, title in zip(axes, ("loss", metric, "lr"), strict=True):
        for prefix in ("", "train_", "val_"):
            values = [row.get(prefix + title) for row in rows]
            if any(value is not None for value in values):
                heights = [float("nan") if value is None else value for value in values]
                axis.plot(epochs, heights, marker=marker, label=prefix.rstrip("_"))
        axis.set(title={"lr": "learning rate"}.get(title, title), xlabel="epoch")
        axis.grid(alpha=0.3)
        if title != "lr":
            axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def draw_confusion(counts: Tensor, classes: Sequence[str], path: Path) -> None:
    """Which class is taken for which, as shares of each true class.

    Args:
        counts: (classes, classes), true class by row, predicted by column.
        classes: names, written beside the rows up to 60 of them.
        path: the picture.
    """
    n = len(classes)
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(4 + 0.32 * n, 16)
    figure = _figure(side + 1, side)
    axis = figure.subplots()
    image = axis.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axis.set(xlabel="predicted class", ylabel="true class")
    if n <= 60:
        axis.set_xticks(range(n), classes, rotation=90)
        axis.set_yticks(range(n), classes)
    if n <= 20:
        for i, j in [(i, j) for i in range(n) for j in range(n) if counts[i, j]]:
            axis.text(
                j, i, int(counts[i, j]), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black"
            )
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class")
    figure.savefig(path, dpi=110)
