"""Attention maps over the image: what a token attends to, or what all attend to, in each family's own attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import BadOption, UserError
from ..models.emsnet import ConvAttention, DynamicTokens
from ..models.lvt import CSA, RASA, SpatialReduction
from ..models.mat import MatAttention
from ..models.partialformer import PartialAttention
from ..models.pyramid import Pyramid
from ..utils.plot import rendered
from .attention_weights import AttentionWeights
from .captured import attention_modules, captured
from .layers import blocks_of, evaluating, stage_of
from .result import Analysis, NamedArray, about, backdrop_of, likeliest, listed

#: tokens of the map of the layer that is shown where none is named: more than a window of 7 x 7
LEAST_TOKENS = 50

#: side of an image in the plot, in inches
SIDE = 2.6


@dataclass
class Map:
    """One map of a layer.

    Attributes:
        values: (images, rows, columns).
        cell: (height, width) in pixels of the input of one entry.
        meaning: of the values, for the colour bar.
        asked: it is that of the asked token; False = of all.
        outline: (images, rows, columns) boolean, tokens that are outlined; None = none.
    """

    values: Tensor
    cell: tuple[float, float]
    meaning: str
    asked: bool = False
    outline: Tensor | None = None


@dataclass
class AttentionMaps(Analysis):
    """Attention maps of one layer.

    Attributes:
        arrays: a map (image, y, x) for each attention of the layer, by its name, at its own resolution; of several
            asked tokens one for each, with its pixel behind the name.
        meanings: what the values of each map say.
        marks: the asked pixel (x, y) of each map that has one.
        enlarged: the maps at the input's size, nearest neighbour, each divided by its maximum: (images, height, width).
        outlines: tokens that are outlined, at the input's size, of the maps that have some: boolean.
        backdrop: the images as grey values from 0 to 1, to draw on.
    """

    meanings: dict[str, str]
    marks: dict[str, tuple[int, int]]
    enlarged: dict[str, np.ndarray]
    outlines: dict[str, np.ndarray]
    backdrop: np.ndarray

    def summary(self) -> str:
        """The layer, what was asked, and how many tokens it sees."""
        at, seen = self.about["at"], self.about["tokens_seen"]
        if not at:
            asked = "what all queries attend to"
        elif len(at) == 1:
            asked = f"what the token at pixel ({at[0][0]}, {at[0][1]}) of the input attends to"
        else:
            asked = f"what the tokens at {len(at)} pixels of the input attend to"
        reach = f"; it sees {seen[0]} tokens" if len(seen) == 1 else f"; they see {listed(seen)} tokens" if seen else ""
        return f"{self.about['model']}, layer {self.about['layer']}: {asked}{reach}; {', '.join(self.arrays)}."

    def plot(self) -> Image.Image:
        """The images, and each map over them: a row for each image."""

        def draw(figure: Any) -> None:
            grid = figure.subplots(len(self.backdrop), 1 + len(self.arrays), squeeze=False)
            drawn = None
            for number, (row, grey) in enumerate(zip(grid, self.backdrop, strict=True)):
                row[0].set(title="input" if number == 0 else "")
                for axis, name in zip(row, [None, *self.arrays], strict=True):
                    axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
                    axis.set(xticks=[], yticks=[])
                    if name is not None:
                        drawn = axis.imshow(self.enlarged[name][number], cmap="turbo", vmin=0, vmax=1, alpha=0.6)
                        if number == 0:
                            axis.set_title(f"{name}\n{self.meanings[name]}", fontsize=8)
                        if name in self.outlines:
                            axis.contour(self.outlines[name][number], levels=[0.5], colors="white", linewidths=1)
                    for place in self.about["at"] if name is None else [self.marks[name]] if name in self.marks else []:
                        axis.plot(*place, marker="x", color="white", markeredgewidth=2)
            figure.suptitle(f"Attention, {self.about['model']}, layer {self.about['layer']}", fontsize=10)
            figure.colorbar(drawn, ax=grid, shrink=0.8, label="share of the map's maximum")

        return rendered(SIDE * (1 + len(self.arrays)) + 1.2, SIDE * len(self.backdrop) + 1, draw)


def attention(
    network: nn.Module,
    images: Tensor,
    *,
    layer: str | None = None,
    at: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
) -> AttentionMaps:
    """Attention maps of one layer over the images, mean over heads.

    With `at`, what the token there attends to, in each of the layer's attentions; the sum over the map is 1. A token
    of several windows has the mean over them. Without, how much every token is attended to: its mean weight over
    queries, times the number of keys, so that 1 is as much as any other. Besides, what the family's own attention
    offers:

    - MAT: `rollout`, fusion times mixing times abstraction with heads averaged first, and `norm`, the length of the
      fused term divided by its maximum;
    - EMSNet: `centre_kernels` of C-MHSA, the 3x3 weights of each window's centre, tile by tile;
    - PartialFormer: `score`, with the selected tokens outlined, and `foreground`, these alone; a token of the
      background shows the single query's attention, which it shares with all others.

    Args:
        network: of this library or timm's, with attention; it is used in evaluation mode.
        images: preprocessed, (B, C, H, W).
        layer: name of an attention module, or of a block or stage that holds some; None = the last block with
            more tokens than a window of 7 x 7.
        at: column and row of a pixel of the input, or several of them, which are shown beside each other.

    Raises:
        UserError: a network or layer without attention, a pixel outside the image, or attention whose tokens lie on no
            map that is known.
    """
    height, width = images.shape[-2:]
    points = points_of(at)
    for point in points:
        if not (0 <= point[0] < width and 0 <= point[1] < height):
            raise BadOption(f"at={point!r} is outside the input; give a column below {width} and a row below {height}.")
    with evaluating(network), torch.inference_mode():
        name = default_layer(network, images) if layer is None else layer
        with captured(network, [name]) as weights:
            output = network(images)
    each = [_maps_by_name(network, name, weights, size=(height, width), at=point) for point in points or [None]]
    maps, marks = _beside(points, [found for found, _ in each])
    return AttentionMaps(
        about(
            network,
            images,
            layer=name,
            at=[list(point) for point in points],
            tokens_seen=[count for _, seen in each if (count := _seen(seen)) is not None],
            class_names=likeliest(network, output),
        ),
        {key: NamedArray(one.values.float().cpu().numpy(), ("image", "y", "x")) for key, one in maps.items()},
        meanings={key: one.meaning for key, one in maps.items()},
        marks=marks,
        enlarged={key: _enlarged(one, height, width) for key, one in maps.items()},
        outlines={
            key: _at_pixels(one.outline, one.cell, height, width).numpy()
            for key, one in maps.items()
            if one.outline is not None
        },
        backdrop=backdrop_of(images),
    )


def points_of(at: tuple[int, int] | Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """One pixel or several as a list; none without any."""
    if at is None:
        return []
    every: Any = [at] if len(at) == 2 and isinstance(at[0], int) else at
    return [(int(x), int(y)) for x, y in every]


def _seen(regions: list[Tensor]) -> int | None:
    """Tokens of a map that are in one of the regions; None without a map that all are on."""
    if not regions or any(one.shape != regions[0].shape for one in regions):
        return None
    return int(torch.stack(regions).any(0).sum())


def _beside(
    points: Sequence[tuple[int, int]], found: Sequence[dict[str, Map]]
) -> tuple[dict[str, Map], dict[str, tuple[int, int]]]:
    """The maps of several asked pixels, those of one attention beside each other, and the pixel of each map."""
    maps: dict[str, Map] = {}
    marks: dict[str, tuple[int, int]] = {}
    for name, first in found[0].items():
        if not first.asked:
            maps[name] = first
            continue
        for point, own in zip(points, found, strict=True):
            key = name if len(points) == 1 else f"{name} ({point[0]}, {point[1]})"
            maps[key], marks[key] = own[name], point
    return maps, marks


def _maps_by_name(
    network: nn.Module,
    layer: str,
    weights: dict[str, AttentionWeights],
    size: tuple[int, int],
    at: tuple[int, int] | None,
) -> tuple[dict[str, Map], list[Tensor]]:
    """The maps of a layer's attentions by their names within it, and the tokens that each sees from `at`."""
    maps: dict[str, Map] = {}
    seen: list[Tensor] = []
    for module in attention_modules(network):
        parts = {key: one for key, one in weights.items() if f"{key}.".startswith(f"{module}.")}
        if parts:
            owner = _Owner(network, module, size, at)
            prefix = module[len(layer) :].strip(".")
            found = owner.maps({key[len(module) :].strip("."): one for key, one in parts.items()})
            seen += owner.regions
            maps |= {".".join(filter(None, [prefix, part])) or layer.split(".")[-1]: one for part, one in found.items()}
    return maps, seen


def default_layer(network: nn.Module, images: Tensor) -> str:
    """The last block with attention over a map of at least `LEAST_TOKENS`; the last one if there is none.

    Raises:
        UserError: the network has no attention.
    """
    with captured(network) as weights:
        network(images[:1])
    asking = {key: one for key, one in weights.items() if _asks_from_map(one)} or weights
    large = [key for key, one in asking.items() if math.prod(one.query_size or (0,)) >= LEAST_TOKENS]
    last = (large or list(asking))[-1]
    blocks = [block for block in blocks_of(network) if f"{last}.".startswith(f"{block}.")]
    return blocks[0] if blocks else last


def _asks_from_map(one: AttentionWeights) -> bool:
    """True unless all queries are class tokens and the like."""
    return one.query_positions is not None and bool((one.query_positions >= 0).any())


class _Owner:
    """One attention module, whose weights become maps.

    Args:
        network: it stands in.
        name: of the module.
        size: (height, width) of the images.
        at: pixel (x, y) of the token that is asked, or None.
    """

    def __init__(self, network: nn.Module, name: str, size: tuple[int, int], at: tuple[int, int] | None):
        self.module = network.get_submodule(name)
        self.name, self.size, self.at = name, size, at
        self.stride = stride_of(network, name)
        #: tokens that the asked token sees, for each attention among tokens of one map
        self.regions: list[Tensor] = []

    def maps(self, parts: dict[str, AttentionWeights]) -> dict[str, Map]:
        """The maps of the module's attentions, and its family's own."""
        if isinstance(self.module, PartialAttention):
            return self.partial(parts)
        found = {part: self.map(one) for part, one in parts.items()}
        if isinstance(self.module, MatAttention):
            found |= self.rollout(parts)
        if isinstance(self.module, ConvAttention) and self.at is None:
            found["centre_kernels"] = self.centre_kernels(parts[""])
            found["key_mass"] = found.pop("")
        return found

    def map(self, one: AttentionWeights) -> Map:
        """What the asked token attends to, or the key mass; of a query that lies on no map its weights."""
        if one.query_positions is None or one.query_size is None or one.key_size is None:
            raise UserError(
                f"Where the tokens of {self.name} lie on the image is not known: capture its weights instead."
            )
        cell = self.cell(one.key_size)
        if self.at is None or not _asks_from_map(one):
            every = isinstance(self.module, (ConvAttention, CSA))  # windows at the border reach over it
            return Map(one.key_mass(all_queries=every), cell, "attention received, 1 = uniform")
        token = self.token(one.query_size)
        if one.query_size == one.key_size:
            self.regions.append(one.region_of(token))
        rows = one.map_of(token).mean(1)
        return Map(rows / rows.sum((1, 2), keepdim=True), cell, "attention of the token", asked=True)

    def cell(self, size: tuple[int, int]) -> tuple[float, float]:
        """(height, width) in pixels of one token of a map."""
        if self.stride is None:
            return self.size[0] / size[0], self.size[1] / size[1]
        cell = self.stride
        if size != tuple(-(-side // cell) for side in self.size):
            if isinstance(self.module, MatAttention):
                cell *= self.module.window_size
            elif isinstance(self.module, RASA) and isinstance(self.module.sr, SpatialReduction):
                cell *= self.module.sr.ratio
        return cell, cell

    def token(self, size: tuple[int, int]) -> int:
        """Position of the asked token on a map."""
        assert self.at is not None
        cell = self.cell(size)
        row, col = (
            min(int((pixel + 0.5) / c), side - 1) for pixel, c, side in zip(self.at[::-1], cell, size, strict=True)
        )
        return row * size[1] + col

    def rollout(self, parts: dict[str, AttentionWeights]) -> dict[str, Map]:
        """Fusion times mixing times abstraction, heads averaged in each first, and the length of the fused term."""
        size = parts["fusion"].query_size
        assert size is not None
        paths = rollout(parts)
        if self.at is None:
            rolled = Map(paths.mean(1) * paths.shape[2], self.cell(size), "attention received, 1 = uniform")
        else:
            meaning = "attention of the token by way of mixing"
            rolled = Map(paths[:, self.token(size)], self.cell(size), meaning, asked=True)
        rolled.values = rolled.values.unflatten(1, size)
        lengths = fused_norm(parts["fusion"]).unflatten(1, size)
        norm = Map(lengths, self.cell(size), "length of the fused term, 1 = the longest")
        return {"rollout": rolled, "norm": norm}

    def centre_kernels(self, one: AttentionWeights) -> Map:
        """The weights of each window's centre as 3x3 tiles on the grid of the windows."""
        assert one.query_size is not None
        rows, cols = (-(-side // 2) for side in one.query_size)
        tiles = one.weights[:, :, :, 4].mean(2).reshape(-1, rows, cols, 3, 3)
        cell = self.cell(one.query_size)
        values = tiles.transpose(2, 3).reshape(-1, 3 * rows, 3 * cols)
        return Map(values, (2 * cell[0] / 3, 2 * cell[1] / 3), "weights of the centre query")

    def partial(self, parts: dict[str, AttentionWeights]) -> dict[str, Map]:
        """Selection, the single query's attention, and that of a token of the foreground."""
        mixed = parts["mixed"]
        assert mixed.key_positions is not None
        assert mixed.scores is not None
        assert mixed.key_size is not None
        size, cell = mixed.key_size, self.cell(mixed.key_size)
        chosen = foreground_mask(mixed)
        found = {
            "score": Map(
                mixed.scores.unflatten(1, size),
                cell,
                "what tokens are selected by, the selected ones outlined",
                outline=chosen.unflatten(1, size),
            ),
            "foreground": Map(chosen.to(mixed.weights.dtype).unflatten(1, size), cell, "selected tokens"),
        }
        if "query" in parts:
            query = parts["query"].weights[:, 0, :, 0].mean(1).unflatten(1, size)
            found["query"] = Map(query, cell, "attention of the single query of the background")
        if self.at is not None:
            token = self.token(size)
            rows = mixed.map_of(token).mean(1)
            if "query" in parts:  # images in which the token is background
                rows = torch.where(chosen[:, token, None, None], rows, found["query"].values)
            found["token"] = Map(rows.nan_to_num(), cell, "attention of the token", asked=True)
        return found


def stride_of(network: nn.Module, name: str) -> int | None:
    """Pixels of the input along a side of one token of an attention module; None of other networks than ours."""
    stage = stage_of(name)
    if stage is None or not isinstance(network, Pyramid):
        return None
    outer = network.get_submodule(name.rpartition(".")[0])
    patch = outer.prop.weight.shape[2] if isinstance(outer, DynamicTokens) else 1
    return int(network.feature_info[stage]["reduction"]) * patch


def rollout(parts: dict[str, AttentionWeights]) -> Tensor:
    """MAT's fusion times mixing times abstraction: (images, tokens, tokens), rows sum to 1.

    Heads are averaged in each factor first, since projections between the steps mix the heads.

    Args:
        parts: "abstraction", "mixing" and "fusion".
    """
    abstraction, fusion = parts["abstraction"], parts["fusion"]
    assert abstraction.key_positions is not None
    assert abstraction.key_size is not None
    read = abstraction.weights[:, :, :, 0].mean(2)  # (B, windows, keys)
    tokens = math.prod(abstraction.key_size)
    places = abstraction.key_positions.expand(read.shape)
    spread = read.new_zeros(*read.shape[:2], tokens + 1)
    spread.scatter_(2, torch.where(places < 0, tokens, places), read)
    mixed = parts["mixing"].weights[:, 0].mean(1) @ spread[:, :, :-1]
    return _on_map(fusion, fusion.weights[:, 0].mean(1)) @ mixed


def fused_norm(fusion: AttentionWeights) -> Tensor:
    """Length of what MAT's fusion adds at each token, divided by the longest: (images, tokens).

    Of a map of one window all are the same.
    """
    if fusion.values is None:
        return torch.ones_like(fusion.weights[:, 0, 0, :, 0])
    length = (fusion.weights[:, 0] @ fusion.values[:, 0]).square().sum((1, 3)).sqrt()
    length = _on_map(fusion, length[:, :, None])[:, :, 0]
    return length / length.amax(1, keepdim=True)


def _on_map(fusion: AttentionWeights, rows: Tensor) -> Tensor:
    """Rows (images, queries, n) of the queries that lie on the map, in their order."""
    assert fusion.query_positions is not None
    return rows[:, fusion.query_positions[0, 0] >= 0]


def foreground_mask(mixed: AttentionWeights) -> Tensor:
    """PartialFormer's selected tokens: (images, tokens) boolean."""
    assert mixed.key_positions is not None
    assert mixed.key_size is not None
    places, tokens = mixed.key_positions[:, 0], math.prod(mixed.key_size)
    mask = torch.zeros(places.shape[0], tokens + 1, dtype=torch.bool, device=places.device)
    return mask.scatter(1, torch.where(places < 0, tokens, places), True)[:, :-1]


def _enlarged(one: Map, height: int, width: int) -> np.ndarray:
    """A map at the input's size, nearest neighbour, divided by its maximum; with negative values from least to most."""
    values = one.values.float().cpu().nan_to_num()
    values = values - values.amin((1, 2), keepdim=True).clamp(max=0)
    peak = values.amax((1, 2), keepdim=True)
    return _at_pixels(values / torch.where(peak > 0, peak, 1), one.cell, height, width).numpy()


def _at_pixels(values: Tensor, cell: tuple[float, float], height: int, width: int) -> Tensor:
    """Maps (B, rows, columns) at the input's size, nearest neighbour.

    Args:
        values: the maps.
        cell: (height, width) of an entry in pixels.
        height: of the input.
        width: of the input.
    """
    rows, cols = (
        ((torch.arange(side) + 0.5) / one).long().clamp(max=last - 1)
        for side, one, last in zip((height, width), cell, values.shape[1:], strict=True)
    )
    return values.cpu()[:, rows][:, :, cols]
