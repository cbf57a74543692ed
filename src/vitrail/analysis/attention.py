"""Attention maps over the image: what a token attends to, or what all attend to, in each family's own attention."""

from __future__ import annotations

import math
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
from .result import Analysis, NamedArray, about, backdrop_of

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
    """

    values: Tensor
    cell: tuple[float, float]
    meaning: str


@dataclass
class AttentionMaps(Analysis):
    """Attention maps of one layer.

    Attributes:
        arrays: a map (image, y, x) for each attention of the layer, by its name, at its own resolution.
        meanings: what the values of each map say.
        enlarged: the maps at the input's size, nearest neighbour, each divided by its maximum: (images, height, width).
        backdrop: the images as grey values from 0 to 1, to draw on.
    """

    meanings: dict[str, str]
    enlarged: dict[str, np.ndarray]
    backdrop: np.ndarray

    def summary(self) -> str:
        """The layer, what was asked, and how many tokens it sees."""
        at, seen = self.about["at"], self.about["tokens_seen"]
        asked = "what all queries attend to" if at is None else f"what the token at pixel ({at[0]}, {at[1]}) attends to"
        reach = f"; it sees {seen} tokens" if seen is not None else ""
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
                    if self.about["at"] is not None:
                        axis.plot(*self.about["at"], marker="x", color="white", markeredgewidth=2)
            figure.suptitle(f"Attention, {self.about['model']}, layer {self.about['layer']}", fontsize=10)
            figure.colorbar(drawn, ax=grid, shrink=0.8, label="share of the map's maximum")

        return rendered(SIDE * (1 + len(self.arrays)) + 1.2, SIDE * len(self.backdrop) + 1, draw)


def attention(
    network: nn.Module,
    images: Tensor,
    *,
    layer: str | None = None,
    at: tuple[int, int] | None = None,
) -> AttentionMaps:
    """Attention maps of one layer over the images, mean over heads.

    With `at`, what the token there attends to, in each of the layer's attentions; the sum over the map is 1. A token
    of several windows has the mean over them. Without, how much every token is attended to: its mean weight over
    queries, times the number of keys, so that 1 is as much as any other. Besides, what the family's own attention
    offers:

    - MAT: `rollout`, fusion times mixing times abstraction with heads averaged first, and `norm`, the length of the
      fused term divided by its maximum;
    - EMSNet: `centre_kernels` of C-MHSA, the 3x3 weights of each window's centre, tile by tile;
    - PartialFormer: `foreground`, the selected tokens, and `score`, what they are selected by; a token of the
      background shows the single query's attention, which it shares with all others.

    Args:
        network: of this library or timm's, with attention; it is used in evaluation mode.
        images: preprocessed, (B, C, H, W).
        layer: name of an attention module, or of a block or stage that holds some; None = the last block with
            more tokens than a window of 7 x 7.
        at: column and row of a pixel of the input.

    Raises:
        UserError: a network or layer without attention, a pixel outside the image, or attention whose tokens lie on no
            map that is known.
    """
    height, width = images.shape[-2:]
    if at is not None and not (0 <= at[0] < width and 0 <= at[1] < height):
        raise BadOption(f"at={tuple(at)!r} is outside the input; give a column below {width} and a row below {height}.")
    with evaluating(network), torch.inference_mode():
        name = default_layer(network, images) if layer is None else layer
        with captured(network, [name]) as weights:
            network(images)
    maps, seen = _maps_by_name(network, name, weights, size=(height, width), at=at)
    same = bool(seen) and all(one.shape == seen[0].shape for one in seen)
    return AttentionMaps(
        about(
            network,
            images,
            layer=name,
            at=None if at is None else list(at),
            tokens_seen=int(torch.stack(seen).any(0).sum()) if same else None,
        ),
        {key: NamedArray(one.values.float().cpu().numpy(), ("image", "y", "x")) for key, one in maps.items()},
        meanings={key: one.meaning for key, one in maps.items()},
        enlarged={key: _enlarged(one, height, width) for key, one in maps.items()},
        backdrop=backdrop_of(images),
    )


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
        return Map(rows / rows.sum((1, 2), keepdim=True), cell, "attention of the token")

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
            rolled = Map(paths[:, self.token(size)], self.cell(size), "attention of the token by way of mixing")
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
            "score": Map(mixed.scores.unflatten(1, size), cell, "what tokens are selected by"),
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
            found["token"] = Map(rows.nan_to_num(), cell, "attention of the token")
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
    rows, cols = (
        ((torch.arange(side) + 0.5) / cell).long().clamp(max=last - 1)
        for side, cell, last in zip((height, width), one.cell, one.values.shape[1:], strict=True)
    )
    values = one.values.float().cpu().nan_to_num()
    values = values - values.amin((1, 2), keepdim=True).clamp(max=0)
    peak = values.amax((1, 2), keepdim=True)
    return (values / torch.where(peak > 0, peak, 1))[:, rows][:, :, cols].numpy()
