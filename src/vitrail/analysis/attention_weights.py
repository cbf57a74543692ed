"""The weights of an attention with the places of its tokens, and the calls of a forward pass they are read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .result import NamedArray

#: of every `AttentionWeights`
AXES = ("image", "window", "head", "query", "key")


@dataclass(frozen=True)
class AttentionWeights:
    """The weights of one attention in one forward pass, and where its tokens lie.

    Windows, groups and pales are the axis "window", of length 1 for attention over the whole map. Windows that are
    shorter than others are filled up with weights of zero at the end.

    Attributes:
        weights: (image, window, head, query, key); a row of a query sums to 1 unless the class says otherwise.
        values: (image, window, head, key, channel) that the weights multiply; None where the pass has none.
        query_positions: row-major positions of the queries on a map, (1 or images, windows, queries); -1 where a query
            lies on none: padding, class and abstract tokens. None where the class of the module is not known.
        key_positions: of the keys, in the same way.
        query_size: (height, width) of the queries' map.
        key_size: of the keys' map, which is smaller for spatially reduced keys.
        scores: (images, tokens) what the tokens were selected by; None where all are attended to.
    """

    weights: Tensor
    values: Tensor | None = None
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    query_size: tuple[int, int] | None = None
    key_size: tuple[int, int] | None = None
    scores: Tensor | None = None

    def array(self) -> NamedArray:
        """The weights with named axes."""
        return NamedArray(self.weights.float().cpu().numpy(), AXES)

    def map_of(self, position: int) -> Tensor:
        """What a token of the queries' map attends to: (images, heads, key height, key width).

        The mean over the windows that hold the token; NaN for images where none does. The sum is 1 less the weight of
        keys that lie on no map.

        Raises:
            ValueError: the positions are not known.
        """
        if self.query_positions is None or self.key_positions is None or self.key_size is None:
            raise ValueError("where these queries and keys lie on the map is not known")
        images, windows, heads, queries, keys = self.weights.shape
        asked = (self.query_positions == position).expand(images, windows, queries)
        rows = torch.einsum("bwhqk,bwq->bwhk", self.weights, asked.to(self.weights.dtype))
        height, width = self.key_size
        # the last cell takes the keys that lie on no map
        places = self.key_positions.expand(images, windows, keys)
        places = torch.where(places < 0, height * width, places)[:, :, None].expand(-1, -1, heads, -1)
        maps = rows.new_zeros(images, heads, height * width + 1)
        maps.scatter_add_(2, places.transpose(1, 2).flatten(2), rows.transpose(1, 2).flatten(2))
        return (maps[:, :, :-1] / asked.sum((1, 2))[:, None, None]).unflatten(2, self.key_size)

    def key_mass(self, all_queries: bool = False) -> Tensor:
        """How much each token of the keys' map is attended to: (images, key height, key width); 1 = as much as others.

        The mean over the windows that hold the token of its mean weight over heads and queries, times the number of the
        window's keys that get any weight. NaN at tokens that no window holds.

        Args:
            all_queries: queries on padding count too.

        Raises:
            ValueError: the positions are not known.
        """
        if self.query_positions is None or self.key_positions is None or self.key_size is None:
            raise ValueError("where these queries and keys lie on the map is not known")
        images, windows, _, queries, keys = self.weights.shape
        counted = (self.query_positions >= 0).expand(images, windows, queries)
        if all_queries or not counted.any():  # class tokens lie on no map
            counted = torch.ones_like(counted)
        share = counted.to(self.weights.dtype)
        share = share / share.sum(2, keepdim=True).clamp(min=1)
        mass = torch.einsum("bwhqk,bwq->bwk", self.weights, share) / self.weights.shape[2]
        # a window of padding only, or filled up, has no queries that count
        held = (self.key_positions >= 0).expand(images, windows, keys) & counted.any(2)[:, :, None]
        mass = mass * ((self.weights != 0).any(2) & counted[..., None]).any(2).sum(2, keepdim=True)
        height, width = self.key_size
        places = torch.where(held, self.key_positions.expand(images, windows, keys), height * width).flatten(1)
        total, times = (mass.new_zeros(images, height * width + 1) for _ in range(2))
        total.scatter_add_(1, places, mass.flatten(1))
        times.scatter_add_(1, places, torch.ones_like(mass).flatten(1))
        return (total / times)[:, :-1].unflatten(1, self.key_size)

    def region_of(self, position: int) -> Tensor:
        """The tokens that share a window with a token of the queries' map: (key height, key width) boolean.

        Of the first image; masks inside a window, such as those of shifted windows, are respected.

        Raises:
            ValueError: the positions are not known.
        """
        return self.map_of(position)[0].sum(0) > 0


@dataclass
class Call:
    """One watched call inside an attention module."""

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    output: Any


@dataclass
class Pass:
    """One forward pass of an attention module.

    Attributes:
        inputs: of the module.
        outer_shape: shape of the input of the module that holds it; None at the root.
        outer: the module that holds it.
        network: the whole network.
        images: how many the batch of the network has.
        calls: the watched calls, first to last.
    """

    inputs: tuple[Any, ...]
    outer_shape: torch.Size | None
    outer: nn.Module
    network: nn.Module
    images: int
    calls: list[Call] = field(default_factory=list)

    def of(self, *names: str) -> list[Call]:
        """The calls of functions."""
        return [call for call in self.calls if call.name in names]

    @property
    def attentions(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and values of the fused attentions."""
        return [fused_weights(*call.args, **call.options) for call in self.of("scaled_dot_product_attention")]

    @property
    def softmaxes(self) -> list[Tensor]:
        """Outputs of the softmaxes."""
        return [call.output for call in self.of("softmax")]


Layout = Callable[[Any, Pass], "dict[str, AttentionWeights]"]


def fused_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weights and values of a call of `F.scaled_dot_product_attention`, without dropout; softmax in float32 at least.

    Raises:
        ValueError: causal or grouped attention, which image networks do not have.
    """
    if is_causal or enable_gqa:
        raise ValueError("causal and grouped attention are not captured")
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, float("-inf")) if masked else logits + attn_mask
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype), value
