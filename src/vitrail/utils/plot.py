"""Plots: learning curves, the confusion matrix, and figures as images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .extras import require
from .lettering import lettered

#: most characters of a class name in a plot
MOST_LETTERS = 30
#: directions in which a label may stand from its point, and distances in points of type: the first free place is taken
DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
DISTANCES = (3, 12, 22, 34, 46, 60)


@contextmanager
def _figure(width: float, height: float, path: Path | BytesIO, extra: str = "train") -> Iterator[Any]:
    """A figure that is saved at the end; `$`, `_` and `\\` in names are drawn literally."""
    plain = {"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False}
    with require("matplotlib", extra).rc_context(plain):
        # a canvas of its own: no display is needed, and pyplot's global state is not changed
        figure = require("matplotlib.figure", extra).Figure(figsize=(width, height), layout="constrained")
        require("matplotlib.backends.backend_agg", extra).FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=110)


def rendered(width: float, height: float, draw: Callable[[Any], None]) -> Image.Image:
    """What a function draws on a matplotlib figure, as an RGB image.

    Args:
        width: of the figure in inches of 110 pixels.
        height: of the figure.
        draw: called with the figure.

    Raises:
        UserError: matplotlib is not installed.
    """
    buffer = BytesIO()
    with _figure(width, height, buffer, extra="analysis") as figure:
        draw(figure)
    return Image.open(buffer).convert("RGB")


def place_labels(axes: Any, points: Sequence[tuple[str, float, float, float]], size: float = 6.5) -> None:
    """Write a label beside each point so that none covers another label or a point; a far one has a line to its point.

    Args:
        axes: of matplotlib, with limits and layout as they will be saved.
        points: label, x, y, and the radius of the point in points of type.
        size: of the letters.

    Raises:
        ValueError: a label has no free place.
    """
    text_of = require("matplotlib.text", "train").Text.get_window_extent
    boxes = require("matplotlib.transforms", "train").Bbox.from_extents
    axes.figure.canvas.draw()
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": "#6b6b6b"}
    renderer, scale = axes.figure.canvas.get_renderer(), axes.figure.dpi / 72
    taken = []
    for _, x, y, radius in points:
        (left, low), reach = axes.transData.transform((x, y)), scale * radius
        taken.append(boxes(left - reach, low - reach, left + reach, low + reach))
    for label, x, y, radius in points:
        for distance, (across, up) in ((distance, way) for distance in DISTANCES for way in DIRECTIONS):
            reach = radius + distance
            text = axes.annotate(
                label,
                (x, y),
                (across * reach, up * reach),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[across],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                fontsize=size,
                color="#1a1a1a",
                arrowprops=line if distance > DISTANCES[0] else None,
                zorder=4,
            )
            text.update_positions(renderer)
            box = text_of(text, renderer).padded(1)  # without the line
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and axes.bbox.containsy(box.y0)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
        else:
            raise ValueError(f"there is no free place for the label {label}")


def draw_curves(rows: Sequence[dict[str, Any]], metric: str, path: Path, measured: str = "val") -> None:
    """Loss, the task's metric and the learning rate over the epochs.

    Args:
        rows: those of `metrics.csv`, numbers by name.
        metric: name of the task's metric, drawn for "train_" and "val_" where they exist.
        path: of the plot.
        measured: label of the "val_" curves.
    """
    with _figure(12, 3.6, path) as figure:
        axes = figure.subplots(1, 3)
        names = {"train_": "train", "val_": measured}
        epochs = [row["epoch"] for row in rows]
        marker = "o" if len(rows) == 1 else ""
        for axis, title in zip(axes, ("loss", metric, "lr"), strict=True):
            for prefix in ("", "train_", "val_"):
                values = [row.get(prefix + title) for row in rows]
                if any(value is not None for value in values):
                    heights = [float("nan") if value is None else value for value in values]
                    axis.plot(epochs, heights, marker=marker, label=names.get(prefix))
            axis.set(title={"lr": "learning rate"}.get(title, title), xlabel="epoch")
            axis.grid(alpha=0.3)
            if title != "lr":
                axis.legend(frameon=False)


def draw_confusion(counts: Tensor, classes: Sequence[str], path: Path, title: str = "") -> None:
    """The confusion matrix, as shares of each true class.

    Args:
        counts: (classes, classes), true class by row, predicted by column.
        classes: names, drawn if there are at most 60.
        path: of the plot.
        title: of the plot.
    """
    n = len(classes)
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(4 + 0.32 * n, 16)
    font = require("matplotlib.font_manager", "train").FontProperties
    with _figure(side + 1, side, path) as figure:
        axis = figure.subplots()
        image = axis.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        axis.set(xlabel="predicted class", ylabel="true class", title=title)
        if n <= 60:
            written = [_written(name) for name in classes]
            texts = [text for _, text in written]
            axis.set_xticks(range(n), texts, rotation=90)
            axis.set_yticks(range(n), texts)
            for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
                for label, (file, _) in zip(labels, written, strict=True):
                    if file is not None:
                        label.set_fontproperties(font(fname=file, size=label.get_fontsize()))
        if n <= 20:
            for i, j in [(i, j) for i in range(n) for j in range(n) if counts[i, j]]:
                color = "white" if share[i, j] > 0.5 else "black"
                axis.text(j, i, int(counts[i, j]), ha="center", va="center", color=color)
        figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true class")


def _written(name: str) -> tuple[str | None, str]:
    """The font file for a name, None for matplotlib's own, and the name as it is drawn."""
    name = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 3]}..."
    font, text = lettered(name, size=12)
    file = getattr(font, "path", None)
    return file if isinstance(file, str) else None, text
