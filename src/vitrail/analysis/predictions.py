"""Predictions of several networks for an image beside the truth, and where they differ from it (LVT, Fig. 1, 5, 6)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..checkpoint.description import WeightsMeta
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

#: a data set and the numbers of an image's samples in it
Samples = tuple[AnnotatedSet, list[int]]


@dataclass
class Comparison:
    """Networks of one task and the same classes, and the truth that is known of images.

    Attributes:
        networks: by name, in evaluation mode on their device.
        tasks: of the networks.
        truths: samples of the annotated images, by the path of their file.
    """

    networks: dict[str, nn.Module]
    tasks: dict[str, DenseTask]
    truths: dict[str, Samples] = field(default_factory=dict)

    @classmethod
    def of(cls, networks: Mapping[str, nn.Module]) -> Comparison:
        """A comparison of described networks, by their WEIGHTS arguments.

        They are called by model and head, and by where they were loaded from where two have the same.

        Raises:
            UserError: a network without a head, of another task or of other classes than the first.
        """
        metas = {weights: meta_of(network) for weights, network in networks.items()}
        _check_alike(metas)
        plain = [f"{meta.model} + {meta.head}" for meta in metas.values()]
        pairs = zip(plain, networks.items(), strict=True)
        named = {
            name if plain.count(name) == 1 else f"{name} ({weights})": network for name, (weights, network) in pairs
        }
        return cls(named, {name: task_of(meta_of(network)) for name, network in named.items()})

    def open_truth(self, data: DataConfig) -> None:
        """Read the annotations of both splits of a data set.

        Raises:
            UserError: data that cannot be used, or of other classes.
        """
        task = task_of(meta_of(next(iter(self.networks.values()))), data)
        training = task.train_set
        training.reorder_classes(task.classes)
        if list(training.classes) != task.classes:
            raise UserError(f"{data.title} has other classes than the networks.")
        for split in (task.eval_set, training):
            for samples in task.samples_by_image(split):
                self.truths.setdefault(os.path.realpath(split.path(samples[0])), (split, samples))

    def predictions(self, image: Image.Image, path: Path) -> Predictions:
        """The predictions for an image file, beside its truth where that is known.

        Args:
            image: RGB; of an annotated one the data set's own reading counts, and of keypoints its boxes of persons.
            path: of the file.
        """
        found: dict[str, Prediction] = {}
        truth: Prediction | None = None
        known = self.truths.get(os.path.realpath(path))
        for name, network in self.networks.items():
            device = next(network.parameters()).device
            with torch.inference_mode():
                if known is None:
                    found[name] = self.tasks[name].inference.predict(network, [image], device)[0]
                else:
                    _, image, truth, found[name] = self.tasks[name].example(network, device, *known)
        task = next(iter(self.tasks.values())).name
        return compare_predictions(image, found, truth, task=task, image_size=list(image.size))


def truth_data(weights: str, network: nn.Module, root: str | None) -> DataConfig | None:
    """The data that hold the truth: those in a folder in the layout that the task learns from, or those of a run.

    Args:
        weights: a run directory has data of its own.
        network: says the task.
        root: of the data; None = those of the run, if it is one.
    """
    if root is None:
        return data_of_run(weights)
    return replace(DataConfig(), name=task_of(meta_of(network)).source[0], root=root)


def _check_alike(metas: Mapping[str, WeightsMeta]) -> None:
    """Refuse networks that cannot be compared."""
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
            why = f"such as {odd[0]!r}" if odd else "or in another order"
            raise UserError(f"{weights} has other classes than {first}, {why}: compare networks of the same classes.")


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
    heights = [max((cell.height for cell in row if cell), default=0) for row in zip(*cells, strict=True)]
    gap = 8
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), sum(heights)), "white")
    left = 0
    for column, width in zip(cells, widths, strict=True):
        for cell, top in zip(column, (0, heights[0]), strict=True):
            if cell is not None:
                sheet.paste(cell, (left, top))
        left += width + gap
    return sheet
