"""Exact folding of norms, scales and activations into adjacent convolutions and linear layers."""

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
    """Fold what can be folded exactly, in place; folded modules become identities.

    A BatchNorm is folded into the layer before it, else into an unpadded convolution after it, else it becomes one
    multiplication and addition. A layer scale is folded into the layer before it, an activation too; that layer then
    has an attribute `activation`.
    """
    found = calls(model)
    for step in (_fold_norm, _fold_scale, _fold_activation):
        for call in found:
            step(model, call)


def weighted(module: nn.Module) -> Weighted | None:
    """The module if it is a plain convolution or linear layer without hooks or parametrizations, else None."""
    plain = (nn.Conv2d.forward, nn.Linear.forward)
    if not isinstance(module, (nn.Conv2d, nn.Linear)) or type(module).forward not in plain:
        return None
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return None
    return None if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations") else module


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module with this name."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def _neighbour(model: nn.Module, call: Call | None, step: Callable[[Call], Call | None]) -> nn.Module | None:
    """The next module along `step`; modules that return their input are skipped."""
    while call is not None and isinstance(model.get_submodule(call.name), PASSING):
        call = step(call)
    return None if call is None else model.get_submodule(call.name)


def _before(call: Call) -> Call | None:
    """The call before this one, if only this one reads its output."""
    return call.source if call.source is not None and call.source.readers == 1 else None


def _layer_before(model: nn.Module, call: Call) -> Weighted | None:
    module = _neighbour(model, _before(call), _before)
    return None if module is None or hasattr(module, "activation") else weighted(module)


def _layer_after(model: nn.Module, call: Call) -> Weighted | None:
    module = _neighbour(model, call.sole_reader, lambda passing: passing.sole_reader)
    return None if module is None else weighted(module)


def _fold_norm(model: nn.Module, call: Call) -> None:
    norm = model.get_submodule(call.name)
    if not isinstance(norm, nn.BatchNorm2d) or type(norm) not in (nn.BatchNorm2d, BatchNormAct2d):
        return
    if norm.running_var is None:  # it normalises with the statistics of each batch
        return
    scale, shift = _affine(norm)
    act = cast(nn.Module, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    before = _layer_before(model, call)
    if before is not None:
        _scale_outputs(before, scale, shift)
        replace(model, call.name, act)
        return
    after = _layer_after(model, call)
    if isinstance(act, nn.Identity) and isinstance(after, nn.Conv2d) and not any(_padding(after)):
        _scale_inputs(after, scale, shift)
        replace(model, call.name, nn.Identity())
    elif type(norm) is nn.BatchNorm2d:
        like = norm.running_var
        replace(model, call.name, ChannelAffine(scale.to(like), shift.to(like), _owns_input(model, call)))


def _owns_input(model: nn.Module, call: Call) -> bool:
    """True if the module is the only reader of its input, a new tensor of a layer or activation."""
    maker = _neighbour(model, _before(call), _before)
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
    """Multiply the layer's outputs by `scale` and add `shift`, one number per channel each."""
    weight = layer.weight
    if layer.bias is not None or shift is not None:
        bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.double() * scale
        layer.bias = _parameter(bias if shift is None else bias + shift, weight)
    layer.weight = _parameter(weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1)), weight)


@torch.no_grad()
def _scale_inputs(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make an unpadded convolution compute the same of scale * x + shift."""
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
