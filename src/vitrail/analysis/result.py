"""Results of analyses: arrays with named axes, what they were measured on, and a plot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn


@dataclass
class NamedArray:
    """An array whose axes have names, and where it helps coordinates.

    Attributes:
        values: of any number of dimensions.
        axes: a name for each dimension, such as ("layer", "frequency").
        coords: labels along an axis, by its name, as many as the axis is long.

    Raises:
        ValueError: names or labels that do not fit the array.
    """

    values: np.ndarray
    axes: tuple[str, ...]
    coords: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.axes) != self.values.ndim or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes={self.axes} must name the {self.values.ndim} dimensions of the array, each once.")
        for name, labels in self.coords.items():
            if name not in self.axes or len(labels) != self.size(name):
                raise ValueError(f"coords[{name!r}] has {len(labels)} labels for the array {self.sizes}.")

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each axis, by name."""
        return dict(zip(self.axes, self.values.shape, strict=True))

    def size(self, axis: str) -> int:
        """Length of an axis."""
        return self.values.shape[self.axes.index(axis)]

    def take(self, **labels: Any) -> NamedArray:
        """The part at one label of each named axis (its index where the axis has no labels); these axes are gone."""
        values, axes = self.values, list(self.axes)
        for name, label in labels.items():
            index = self.coords[name].index(label) if name in self.coords else int(label)
            values = np.take(values, index, axis=axes.index(name))
            axes.remove(name)
        return NamedArray(values, tuple(axes), {name: found for name, found in self.coords.items() if name in axes})

    def to_dict(self) -> dict[str, Any]:
        """Axes, labels and numbers as plain values; numbers that are not finite are None."""
        finite = np.where(np.isfinite(self.values), self.values.astype(float), np.nan).tolist()
        return {"axes": list(self.axes), "coords": self.coords, "values": _plain(finite)}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if value != value else value  # NaN


class Moments:
    """Mean and standard error over images of arrays that come a batch at a time (Chan, Golub and LeVeque, 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self._squares: Any = 0.0  # summed squared distances from the mean

    def add(self, values: Tensor) -> None:
        """Take in values (B, ...)."""
        new = values.cpu().numpy()
        total, shift = self.count + len(new), new.mean(0) - self.mean
        self._squares = self._squares + ((new - new.mean(0)) ** 2).sum(0) + shift**2 * self.count * len(new) / total
        self.mean = self.mean + shift * len(new) / total
        self.count = total

    def standard_error(self) -> np.ndarray:
        """Of the mean; NaN for a single image."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        return np.sqrt(self._squares / (self.count - 1) / self.count)


def with_error(value: float, error: float, digits: int = 2) -> str:
    """A number with its standard error, if there is one (a single image has none); "undefined" for NaN."""
    if value != value:
        return "undefined"
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error == error else "")


def model_name(network: nn.Module) -> str:
    """What a network is called: by its weights file, else by timm, else by its class."""
    meta, config = getattr(network, "meta", None), getattr(network, "pretrained_cfg", None) or {}
    return getattr(meta, "model", None) or config.get("architecture") or type(network).__name__


def listed(values: Sequence[Any]) -> str:
    """Values as "1, 2 and 3"."""
    *others, last = map(str, values)
    return f"{', '.join(others)} and {last}" if others else last


def likeliest(network: nn.Module, output: Any) -> list[str] | None:
    """The likeliest class of each image with its probability, "cat (93.1 %)"; None where the output is no logits."""
    classes = getattr(network, "num_classes", None)
    if not isinstance(output, Tensor) or output.ndim != 2 or not classes or output.shape[1] != classes:
        return None
    chances, found = output.softmax(1).max(1)
    return [f"{name} ({100 * p:.1f} %)" for name, p in zip(class_names(network, found.tolist()), chances, strict=True)]


def class_names(network: nn.Module, classes: Sequence[int]) -> list[str]:
    """What the description of the network's weights calls the classes; without one "class 3"."""
    known = getattr(getattr(network, "meta", None), "classes", None)
    return [known[one] if known else f"class {one}" for one in classes]


def about(network: nn.Module, images: Tensor, **more: Any) -> dict[str, Any]:
    """What every result states: the model, how many images of which size, and more that the method says."""
    return {"model": model_name(network), "images": len(images), "image_size": list(images.shape[-2:]), **more}


@dataclass
class Analysis(ABC):
    """The result of one analysis.

    Attributes:
        about: what it was measured on: "model", "weights", "images" (how many and which), "seed" where chance has a
            part, and what the method states of itself, such as a standard error; plain values.
        arrays: the numbers, by name.
    """

    about: dict[str, Any]
    arrays: dict[str, NamedArray]

    @abstractmethod
    def summary(self) -> str:
        """The finding in one sentence."""

    @abstractmethod
    def plot(self) -> Image.Image:
        """The finding as an image, with title, axes and colour bar."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"about": self.about, "summary": self.summary()} | {
            name: array.to_dict() for name, array in self.arrays.items()
        }


def backdrop_of(images: Tensor) -> np.ndarray:
    """Preprocessed images (B, C, H, W) as grey values from 0 to 1, (B, H, W), for maps to be drawn on."""
    grey = images.float().mean(1)
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    return ((grey - low) / (high - low).clamp(min=1e-12)).cpu().numpy()
