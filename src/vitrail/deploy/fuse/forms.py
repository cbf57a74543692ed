"""Inference forms: faster modules with the same outputs, registered by the class they replace.

The networks do not know their forms. A module of a third party may offer its own by a method `inference_form()`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...layers import ConvPositionEncoding, Pointwise
from ...layers.rebuild import rebuild
from ...layers.tracing import notrace_module
from ...models.emsnet import Whiten
from ...models.lvt import RASA
from ...models.pslt import LadderAttention
from .layers import CachedModule, LRUCache, set_activation

Form = Callable[[Any], nn.Module]
Registered = TypeVar("Registered", bound=Form)

_forms: dict[type[nn.Module], Form] = {}


def register(kind: type[nn.Module]) -> Callable[[Registered], Registered]:
    """Register a function as the inference form of a class of modules; subclasses do not inherit it.

    The function takes a module in evaluation mode, of a copy of the network, and returns its replacement.
    """

    def add(form: Registered) -> Registered:
        _forms[kind] = form
        return form

    return add


def inference_form(module: nn.Module) -> nn.Module:
    """The inference form of a module; the module itself if its class has none."""
    form = _forms.get(type(module)) or getattr(type(module), "inference_form", None)
    return module if form is None else form(module)


# ---- layers -----------------------------------------------------------------------------------------------------


@register(ConvPositionEncoding)
@torch.no_grad()
def one_convolution(encoding: ConvPositionEncoding) -> nn.Conv2d:
    """x + conv(x) as one convolution, whose kernel is 1 larger at its centre."""
    conv = copy.deepcopy(encoding.conv)
    rows, cols = conv.kernel_size
    conv.weight[:, 0, rows // 2, cols // 2] += 1
    return conv


# ---- PSLT -------------------------------------------------------------------------------------------------------


@notrace_module
class CachedLadderAttention(CachedModule, LadderAttention):
    """`LadderAttention` whose position bias and indices are computed once a map size."""

    def window_layout(
        self, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `LadderAttention`."""
        make = partial(LadderAttention.window_layout, self, height, width, device)
        return make() if torch.compiler.is_compiling() else self.cache.get((height, width), make)


@register(LadderAttention)
def cached_ladder_attention(attn: LadderAttention) -> CachedLadderAttention:
    """The same attention, with a cache."""
    return rebuild(attn, CachedLadderAttention, cache=LRUCache())


# ---- LVT --------------------------------------------------------------------------------------------------------


@notrace_module
class FusedRASA(RASA):
    """`RASA` with one convolution, SiLU included, for each dilation of the query."""

    dilated: nn.ModuleList

    def query(self, x: Tensor) -> Tensor:
        """See `RASA`."""
        q = self.q(x)
        out = self.dilated[0](q)
        for i in range(1, len(self.dilated)):
            out = out + self.dilated[i](q)
        return out


@register(RASA)
def fused_rasa(attn: RASA) -> RASA:
    """RASA with every SiLU fused into the layer before it."""
    if attn.atrous is None:
        form = rebuild(attn, RASA)
    else:
        convs = [dilated_conv(attn.atrous, rate) for rate in attn.atrous_rates]
        form = rebuild(attn, FusedRASA, dilated=nn.ModuleList(convs))
    if form.output_act:
        form.output_act = False
        set_activation(form.proj, "silu")
    return form


def dilated_conv(conv: nn.Conv2d, rate: int) -> nn.Conv2d:
    """A depthwise 3x3 convolution with the same kernel, another dilation, and SiLU as its activation."""
    dim, like = conv.in_channels, conv.weight
    made = nn.Conv2d(
        dim, dim, 3, padding=rate, dilation=rate, groups=dim, bias=False, device=like.device, dtype=like.dtype
    )
    made.weight = conv.weight
    return set_activation(made, "silu")


# ---- EMSNet -----------------------------------------------------------------------------------------------------


@register(Whiten)
@torch.no_grad()
def whitened_layer(layer: Whiten) -> nn.Module:
    """A plain 1x1 convolution with the whitened weight; the layer itself if it subtracts the mean over pixels."""
    if layer.mode == "spatial":
        return layer
    plain = Pointwise(
        layer.in_channels, layer.out_channels, bias=False, device=layer.weight.device, dtype=layer.weight.dtype
    )
    plain.weight.copy_(layer.effective_weight())
    return plain
