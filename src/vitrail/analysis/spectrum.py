"""Fourier analysis of feature maps: which spatial frequencies layers keep, drop and raise.

Conventions of Park and Kim, "How Do Vision Transformers Work?" (ICLR 2022), whose figures Vo's dissertation (2023,
Figures 3.5, 3.6, 3.8, 3.10) repeats: the logarithm of the amplitude is averaged, not the amplitude, and half of the
diagonal of the two-dimensional spectrum, from frequency 0 towards the corner, stands for all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..models import emsnet
from ..utils.extras import require
from ..utils.plot import rendered
from ..utils.progress import bar
from .layers import as_maps, batches_of, blocks_of, evaluating, layer, layers_of, number_of_batches, stage_of
from .options import check_choice, check_count
from .result import Analysis, Moments, NamedArray, about, with_error

Granularity = Literal["block", "residual", "operator", "whitening"]
Frequency = Literal["index", "true"]
Drawing = Literal["curves", "depth", "maps"]

#: added to the amplitude before its logarithm
EPSILON = 1e-6
#: a map whose frequency 0 lies this far (natural logarithm) below its other frequencies has had its mean removed
NO_MEAN = 8.0


# ---- definitions ---------------------------------------------------------------------------------------------------


def log_amplitude(maps: Tensor) -> Tensor:
    """ln(|F| + 1e-6) of the unnormalised Fourier transform of maps, in float64.

    Shapes: (..., H, W) -> (..., H, W), frequency 0 at (H // 2, W // 2).
    """
    amplitude = torch.fft.fft2(maps.double()).abs()
    return torch.fft.fftshift((amplitude + EPSILON).log(), dim=(-2, -1))


def half_diagonal(shifted: Tensor) -> Tensor:
    """The entries from frequency 0 towards the corner: (..., H, H) -> (..., H - H // 2)."""
    return shifted.diagonal(dim1=-2, dim2=-1)[..., shifted.shape[-1] // 2 :]


def frequencies(side: int, frequency: Frequency) -> np.ndarray:
    """Frequency of each entry of the half diagonal, in units of pi.

    Args:
        side: of the map; an even one's highest frequency is not on this half of the diagonal.
        frequency: "index" divides 0 to 1 evenly, as published figures do; "true" is 2 k / side.
    """
    count = side - side // 2
    return np.linspace(0, 1, count) if frequency == "index" else 2 * np.arange(count) / side


# ---- where maps are read -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A place in a network whose map is measured.

    Attributes:
        layer: the layer's name.
        part: of the layer; "" for its output.
        module: name of the module that is hooked.
        read: the map, from the module, its first input and its output.
    """

    layer: str
    part: str
    module: str
    read: Callable[[nn.Module, Any, Any], Any]

    @property
    def name(self) -> str:
        """The layer and its part."""
        return f"{self.layer} {self.part}".strip()


def _input(module: nn.Module, x: Any, output: Any) -> Any:
    return x


def _output(module: nn.Module, x: Any, output: Any) -> Any:
    return output


def _unwhitened(module: nn.Module, x: Any, output: Any) -> Any:
    """Conv1x1(X_s) with the raw weight: the layer itself holds the mean folded into its weight."""
    assert isinstance(module, emsnet.Whiten)
    return F.conv2d(x, module.weight)


def _block_points(network: nn.Module, name: str) -> Iterator[Point]:
    yield Point(name, "", name, _output)


def _residual_points(network: nn.Module, name: str) -> Iterator[Point]:
    """After every residual addition: what the second norm of a block reads is the sum after its mixer."""
    children = dict(layer(network, name).named_children())
    if isinstance(children.get("cpe"), nn.Module):
        yield Point(name, "position encoding", f"{name}.cpe", _output)
    if "norm2" in children:
        yield Point(name, "mixer", f"{name}.norm2", _input)
    yield Point(name, "", name, _output)


def _operator_points(network: nn.Module, name: str) -> Iterator[Point]:
    """The parts of EMSNet's mixer, each at the block's full resolution."""
    mixer = getattr(layer(network, name), "mixer", None)
    if not isinstance(mixer, emsnet.Mixer):
        return
    static, dynamic = f"{name}.mixer.static", f"{name}.mixer.dynamic"
    parts = [
        ("1x1 convolution W", f"{static}.whiten", _unwhitened),
        ("whitened X_w", f"{static}.whiten", _output),
        ("depthwise X_m", f"{static}.dwconv", _output),
        ("first scale", f"{static}.branch_p2", _output),
        ("second scale", f"{static}.branch_p4", _output),
        ("static fusion", f"{static}.fusion", _output),
        ("static output", static, _output),
        ("C-MHSA", f"{dynamic}.local", _output),
        ("G-MHSA", f"{dynamic}.glob", _output),
        ("dynamic fusion", f"{dynamic}.fusion", _output),
    ]
    modules = dict(network.named_modules())
    for part, module, read in parts:
        if not isinstance(modules.get(module, nn.Identity()), nn.Identity):
            yield Point(name, part, module, read)


def _whitening_points(network: nn.Module, name: str) -> Iterator[Point]:
    """Before, with the convolution alone, and after whitening (Figure 3.8, Eq. 3.1, 3.12)."""
    whiten = f"{name}.mixer.static.whiten"
    if isinstance(dict(network.named_modules()).get(whiten), emsnet.Whiten):
        yield Point(name, "input X_s", whiten, _input)
        yield Point(name, "1x1 convolution W", whiten, _unwhitened)
        yield Point(name, "whitened X_w", whiten, _output)


_POINTS = {
    "block": _block_points,
    "residual": _residual_points,
    "operator": _operator_points,
    "whitening": _whitening_points,
}


def points_of(network: nn.Module, granularity: Granularity, layers: Sequence[str] | None = None) -> list[Point]:
    """The points that a granularity measures, first to last.

    Args:
        network: the network.
        granularity: see `spectrum`.
        layers: names of layers instead of all blocks.

    Raises:
        UserError: a layer that does not exist, or a network without such points.
    """
    names = list(layers) if layers is not None else blocks_of(network)
    for name in names:
        layer(network, name)  # refused here, with the nearest names
    found = [point for name in names for point in _POINTS[granularity](network, name)]
    if not found:
        raise UserError(
            f"granularity={granularity!r} shows the parts of EMSNet's blocks, and {type(network).__name__} has none of "
            "them here: choose block or residual."
        )
    if granularity == "residual" and layers is None:
        stems = layers_of(network)
        found = [Point(name, "", name, _output) for name in stems[: stems.index(names[0])][-1:]] + found
    return found


# ---- the analysis --------------------------------------------------------------------------------------------------


@dataclass
class _Sums:
    """What is known of one point so far."""

    map: Moments = field(default_factory=Moments)
    diagonal: Moments = field(default_factory=Moments)
    relative: Moments = field(default_factory=Moments)

    def add(self, maps: Tensor) -> None:
        spectra = log_amplitude(maps.detach()).mean(1)  # over channels
        diagonal = half_diagonal(spectra)
        self.map.add(spectra)
        self.diagonal.add(diagonal)
        self.relative.add(diagonal - diagonal[:, :1])


def spectrum(
    network: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    layers: Sequence[str] | None = None,
    granularity: Granularity = "block",
    frequency: Frequency = "index",
    drawing: Drawing | None = None,
    batch_size: int = 16,
) -> Spectrum:
    """Log amplitude of the feature maps of a network's layers, and relative to frequency 0.

    g is the mean over images and channels of ln(|F| + 1e-6) along the half diagonal, relative is g - g[0]. Nothing is
    kept of an image but its sums, so any number of images will do.

    Args:
        network: of this library or timm's.
        images: preprocessed square images (B, C, H, W), or batches of them.
        layers: names of layers (for "residual", "operator" and "whitening" of blocks) instead of all blocks.
        granularity: "block": what leaves each block. "residual": after the stem and every residual addition, mixer and
            MLP apart. "operator": the parts of each EMSNet block. "whitening": input, 1x1 convolution and result of the
            whitening in each EMSNet block.
        frequency: labels of the entries in units of pi: "index" divides 0 to 1 evenly, as published figures do; "true"
            is 2 k / side, which maps of different sizes need to share an axis.
        drawing: what the result's `plot` draws; None = "maps" for whitening, "curves" otherwise.
        batch_size: images in one forward pass.

    Raises:
        UserError: a layer that does not exist or gives no map, a granularity that the network has no parts for, images
            or maps that are not square, a wrong option.
    """
    check_choice("granularity", granularity, Granularity)
    check_choice("frequency", frequency, Frequency)
    drawing = drawing or ("maps" if granularity == "whitening" else "curves")
    check_choice("drawing", drawing, Drawing)
    check_count("batch_size", batch_size)
    points = points_of(network, granularity, layers)
    sums = {point.name: _Sums() for point in points}
    stated: dict[str, Any] = {}
    count = 0
    total = number_of_batches(images, batch_size)
    with torch.inference_mode(), evaluating(network), _measured(network, points, sums), bar("spectrum", total) as step:
        for batch in batches_of(images, batch_size):
            _check_images(batch)
            options = {"granularity": granularity, "frequency": frequency, "drawing": drawing}
            stated = stated or about(network, batch, **options)
            network(batch)
            count += len(batch)
            step()
    if not count:
        raise UserError("spectrum needs at least one image.")
    return _result(points, sums, stated | {"images": count}, frequency)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise UserError(f"spectrum needs square images (B, C, H, H), not {tuple(images.shape)}.")


def _measured(network: nn.Module, points: Sequence[Point], sums: dict[str, _Sums]) -> ExitStack:
    """Hooks that add the map of each point to its sums, removed when the context ends."""

    def hook_of(point: Point) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            maps = as_maps(point.read(module, inputs[0] if inputs else None, output), network, point.name)
            if maps.shape[2] != maps.shape[3]:
                raise UserError(f"Layer {point.name} gives maps {tuple(maps.shape[2:])}: spectrum needs square ones.")
            sums[point.name].add(maps)

        return hook

    stack = ExitStack()
    for point in points:
        handle = layer(network, point.module).register_forward_hook(hook_of(point))
        stack.callback(handle.remove)
    return stack


def _result(points: Sequence[Point], sums: dict[str, _Sums], stated: dict[str, Any], frequency: Frequency) -> Spectrum:
    absent = [point.name for point in points if not sums[point.name].map.count]
    if absent:
        raise UserError(f"The network's forward pass never enters layer {absent[0]}.")
    found = [sums[point.name] for point in points]
    sides = [len(one.map.mean) for one in found]
    names = [point.name for point in points]
    without_mean = [name for name, one in zip(names, found, strict=True) if _mean_removed(one.diagonal.mean)]
    if without_mean:
        stated = stated | {"mean_removed": without_mean}
    relative = [
        np.full_like(one.relative.mean, np.nan) if name in without_mean else one.relative.mean
        for name, one in zip(names, found, strict=True)
    ]
    lines = {
        "log_amplitude": [one.diagonal.mean for one in found],
        "log_amplitude_error": [one.diagonal.standard_error() for one in found],
        "relative": relative,
        "relative_error": [one.relative.standard_error() for one in found],
        "frequency": [frequencies(side, frequency) for side in sides],
    }
    arrays = {
        name: NamedArray(_padded(rows), ("layer", "entry"), {"layer": list(names)}) for name, rows in lines.items()
    }
    layers = list(dict.fromkeys(point.layer for point in points))
    grouped = stated["granularity"] in ("operator", "whitening")
    where = [layers.index(point.layer) for point in points] if grouped else list(range(len(points)))
    depth = np.array(where) / max(1, max(where))
    arrays["depth"] = NamedArray(depth, ("layer",), {"layer": list(names)})
    for name, one in zip(names, found, strict=True):
        arrays[f"map {name}"] = NamedArray(one.map.mean, ("vertical", "horizontal"))
    return Spectrum(stated, arrays, list(points))


def _mean_removed(diagonal: np.ndarray) -> bool:
    return len(diagonal) > 1 and bool(diagonal[0] < np.median(diagonal[1:]) - NO_MEAN)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one array, NaN where a row has ended."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


@dataclass
class Spectrum(Analysis):
    """Spectra of layers.

    Attributes:
        arrays: "log_amplitude" g and "relative" g - g[0] (layer, entry of the half diagonal) with their standard errors
            over images under "..._error", "frequency" in units of pi, "depth" (layer) from 0 to 1, and the
            two-dimensional spectra "map <layer>", frequency 0 in the middle. Rows end with NaN where a layer's map is
            smaller than the largest; "relative" is NaN where a layer's mean is removed (about["mean_removed"]), for
            there is no frequency 0 to relate to.
        points: what was measured, in the order of the axis "layer".
    """

    points: list[Point]

    def map_of(self, name: str) -> np.ndarray:
        """The two-dimensional spectrum (H, W) of a layer of the axis "layer"."""
        return self.arrays[f"map {name}"].values

    def maps(self) -> list[np.ndarray]:
        """The two-dimensional spectra, first to last."""
        return [self.map_of(point.name) for point in self.points]

    def rise(self) -> tuple[np.ndarray, np.ndarray]:
        """Last entry of each layer's relative log amplitude, and its standard error; NaN where there is none."""
        return _last(self.arrays["relative"].values), _last(self.arrays["relative_error"].values)

    def summary(self) -> str:
        """The finding in one sentence."""
        rise, error = self.rise()
        what = f"log amplitude at the highest frequency of the half diagonal relative to frequency 0 in {self.title()}"
        if self.parts() != [""]:
            means = [f"{part} {_written(rise[self.rows(part)])}" for part in self.parts()]
            return f"Mean {what}: {', '.join(means)}."
        ends = [
            f"{with_error(rise[i], error[i])} after {self.points[i].name}" for i in dict.fromkeys((0, len(rise) - 1))
        ]
        return f"The {what}: {', '.join(ends)}."

    def plot(self, drawing: Drawing | None = None) -> Image.Image:
        """The spectra as an image.

        Args:
            drawing: "curves": relative log amplitude over frequency, a line a layer. "depth": its last entry over
                depth. "maps": the two-dimensional spectra on one colour scale. None = the one asked of `spectrum`.

        Raises:
            UserError: another drawing.
        """
        drawing = drawing or self.about["drawing"]
        check_choice("drawing", drawing, Drawing)
        if drawing == "depth":
            return plot_depth([self])
        return self._draw_maps() if drawing == "maps" else self._draw_curves()

    def title(self) -> str:
        """Model and number of images."""
        images = self.about["images"]
        return f"{self.about['model']} ({images} image{'s' if images > 1 else ''})"

    def parts(self) -> list[str]:
        """The parts that are drawn apart: those of EMSNet's blocks; [""] for one drawing of all layers."""
        if self.about["granularity"] not in ("operator", "whitening"):
            return [""]
        return list(dict.fromkeys(point.part for point in self.points))

    def rows(self, part: str) -> list[int]:
        """Places on the axis "layer" of one of `parts()`."""
        return [i for i, point in enumerate(self.points) if not part or point.part == part]

    def _draw_curves(self) -> Image.Image:
        parts = self.parts()
        columns = min(5, len(parts))
        lines = -(-len(parts) // columns)
        # relative to a frequency 0 that is not there means nothing
        kind = "log_amplitude" if self.about.get("mean_removed") else "relative"
        values, x = self.arrays[kind].values, self.arrays["frequency"].values
        errors, depth = self.arrays[f"{kind}_error"].values, self.arrays["depth"].values

        def draw(figure: Any) -> None:
            cmap = require("matplotlib", "analysis").colormaps["viridis"]
            panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
            for axis in panels.flat[len(parts) :]:
                axis.remove()
            for axis, part in zip(panels.flat, parts, strict=False):
                for i in self.rows(part):
                    axis.plot(x[i], values[i], color=cmap(depth[i]), marker="." if len(parts) == 1 else "", lw=1.2)
                    band = values[i] - errors[i], values[i] + errors[i]
                    axis.fill_between(x[i], *band, color=cmap(depth[i]), alpha=0.2, lw=0)
                axis.set(title=part, xlim=(0, 1))
                axis.grid(alpha=0.3)
            figure.supxlabel(_FREQUENCY[self.about["frequency"]], fontsize=10)
            figure.supylabel("log amplitude" if kind == "log_amplitude" else "relative log amplitude", fontsize=10)
            figure.suptitle(self.title())
            scale = require("matplotlib.cm", "analysis").ScalarMappable(cmap=cmap)
            scale.set_clim(0, 1)
            figure.colorbar(scale, ax=panels.ravel().tolist()[: len(parts)], label="depth")

        return rendered(2 + max(5.0, 2.6 * columns), 1 + max(3.6, 2.4 * lines), draw)

    def _draw_maps(self) -> Image.Image:
        parts = self.parts()
        grouped = parts != [""]
        lines, columns, cells = self._grid()
        tops = {column: min(line for line, one in cells if one == column) for _, column in cells}
        every = np.concatenate([one.ravel() for one in self.maps()])
        low, high = np.percentile(every, 1), every.max()  # single zeros of a spectrum would take the whole scale

        def draw(figure: Any) -> None:
            panels = figure.subplots(lines, columns, squeeze=False)
            for axis in panels.flat:
                axis.set_axis_off()
            shown = None
            for (line, column), point in zip(cells, self.points, strict=True):
                axis, spectrum_map = panels[line, column], self.map_of(point.name)
                left, right = _edges(len(spectrum_map))
                shown = axis.imshow(
                    spectrum_map, vmin=low, vmax=high, cmap="magma", extent=(left, right, right, left), aspect="equal"
                )
                axis.set_axis_on()
                if not grouped:
                    axis.set_title(point.name.replace(" ", "\n", 1), fontsize=8)
                elif line == tops[column]:
                    axis.set_title(point.part, fontsize=8)
                if grouped and column % len(parts) == 0:
                    axis.set_ylabel(point.layer, fontsize=7)
                axis.set_xticks([-1, 0, 1], ["-π", "0", "π"], fontsize=7)
                axis.set_yticks([-1, 0, 1], ["-π", "0", "π"], fontsize=7)
            figure.suptitle(f"{self.title()}: amplitude spectrum")
            length = min(0.8, 4 / height)  # of the figure's height: 4 inches at most
            label = "log amplitude"
            figure.colorbar(shown, ax=panels.ravel().tolist(), label=label, extend="min", shrink=length, aspect=24)

        height = 1.2 + (1.7 if grouped else 2) * lines
        return rendered(2.2 + 1.7 * columns, height, draw)

    def _grid(self) -> tuple[int, int, list[tuple[int, int]]]:
        """Rows and columns of the drawing of maps, and the row and column of each of the points.

        Of parts of blocks those of a block lie side by side, and blocks below each other, in as many groups beside each
        other as make the whole nearly square or wider.
        """
        parts = self.parts()
        if parts == [""]:
            columns = min(6, len(self.points))
            return -(-len(self.points) // columns), columns, [divmod(i, columns) for i in range(len(self.points))]
        layers = list(dict.fromkeys(point.layer for point in self.points))
        groups = math.ceil((len(layers) / len(parts)) ** 0.5)
        lines = -(-len(layers) // groups)
        places = [(*divmod(layers.index(point.layer), lines), parts.index(point.part)) for point in self.points]
        columns = (1 + max(group for group, _, _ in places)) * len(parts)
        return lines, columns, [(line, group * len(parts) + part) for group, line, part in places]


_FREQUENCY = {
    "index": "entry of the half diagonal, 0 to 1 (published as 0 to 1.0 π)",
    "true": "frequency in units of π",
}


def _edges(side: int) -> tuple[float, float]:
    """Outer edges in units of pi of the first and the last entry of a shifted spectrum."""
    return (-(side // 2) - 0.5) * 2 / side, (side - side // 2 - 0.5) * 2 / side


def _last(rows: np.ndarray) -> np.ndarray:
    """The last number of each row before its padding; NaN for maps with frequency 0 alone."""
    lengths = (~np.isnan(rows)).sum(1)
    return np.array([row[n - 1] if n > 1 else np.nan for row, n in zip(rows, lengths, strict=True)])


def _written(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.2f}" if len(known) else "undefined"


def plot_depth(spectra: Sequence[Spectrum]) -> Image.Image:
    """Last entry of the relative log amplitude over depth, a line a network (or a part of EMSNet's blocks).

    Stages are shaded where there is a single network.

    Args:
        spectra: of one network or several.
    """

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for one in spectra:
            rise, error = one.rise()
            for part in one.parts():
                rows = one.rows(part)
                label = f"{one.about['model']} {part}".strip() if len(spectra) > 1 else part or one.about["model"]
                depth = one.arrays["depth"].values[rows]
                # a standard error of one image does not exist
                axis.errorbar(depth, rise[rows], np.nan_to_num(error[rows]), marker="o", ms=3, capsize=2, label=label)
        if len(spectra) == 1:
            _shade_stages(axis, spectra[0])
        ends = [2 * (n - n // 2 - 1) / n for one in spectra for n in map(len, one.maps()) if n > 2]
        reach = f"last entry at {min(ends):.2f} to {max(ends):.2f} π" if ends else "no map above 2 x 2"
        axis.set(xlabel="depth", ylabel="log amplitude, last entry - entry at 0", xlim=(-0.02, 1.02))
        axis.set_title(f"{spectra[0].title() if len(spectra) == 1 else f'{len(spectra)} networks'}: {reach}")
        axis.grid(alpha=0.3)
        if len(axis.containers) > 1:
            figure.legend(loc="outside right upper", frameon=False, fontsize=8)

    return rendered(8, 4, draw)


def _shade_stages(axis: Any, one: Spectrum) -> None:
    """Every second stage in grey, its edges half-way between the layers on either side."""
    depth = one.arrays["depth"].values
    stages = [stage_of(point.layer) for point in one.points]
    edges = [(depth[i] + depth[i - 1]) / 2 for i in range(1, len(depth)) if stages[i] != stages[i - 1]]
    edges = [-0.02, *edges, 1.02]
    for left, right in list(pairwise(edges))[1::2]:
        axis.axvspan(left, right, color="0.93", lw=0, zorder=0)
