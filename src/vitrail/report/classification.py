"""Parts of a page about one classifier: confusion matrix, classes, images, calibration, what it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..analysis.gradcam import gradcam
from ..analysis.layers import as_maps, blocks_of, outputs_of, stage_of
from ..analysis.overlay import input_window, painted
from ..checkpoint.format import meta_of
from ..data.transforms.classification import eval_transform
from ..errors import UserError
from ..metrics.base import evenly_spaced
from ..utils.draw import within
from ..utils.progress import bar
from .charts import heat_map, reliability_diagrams
from .classified import Classified
from .html import Html, captioned, details, gallery, image, note, number, paragraph, short, table, tag

#: most classes of a confusion matrix that is drawn; of more the most frequent confusions are listed
MOST_DRAWN = 100
#: confusions that are listed
LISTED = 40
#: bytes of the images of all cells, as they stand in the page
CELLS_BUDGET = 1_500_000
#: longest side of a thumbnail, and of a larger image, in pixels
THUMBNAIL, LARGE = 112, 224
#: places a side of a map that shows where a network looks; small images shrink to fewer in the last stages
LEAST_SIDE = 3


# ---- confusion matrix -------------------------------------------------------------------------------------------


def confusion_part(seen: Classified, examples: int) -> Html:
    """The confusion matrix; a click on a cell shows its images."""
    cells = seen.cells()
    counts = np.zeros((len(seen.classes),) * 2, dtype=int) if len(seen.classes) <= MOST_DRAWN else None
    listed = sorted(cells, key=lambda cell: (cell[0] == cell[1], -len(cells[cell]), cell))
    if counts is None:
        listed = [cell for cell in listed if cell[0] != cell[1]][:LISTED]
        drawn = _list_of_confusions(seen, cells, listed)
    else:
        for (i, j), places in cells.items():
            counts[i, j] = len(places)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        drawn = heat_map(
            shares.tolist(),
            "Images by true and predicted class",
            rows=seen.classes,
            columns=seen.classes,
            labels=("true", "predicted"),
            texts=lambda i, j: f"{counts[i, j]:,}",
            link=lambda i, j: _anchor((i, j)),
            note="Colours are shares of the true class. Click a cell to see its images.",
        )
    return tag("div", drawn, _details(seen, cells, listed, examples))


def _anchor(cell: tuple[int, int]) -> str:
    return f"cell-{cell[0]}-{cell[1]}"


def _list_of_confusions(
    seen: Classified, cells: dict[tuple[int, int], list[int]], listed: Sequence[tuple[int, int]]
) -> Html:
    rows = [
        [tag("a", short(seen.classes[i]), href=f"#{_anchor((i, j))}"), short(seen.classes[j]), len(cells[i, j])]
        for i, j in listed
    ]
    told = f"The {len(listed)} most frequent confusions of {len(seen.classes):,} classes. Click one to see its images."
    return tag("div", paragraph(told, quiet=True), table(["true", "predicted", "images"], rows, caption="confusions"))


def _details(
    seen: Classified, cells: dict[tuple[int, int], list[int]], listed: Sequence[tuple[int, int]], examples: int
) -> list[Html]:
    """What a click on a cell shows; images as far as the page has room for them, mistakes first."""
    found, spent = [], 0
    with bar("Confusion matrix", len(listed)) as advance:
        for cell in listed:
            places = cells[cell]
            figures = []
            for place in places[:examples] if seen.can_be_shown else ():
                if spent < CELLS_BUDGET:
                    figures.append(_thumbnail(seen, place, f"{100 * seen.best[place]:.1f} %"))
                    spent += len(figures[-1].markup)
            found.append(_detail(seen, cell, len(places), figures))
            advance()
    return found


def _detail(seen: Classified, cell: tuple[int, int], count: int, figures: list[Html]) -> Html:
    true, predicted = (short(seen.classes[i]) for i in cell)
    number = f"{count:,} image" + "s" * (count != 1)
    shown = "" if len(figures) == count else f", {len(figures)} shown" if figures else ", none shown"
    title = tag("h3", ["true: ", true, ", predicted: ", predicted])
    return tag("div", title, paragraph(number, shown), gallery(figures), id=_anchor(cell), class_="detail")


def _thumbnail(seen: Classified, place: int, *lines: str, longest: int = THUMBNAIL) -> Html:
    """An image of the data with its name below."""
    return captioned(image(seen.image(place), seen.name(place), longest=longest), *lines, _file(seen, place))


def _file(seen: Classified, place: int) -> Html:
    """The name of an image without its folder, which is its tooltip."""
    key = seen.images.key(int(seen.numbers[place]))
    return tag("span", short(key.rpartition("/")[2], 40), title=seen.name(place)[:500])


# ---- images -----------------------------------------------------------------------------------------------------


def predictions_part(seen: Classified, examples: int) -> Html:
    """Predictions with the least and with the most probability of the true class."""
    if not seen.can_be_shown:
        return paragraph("Images of a stream cannot be shown.", quiet=True)
    if not examples:
        return paragraph("No images are shown (--examples 0).", quiet=True)
    wrong, right = seen.worst(examples), seen.best_ones(examples)
    wrongs = [
        _thumbnail(
            seen,
            place,
            f"{seen.found_name(place)} {100 * seen.best[place]:.1f} %",
            f"true: {seen.true_name(place)} {100 * seen.own[place]:.1f} %",
        )
        for place in wrong
    ]
    rights = [_thumbnail(seen, place, f"{seen.true_name(place)} {100 * seen.own[place]:.1f} %") for place in right]
    mistakes = int((seen.found != seen.truth).sum())
    told = f"{mistakes:,} of {len(seen.truth):,} predictions are wrong; least probability of the true class first."
    worst = [tag("h3", "Worst"), paragraph(told), gallery(wrongs)]
    return tag("div", worst, tag("h3", "Best"), gallery(rights))


def gradcam_part(network: nn.Module, seen: Classified, examples: int) -> Html:
    """Class activation maps of mistakes and of right predictions, for the predicted and the true class."""
    if not seen.can_be_shown or not examples:
        return paragraph("No images are shown.", quiet=True)
    wrong = seen.worst(examples // 2)
    right = np.flatnonzero(seen.found == seen.truth)
    chosen = wrong + [int(right[i]) for i in evenly_spaced(len(right), examples - len(wrong))]
    figures = []
    try:
        with bar("Class activation maps", len(chosen)) as advance:
            for place in chosen:
                figures += _maps(network, seen, place)
                advance()
    except UserError as error:
        return note(f"Class activation maps cannot be drawn: {error}")
    told = (
        "Where a layer speaks for a class (Grad-CAM): red most, blue not at all, each map by its own maximum. It is "
        "the last stage, or an earlier one where its map has hardly a place. It does not show what the network would "
        "say without these pixels."
    )
    return tag("div", paragraph(told, quiet=True), gallery(figures))


def _maps(network: nn.Module, seen: Classified, place: int) -> list[Html]:
    """An image, and over it the maps of the predicted class and, of a mistake, of the true one."""
    original = seen.image(place)
    device = next(network.parameters()).device
    prepared = eval_transform(meta_of(network).preprocess)(original)[None].to(device)
    layer = layer_to_show(network, prepared)
    small = _enlarged(within(original, LARGE))
    window = input_window(small.size, meta_of(network).preprocess)
    figures = [
        captioned(image(small, seen.name(place), longest=LARGE), f"true: {seen.true_name(place)}", _file(seen, place))
    ]
    for target in dict.fromkeys((int(seen.found[place]), int(seen.truth[place]))):
        found = gradcam(network, prepared, target=target, layer=layer)
        drawn = painted(small, found.enlarged[0], window)
        chance = seen.best[place] if target == seen.found[place] else seen.own[place]
        empty = "" if found.enlarged[0].any() else ", nothing speaks for it"
        alt = f"class activation map for {seen.classes[target]}"
        words = f"for {seen.classes[target]} {100 * chance:.1f} %{empty}"
        figures.append(captioned(image(drawn, alt, longest=LARGE), words, f"layer {found.about['layer']}"))
    return figures


def _enlarged(original: Image.Image) -> Image.Image:
    """Tiny images by a whole factor, so that smooth maps can be seen on them."""
    factor = max(1, LARGE // (2 * max(original.size)))
    return original.resize((original.width * factor, original.height * factor), Image.Resampling.NEAREST)


# ---- classes ----------------------------------------------------------------------------------------------------


def classes_part(metrics: dict[str, Any]) -> Html:
    """Precision, recall, F1 and number of images of each class."""
    rows = []
    for row in metrics["per_class"]:
        recall, precision = row.get("accuracy"), row.get("precision")
        f1 = None
        if recall is not None and precision is not None and recall + precision > 0:
            f1 = 2 * recall * precision / (recall + precision)
        rows.append([row["class"], precision, recall, f1, row.get("images")])
    head = ["class", "precision, %", "recall, %", "F1, %", "images"]
    return table(head, rows, caption="classes", digits=(0, 1, 1, 1, 0), tall=len(rows) > 30)


# ---- calibration ------------------------------------------------------------------------------------------------


def calibration_part(measured: Sequence[tuple[str, dict[str, Any]]]) -> Html:
    """Reliability diagrams, and the expected calibration error with its bins."""
    measured = [(name, metrics) for name, metrics in measured if metrics.get("calibration")]
    if not measured:
        return paragraph("No calibration is known.", quiet=True)
    diagrams = [
        (name, [(row["confidence"] or 0.0, row["accuracy"] or 0.0, row["images"]) for row in metrics["calibration"]])
        for name, metrics in measured
    ]
    count = len(measured[0][1]["calibration"])
    told = (
        f"ECE: over {count} bins of equal width, the share of images times the distance between accuracy and mean "
        "confidence (Guo et al., ICML 2017). Points below the diagonal: too sure. With few images in a bin its point "
        "says little."
    )
    rows = [
        [
            *([name] if len(measured) > 1 else []),
            f"{row['above']:.3f} to {row['up_to']:.3f}",
            row["images"],
            row["confidence"],
            row["accuracy"],
        ]
        for name, metrics in measured
        for row in metrics["calibration"]
        if row["images"]
    ]
    head = [*(["network"] if len(measured) > 1 else []), "confidence", "images", "mean confidence", "accuracy"]
    errors = ", ".join(f"{name} {number(metrics.get('ece'))} %".strip() for name, metrics in measured)
    diagram = reliability_diagrams(diagrams, "Reliability", note=f"ECE: {errors}")
    bins = table(head, rows, caption="bins", digits=3)
    if len(measured) > 1:
        return tag("div", paragraph(told, quiet=True), diagram, details("Bins", bins))
    return tag("div", paragraph(told, quiet=True), tag("div", diagram, bins, class_="charts"))


def layer_to_show(network: nn.Module, prepared: Tensor) -> str | None:
    """The last stage whose map has at least `LEAST_SIDE` places a side; None = gradcam's own choice."""
    last = {stage_of(name): name for name in blocks_of(network)}
    names = [name for stage, name in last.items() if stage is not None]
    with torch.inference_mode(), outputs_of(network, names) as outputs:
        network(prepared)
    sides = {name: min(as_maps(outputs[name], network, name).shape[2:]) for name in names if name in outputs}
    shown = [name for name in names if sides.get(name, 0) >= LEAST_SIDE]
    return None if not shown or shown[-1] == names[-1] else shown[-1]
