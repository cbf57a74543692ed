"""Norms, scales and activations folded into the convolutions and linear layers beside them: exact rewritings."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from timm.layers import BatchNormAct2d, LayerScale, LayerScale2d
from torch import Tensor, nn

from .layers import ChannelAffine, activation_name, set_activation
from .module_graph import PASSING, Call, calls

Weighted = nn.Conv2d | nn.Linear


def fold(model: nn.Module) -> None:
    """Fold what can be folded exactly, in place; the modules that are done with become identities.

    BatchNorm into the layer before it, else into an unpadded convolution behind it, else it becomes one multiplication
    and addition; layer scales into the layer before
    them; activations into the layer before them (which then has an attribute `activation`).
    """
    found = calls(model)
    for step in (_fold_norm, _fold_scale, _fold_activation):
        for call in found:
            step(model, call)


def weighted(module: nn.Module) -> Weighted | None:
    """The module if it is a convolution or linear layer that does nothing besides, else None."""
    plain = (nn.Conv2d.forward, nn.Linear.forward)
    if not isinstance(module, (nn.Conv2d, nn.Linear)) or type(module).forward not in plain:
        return None
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return None
    return None if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations") else module


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def _beside(model: nn.Module, call: Call | None, step: Callable[[Call], Call | None]) -> nn.Module | None:
    """The next module along `step`, over those that return their input."""
    while call is not None and isinstance(model.get_submodule(call.name), PASSING):
        call = step(call)
    return None if call is None else model.get_submodule(call.name)


def _before(call: Call) -> Call | None:
    """The call before this one, which nobody else may read."""
    return call.source if call.source is not None and call.source.readers == 1 else None


def _layer_before(model: nn.Module, call: Call) -> Weighted | None:
    module = _beside(model, _before(call), _before)
    return None if module is None or hasattr(module, "activation") else weighted(module)


def _layer_behind(model: nn.Module, call: Call) -> Weighted | None:
    module = _beside(model, call.sole_reader, lambda passing: passing.sole_reader)
    return None if module is None else weighted(module)


def _fold_norm(model: nn.Module, call: Call) -> None:
    norm = model.get_submodule(call.name)
    if not isinstance(norm, nn.BatchNorm2d) or type(norm) not in (nn.BatchNorm2d, BatchNormAct2d):
        return
    if norm.running_var is None:  # it normalises by each batch
        return
    scale, shift = _affine(norm)
    act = cast(nn.Module, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    before = _layer_before(model, call)
    if before is not None:
        _scale_outputs(before, scale, shift)
        replace(model, call.name, act)
        return
    behind = _layer_behind(model, call)
    if isinstance(act, nn.Identity) and isinstance(behind, nn.Conv2d) and not any(_padding(behind)):
        _scale_inputs(behind, scale, shift)
        replace(model, call.name, nn.Identity())
    elif type(norm) is nn.BatchNorm2d:
        like = norm.running_var
        replace(model, call.name, ChannelAffine(scale.to(like), shift.to(like), _owns_input(model, call)))


def _owns_input(model: nn.Module, call: Call) -> bool:
    """Whether a module reads, alone, what a layer or activation has just made."""
    maker = _beside(model, _before(call), _before)
    return maker is not None and (weighted(maker) is not None or activation_name(maker) is not None)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(s, t) with norm(x) = s x + t, in float64."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = (var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    return scale, shift + norm.bias.double() if norm.affine else shift


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(conv.padding, str):
        return (0,) if conv.padding == "valid" else (1,)
    return conv.padding


@torch.no_grad()
def _scale_outputs(layer: Weighted, scale: Tensor, shift: Tensor | None = None) -> None:
    """The layer's outputs times `scale` plus `shift`, a number a channel each."""
    weight = layer.weight
    if layer.bias is not None or shift is not None:
        bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.double() * scale
        layer.bias = _parameter(bias if shift is None else bias + shift, weight)
    layer.weight = _parameter(weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1)), weight)


@torch.no_grad()
def _scale_inputs(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """The same convolution of scale * x + shift, for one that has no padding."""
    weight = conv.weight.double()
    of_group = weight.shape[1]
    s, t = (v.reshape(conv.groups, 1, of_group, 1, 1) for v in (scale, shift))
    grouped = weight.reshape(conv.groups, -1, *weight.shape[1:])
    added = (grouped * t).sum((2, 3, 4)).flatten()
    conv.bias = _parameter(added if conv.bias is None else added + conv.bias.double(), conv.weight)
    conv.weight = _parameter((grouped * s).reshape(weight.shape), conv.weight)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like), requires_grad=False)


def _fold_scale(model: nn.Module, call: Call) -> None:
    module = model.get_submodule(call.name)
    if isinstance(module, (LayerScale, LayerScale2d)):
        before = _layer_before(model, call)
        if before is not None:
            _scale_outputs(before, module.gamma.detach().double())
            replace(model, call.name, nn.Identity())


def _fold_activation(model: nn.Module, call: Call) -> None:
    name = activation_name(model.get_submodule(call.name))
    before = _layer_before(model, call) if name is not None else None
    if name is not None and before is not None:
        set_activation(before, name)
        replace(model, call.name, nn.Identity())
