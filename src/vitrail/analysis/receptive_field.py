"""Receptive fields: which pixels a place of a layer depends on, and which tokens one block lets it see.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import BadOption, UserError
from ..utils.extras import require
from ..utils.plot import rendered
from ..utils.progress import bar
from .layers import as_maps, batches_of, blocks_of, evaluating, number_of_batches, outputs_of
from .layers import layer as layer_named
from .options import check_count
from .result import Analysis, Moments, NamedArray, about

#: shares of the mass whose squares are given
SHARES = (0.5, 0.95, 0.99)
#: powers of ten below the maximum that are drawn
DECADES = 4


@dataclass
class ReceptiveField(Analysis):
    """The effective receptive field of a place of a layer.

    Attributes:
        arrays: "field" (y, x), the mean over images of the gradients' magnitudes, summed over the images' channels, and
            "error", its standard error (NaN of one image). about has "squares", the side in pixels of the smallest
            square around "centre" with each of the shares of the mass, and "support", (left, top, right, bottom) of all
            pixels with any influence and "reached", their number.
    """

    def summary(self) -> str:
        """Squares and support in one sentence."""
        told = self.about
        sides = ", ".join(f"{100 * share:g} % in {side}" for share, side in zip(SHARES, told["squares"], strict=True))
        left, top, right, bottom = told["support"]
        return (
            f"{told['model']}: the centred squares of layer {told['layer']}'s field hold {sides} pixels a side; "
            f"{right - left} x {bottom - top} pixels have an influence ({told['images']} "
            f"image{'s' if told['images'] > 1 else ''})."
        )

    def plot(self) -> Image.Image:
        """The field on a logarithmic scale, with the squares."""
        field = self.arrays["field"].values
        with np.errstate(divide="ignore"):
            shown = np.log10(field / field.max())
        x, y = self.about["centre"]

        def draw(figure: Any) -> None:
            axis = figure.subplots()
            drawn = axis.imshow(np.maximum(shown, -DECADES), vmin=-DECADES, vmax=0, cmap="inferno")
            for share, side, colour in zip(SHARES, self.about["squares"], ("#4dd2ff", "#7CFC00", "white"), strict=True):
                left, top, right, bottom = x - side / 2, y - side / 2, x + side / 2, y + side / 2
                corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
                # a dark rim, for the field below may be of any brightness
                rim = [require("matplotlib.patheffects", "analysis").withStroke(linewidth=4, foreground="black")]
                axis.plot(*corners, color=colour, lw=1.8, path_effects=rim, label=f"{100 * share:g} %: {side}")
            axis.set(xlim=(-0.5, field.shape[1] - 0.5), ylim=(field.shape[0] - 0.5, -0.5), xlabel="x", ylabel="y")
            axis.set_title(f"Effective receptive field, {self.about['model']}\nlayer {self.about['layer']}")
            axis.legend(title="side of the square", loc="lower left", fontsize=8)
            figure.colorbar(drawn, ax=axis, label="log10 of the share of the maximum")

        return rendered(6.4, 5.4, draw)


def receptive_field(
    network: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    layer: str | None = None,
    at: tuple[int, int] | None = None,
    batch_size: int = 8,
) -> ReceptiveField:
    """The effective receptive field: the mean over images of |d sum_c y[c, place] / d x|.

    It says where a small change of a pixel changes the layer's output, to first order; not whether the network makes
    use of it. Fresh weights have one, too.

    Args:
        network: of this library or timm's; it is used in evaluation mode.
        images: preprocessed, (B, C, H, W), or batches of them; photographs, or noise such as torch.randn. Nothing is
            kept of them but sums.
        layer: name of a module that gives a map; None = the last block.
        at: column and row of the pixel of the images whose place in the map is taken; None = the centre.
        batch_size: images in one pass.

    Raises:
        UserError: a layer that is not there, gives no map or one whose sum over channels does not depend on the images,
            a place outside, or images of several sizes.
    """
    check_count("batch_size", batch_size)
    name = blocks_of(network)[-1] if layer is None else layer
    layer_named(network, name)
    place, position, size = (0, 0), (0, 0), (0, 0)
    moments = Moments()
    stated: dict[str, Any] = {}
    steps = number_of_batches(images, batch_size)
    with evaluating(network), torch.enable_grad(), bar("Receptive field", steps) as advance:
        for chunk in batches_of(images, batch_size):
            stated = stated or about(network, chunk)
            height, width = stated["image_size"]
            if chunk.shape[-2:] != (height, width):
                raise UserError("receptive_field needs images of one size.")
            place = _place(at, (width, height))
            inputs = chunk.detach().clone().requires_grad_()
            with outputs_of(network, [name]) as outputs:
                network(inputs)
            maps = as_maps(_reached(outputs, name), network, name)
            size = (maps.shape[3], maps.shape[2])
            position = _position(place, (width, height), size)
            if not moments.count:
                _check_sum(maps, position, inputs, name)
            moments.add(_slopes(maps, position, inputs, name).abs().sum(1).double())
            advance()
    if not moments.count:
        raise UserError("receptive_field needs at least one image.")
    # the pixel in the middle of the place's share of the input
    sides = reversed(stated["image_size"])
    centre = tuple(int((p + 0.5) * side / of) for p, side, of in zip(position, sides, size, strict=True))
    values = moments.mean
    found = {
        "images": moments.count,
        "layer": name,
        "centre": list(centre),
        "position": list(position),
        "squares": [square_side(values, centre, share) for share in SHARES],
        "support": list(support_box(values > 0)),
        "reached": int((values > 0).sum()),
    }
    axes = ("y", "x")
    return ReceptiveField(
        stated | found,
        {"field": NamedArray(values, axes), "error": NamedArray(moments.standard_error(), axes)},
    )


def square_side(field: np.ndarray, centre: tuple[int, ...], share: float) -> int:
    """Side of the smallest square around the pixel `centre` (x, y) with a share of the field's sum.

    The square may reach over the border.
    """
    y, x = np.ogrid[: field.shape[0], : field.shape[1]]
    distance = np.maximum(abs(x - centre[0]), abs(y - centre[1]))
    mass = np.cumsum(np.bincount(distance.ravel(), field.ravel()))
    # rounding must not ask for one more ring than the last
    return 2 * int(np.searchsorted(mass, share * mass[-1] * (1 - 1e-12))) + 1


def support_box(reached: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the true entries, right and bottom exclusive."""
    rows, columns = np.flatnonzero(reached.any(1)), np.flatnonzero(reached.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass
class AttendedRegion(Analysis):
    """The tokens that one token sees in one layer.

    Attributes:
        arrays: "region" (y, x): True where the token at about["position"] (column, row) depends on the layer's input.
    """

    def summary(self) -> str:
        """How many tokens of how many."""
        told, region = self.about, self.arrays["region"].values
        column, row = told["position"]
        return (
            f"{told['model']}: in layer {told['layer']} the token in column {column}, row {row} sees "
            f"{int(region.sum())} of {region.shape[1]} x {region.shape[0]} tokens."
        )

    def plot(self) -> Image.Image:
        """The region, with the token marked."""
        region, (column, row) = self.arrays["region"].values, self.about["position"]

        def draw(figure: Any) -> None:
            axis = figure.subplots()
            axis.pcolormesh(region, cmap="Blues", vmin=0, vmax=1.4, edgecolors="#cccccc", linewidth=0.5)
            axis.plot(column + 0.5, row + 0.5, "x", color="red")
            axis.set(xlabel="column", ylabel="row", aspect="equal")
            axis.invert_yaxis()
            axis.set_title(
                f"{self.about['model']}, layer {self.about['layer']}\n"
                f"dark: the {int(region.sum())} tokens that the marked one sees"
            )

        return rendered(5, 5.2, draw)


def attended_region(
    network: nn.Module, images: Tensor, *, layer: str | None = None, at: tuple[int, int] | None = None
) -> AttendedRegion:
    """The tokens that one token sees in one layer: the support of its gradient with respect to the layer's input.

    For attention it follows from windows, masks and groups, not from the weights: what is seen with a weight near 0 is
    seen. Convolutions and pooling in the layer count, too; name the attention itself to leave them out.

    Args:
        network: of this library or timm's; it is used in evaluation mode.
        images: preprocessed, (B, C, H, W).
        layer: name of a module that takes and gives a map; None = the block in the middle of the depth.
        at: column and row of the pixel of the images whose token is taken; None = the centre.

    Raises:
        UserError: a layer that is not there or takes or gives no map, or a place outside.
    """
    names = [] if layer is not None else blocks_of(network)
    name = names[len(names) // 2] if layer is None else layer
    width, height = images.shape[3], images.shape[2]
    place = _place(at, (width, height))
    with evaluating(network), torch.enable_grad():
        with _leaf_before(layer_named(network, name)) as leaves, outputs_of(network, [name]) as outputs:
            network(images)
        maps = as_maps(_reached(outputs, name), network, name)
        position = _position(place, (width, height), (maps.shape[3], maps.shape[2]))
        slopes = as_maps(_slopes(maps, position, leaves[-1], name), network, name)
    region = (slopes != 0).any(1).any(0).cpu().numpy()
    return AttendedRegion(
        about(network, images, layer=name, position=list(position), seen=int(region.sum())),
        {"region": NamedArray(region, ("y", "x"))},
    )


@contextmanager
def _leaf_before(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first input of a module in every pass inside the context, as the start of the gradients."""
    leaves: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves.append(inputs[0].detach().clone().requires_grad_())
        return leaves[-1].clone(), *inputs[1:]  # some modules overwrite their input

    handle = module.register_forward_pre_hook(hook)
    try:
        yield leaves
    finally:
        handle.remove()


def _reached(outputs: dict[str, Tensor], name: str) -> Tensor:
    if name not in outputs:
        raise UserError(f"Layer {name} has no part in the network's output.")
    return outputs[name]


def _check_sum(maps: Tensor, position: tuple[int, int], inputs: Tensor, name: str) -> None:
    """Refuse a sum over channels that is constant, as it is after a normalisation over channels: rounding is left.

    The sum is compared with one of random signs.
    """
    signs = torch.randint(0, 2, (1, maps.shape[1], 1, 1), generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = _slopes(maps, position, inputs, name, keep=True).abs().sum()
    mixed = _slopes(maps * signs.to(maps), position, inputs, name, keep=True).abs().sum()
    if plain == 0 or plain < 1e-4 * mixed:
        raise UserError(
            f"The sum over the channels of layer {name} is the same for all images, as behind a normalisation over "
            "channels: name a layer before it, such as a block."
        )


def _slopes(maps: Tensor, position: tuple[int, int], inputs: Tensor, name: str, keep: bool = False) -> Tensor:
    """Gradient of the sum over channels at a position (column, row), with respect to the inputs."""
    at_place = maps[:, :, position[1], position[0]].sum()
    slopes = None
    if at_place.requires_grad:
        slopes = torch.autograd.grad(at_place, inputs, allow_unused=True, retain_graph=keep)[0]
    if slopes is None:
        raise UserError(f"Layer {name} does not depend on its input.")
    return slopes


def _place(at: tuple[int, int] | None, size: tuple[int, int]) -> tuple[int, int]:
    """The pixel (x, y) asked for, by default that in the middle."""
    if at is None:
        return size[0] // 2, size[1] // 2
    if not all(0 <= one < side for one, side in zip(at, size, strict=True)):
        raise BadOption(f"at={tuple(at)} is not allowed; give column and row of a pixel of {size[0]} x {size[1]}.")
    return at


def _position(place: tuple[int, int], of: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The entry (column, row) of a map of a size that covers a pixel."""
    return place[0] * size[0] // of[0], place[1] * size[1] // of[1]
