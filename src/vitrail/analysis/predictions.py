"""Predictions of several networks for an image beside the truth, and where they differ from it (LVT, Fig. 1, 5, 6)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..checkpoint.format import meta_of
from ..checkpoint.run_dir import data_of_run
from ..config.data import DataConfig
from ..data.datasets.base import AnnotatedSet
from ..errors import UserError
from ..structures import Prediction
from ..tasks import DenseTask, task_of
from ..utils.draw import letter_size, with_title, within
from .differences import Difference, difference
from .result import Analysis, NamedArray

#: longest side of an image in the plot, and its shortest width, in pixels
LONGEST, NARROWEST = 640, 240
#: tasks whose predictions have places in the image
TASKS = ("semantic_segmentation", "detection", "instance_segmentation", "panoptic_segmentation", "keypoints")


@dataclass
class Predictions(Analysis):
    """Predictions of several networks for one image.

    Attributes:
        arrays: "numbers" (network, measure): what `differences` counts; NaN for what is not compared.
        image: the image they are of.
        predictions: by the networks' names.
        truth: the ground truth, None where it is not known.
        differences: of each network's prediction from the truth; without a truth from the first network's.
    """

    image: Image.Image
    predictions: Mapping[str, Prediction]
    truth: Prediction | None
    differences: Mapping[str, Difference]

    def summary(self) -> str:
        """What each network's prediction differs in."""
        parts = [
            f"{name}: {self.differences[name].summary()}" if name in self.differences else f"{name}: {found.summary()}"
            for name, found in self.predictions.items()
        ]
        return f"Difference from {self.about['reference']}: {'; '.join(parts)}." if self.differences else parts[0] + "."

    def plot(self) -> Image.Image:
        """Input, truth and predictions in a row, and below each prediction its difference."""
        columns = [[("input", self.image), None]]
        if self.truth is not None:
            columns.append([("truth", self.truth.draw(self.image)), None])
        for name, found in self.predictions.items():
            column: list[tuple[str, Image.Image] | None] = [(name, found.draw(self.image)), None]
            if name in self.differences:
                one = self.differences[name]
                column[1] = (f"difference from {self.about['reference']}: {one.summary()}", one.draw(self.image))
            columns.append(column)
        return _grid(columns, size=max(12, letter_size(within(self.image, LONGEST))))

    def to_dict(self) -> dict[str, Any]:
        """The numbers, and what was predicted."""
        found = {name: one.to_dict() for name, one in self.predictions.items()}
        return {**super().to_dict(), "predictions": found, "truth": self.truth and self.truth.to_dict()}


def compare_predictions(
    image: Image.Image, predictions: Mapping[str, Prediction], truth: Prediction | None = None, **about: Any
) -> Predictions:
    """Predictions for one image side by side, each with its difference from the truth.

    Args:
        image: RGB.
        predictions: of one kind and the same classes, by the networks' names.
        truth: the ground truth; None = the first prediction is what the others are compared with.
        about: what the result states besides.

    Raises:
        UserError: predictions of unlike kinds, or of a kind without places in the image.
    """
    names = list(predictions)
    reference = predictions[names[0]] if truth is None else truth
    compared = names[1:] if truth is None else names
    differences = {name: difference(predictions[name], reference) for name in compared}
    numbers = {name: one.numbers() for name, one in differences.items()}
    measures = list(next(iter(numbers.values()), {}))
    table = np.array([[numbers.get(name, {}).get(measure, np.nan) for measure in measures] for name in names])
    stated = {"models": names, "reference": "the truth" if truth is not None else names[0], **about}
    array = NamedArray(
        table.reshape(len(names), len(measures)), ("network", "measure"), {"network": names, "measure": measures}
    )
    return Predictions(
        stated, {"numbers": array}, image=image, predictions=predictions, truth=truth, differences=differences
    )


# ---- networks and truth ----------------------------------------------------------------------------------------------


class Truths:
    """Annotated images of a data set, by their files.

    Args:
        task: of the networks; opens the data.
    """

    def __init__(self, task: DenseTask):
        self.found: dict[str, tuple[AnnotatedSet, list[int]]] = {}
        for data in _splits(task):
            for samples in task.samples_by_image(data):
                self.found.setdefault(os.path.realpath(data.path(samples[0])), (data, samples))

    def of(self, path: Path) -> tuple[AnnotatedSet, list[int]] | None:
        """The data set that holds an image file, and the numbers of its samples."""
        return self.found.get(os.path.realpath(path))


def _splits(task: DenseTask) -> list[AnnotatedSet]:
    """The validation and the training split with the network's classes."""
    training = task.train_set
    training.reorder_classes(task.classes)
    splits = [task.eval_set, training]
    for data in splits:
        if list(data.classes) != task.classes:
            raise UserError("The data of the truth have other classes than the networks.")
    return splits


def truths_of(weights: str, network: nn.Module, root: str | None) -> Truths | None:
    """The annotations of a run's data, or of a folder.

    Args:
        weights: a run directory has data of its own.
        network: says the task.
        root: of data in the layout that the task learns from; None = those of the run, if it is one.

    Raises:
        UserError: data that cannot be used.
    """
    meta = meta_of(network)
    if root is not None:
        return Truths(task_of(meta, replace(DataConfig(), name=task_of(meta).source[0], root=root)))
    own = data_of_run(weights)
    return None if own is None else Truths(task_of(meta, own))


def named_networks(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Networks by their models' names, with what they were loaded from where two have one name.

    Args:
        networks: by their WEIGHTS arguments.

    Raises:
        UserError: a network without a head, of another task or of other classes than the first.
    """
    metas = {weights: meta_of(network) for weights, network in networks.items()}
    first, known = next(iter(metas.items()))
    for weights, meta in metas.items():
        if meta.head is None or meta.task not in TASKS:
            raise UserError(
                f"--method predictions draws what is found in places of an image; {weights} is a network for "
                f"{meta.task}: use vitrail predict."
            )
        if meta.task != known.task:
            raise UserError(f"{first} is a network for {known.task} and {weights} one for {meta.task}: compare alike.")
        if list(meta.classes) != list(known.classes):
            odd = sorted(set(meta.classes) ^ set(known.classes))
            why = f"such as {odd[0]!r}" if odd else "in another order"
            raise UserError(f"{weights} has other classes than {first}, {why}: compare networks of the same classes.")
    plain = [f"{meta.model} + {meta.head}" for meta in metas.values()]
    pairs = zip(plain, networks.items(), strict=True)
    return {name if plain.count(name) == 1 else f"{name} ({weights})": network for name, (weights, network) in pairs}


def predicted(
    networks: Mapping[str, nn.Module],
    tasks: Mapping[str, DenseTask],
    image: Image.Image,
    truth: tuple[AnnotatedSet, list[int]] | None,
) -> Predictions:
    """The predictions of networks for one image.

    Args:
        networks: by name, on their device.
        tasks: of the networks.
        image: RGB.
        truth: a data set and the image's samples in it; of keypoints they have the boxes of the persons, too.
    """
    found: dict[str, Prediction] = {}
    known: Prediction | None = None
    for name, network in networks.items():
        device = next(network.parameters()).device
        with torch.inference_mode():
            if truth is None:
                found[name] = tasks[name].inference.predict(network, [image], device)[0]
            else:
                _, image, known, found[name] = tasks[name].example(network, device, *truth)
    return compare_predictions(image, found, known, task=next(iter(tasks.values())).name, image_size=list(image.size))


# ---- drawing ---------------------------------------------------------------------------------------------------------


def _grid(columns: Sequence[Sequence[tuple[str, Image.Image] | None]], size: int) -> Image.Image:
    """Images of two rows below their titles, column by column; large ones are made smaller.

    Args:
        columns: titles and images.
        size: of the letters in pixels.
    """
    cells = [
        [cell and with_title(within(cell[1], LONGEST), cell[0], NARROWEST, size=size) for cell in column]
        for column in columns
    ]
    widths = [max(cell.width for cell in column if cell) for column in cells]
    heights = [max((column[row].height for column in cells if column[row]), default=0) for row in (0, 1)]
    gap = 8
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), sum(heights)), "white")
    left = 0
    for column, width in zip(cells, widths, strict=True):
        for cell, top in zip(column, (0, heights[0]), strict=True):
            if cell is not None:
                sheet.paste(cell, (left, top))
        left += width + gap
    return sheet
