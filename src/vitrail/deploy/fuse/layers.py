"""Layers of a fused network: convolutions and linear layers with their activation, on the fastest kernel.

`vitrail.fuse` replaces a trained network's layers by these. Weights keep their names and shapes. While a graph is
traced, under autocast, on other devices and where gradients are needed, they use PyTorch's public functions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .kernels import Kernel, fastest


class Activation(NamedTuple):
    """An activation in three forms.

    Attributes:
        plain: returns a new tensor.
        in_place: overwrites its input, since allocating a large tensor costs more than the arithmetic.
        name, algorithm: oneDNN's names for it.
    """

    plain: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    name: str
    algorithm: str = ""


_aten = cast(Any, torch.ops.aten)
ACTIVATIONS = {
    "none": Activation(lambda x: x, lambda x: x, "none"),
    "gelu": Activation(F.gelu, _aten.gelu_, "gelu", "none"),
    "gelu_tanh": Activation(
        partial(F.gelu, approximate="tanh"), partial(_aten.gelu_, approximate="tanh"), "gelu", "tanh"
    ),
    "relu": Activation(F.relu, _aten.relu_, "relu"),
    "silu": Activation(F.silu, _aten.silu_, "swish"),
    "hardswish": Activation(F.hardswish, _aten.hardswish_, "hardswish"),
    "sigmoid": Activation(torch.sigmoid, _aten.sigmoid_, "sigmoid"),
}
SIZES = 4  # input shapes for which a layer keeps reordered weights


def activation_name(module: nn.Module) -> str | None:
    """The name in `ACTIVATIONS` of an activation module, None for any other module."""
    kind = type(module).__name__
    if kind == "GELU":
        return "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
    return {"ReLU": "relu", "SiLU": "silu", "Swish": "silu", "Hardswish": "hardswish", "HardSwish": "hardswish"}.get(
        kind, "sigmoid" if kind == "Sigmoid" else None
    )


class LRUCache:
    """Cache of tensors derived from weights or sizes, least recently used out first; copies and pickles are empty."""

    def __init__(self, entries: int = SIZES):
        self.entries = entries
        self.values: OrderedDict[Any, Any] = OrderedDict()
        self.lock = threading.Lock()  # servers call one network from several threads

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of `key`, made if it is missing; a full cache drops the least recently used value."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()
        with self.lock:
            self.values[key] = value
            if len(self.values) > self.entries:
                self.values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Drop all values, since the weights have changed."""
        with self.lock:
            self.values.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> LRUCache:
        return LRUCache(self.entries)

    def __reduce__(self) -> tuple[Any, ...]:
        return LRUCache, (self.entries,)


class CachedModule(nn.Module):
    """A module whose cache is cleared when its weights are moved, cast or loaded."""

    cache: LRUCache

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.cache.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.cache.clear()
        super()._load_from_state_dict(*args, **kwargs)


Layer = TypeVar("Layer", bound=nn.Module)


def set_activation(layer: Layer, activation: str) -> Layer:
    """Record on a layer the activation after it; `fuse` later builds a fused layer of both."""
    setattr(layer, "activation", activation)  # noqa: B010 - no attribute of the framework's layers
    return layer


def runs_plain(x: Tensor, layer: nn.Module) -> bool:
    """True if a layer must use PyTorch's public functions for this input."""
    if type(x) is not Tensor or not x.is_cpu or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True  # another device, or a graph is traced
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in layer.parameters(False))):
        return True
    # autocast and the counting of operations intercept the public functions
    return torch.is_autocast_enabled("cpu") or _get_current_dispatch_mode() is not None


class FusedLinear(CachedModule, nn.Linear):
    """A linear layer and the activation after it: (..., in) -> (..., out)."""

    activation: str

    def forward(self, x: Tensor) -> Tensor:
        """Project and activate."""
        if runs_plain(x, self):
            return self.plain(x)
        return self.cache.get((x.shape, x.dtype, torch.get_num_threads()), lambda: self.kernel(x))(x)

    def plain(self, x: Tensor) -> Tensor:
        """The same with PyTorch's public functions."""
        return ACTIVATIONS[self.activation].plain(F.linear(x, self.weight, self.bias))

    def kernel(self, x: Tensor) -> Kernel:
        """The fastest kernel for inputs like this one."""
        if not has_kernels(x, self.weight):
            return self.plain
        rows = x.numel() // x.shape[-1]
        makers = linear_kernels(rows, self.weight, self.bias, self.activation)
        return fastest(("linear", rows, *_case(self.weight, self.activation)), makers, x)


class FusedConv2d(CachedModule, nn.Conv2d):
    """A convolution with zero padding and the activation after it: (B, C, H, W) -> (B, C', H', W')."""

    activation: str

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and activate."""
        if runs_plain(x, self):
            return self.plain(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.cache.get((x.shape, x.dtype, torch.get_num_threads()), lambda: self.kernel(x))(x)

    def plain(self, x: Tensor) -> Tensor:
        """The same with PyTorch's public functions."""
        return ACTIVATIONS[self.activation].plain(self._conv_forward(x, self.weight, self.bias))

    def kernel(self, x: Tensor) -> Kernel:
        """The fastest kernel for channels_last inputs like this one."""
        if not has_kernels(x, self.weight) or isinstance(self.padding, str):
            return self.plain
        makers = conv_kernels(x.shape, self)
        case = ("conv", *x.shape, self.stride, self.padding, self.dilation, self.groups)
        return fastest((*case, *_case(self.weight, self.activation)), makers, x)


def has_kernels(x: Tensor, weight: Tensor) -> bool:
    """True if there are further kernels than PyTorch's public functions for a layer of this dtype."""
    if x.dtype != weight.dtype:
        return False
    if x.dtype == torch.bfloat16:
        return _has("mkldnn", "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32


class ChannelAffine(nn.Module):
    """scale * x + shift with one number per channel each: a norm that could not be folded.

    Args:
        scale, shift: (C,).
        owned: no other operation reads the input, which may then be overwritten.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, owned: bool):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.owned = owned

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift."""
        x = x.permute(0, 2, 3, 1)
        in_place = self.owned and not runs_plain(x, self)  # allocating such a tensor costs more than the arithmetic
        x = torch.addcmul(self.shift, x, self.scale, out=x) if in_place else torch.addcmul(self.shift, x, self.scale)
        return x.permute(0, 3, 1, 2)


def _case(weight: Tensor, activation: str) -> tuple[Any, ...]:
    return (*weight.shape, str(weight.dtype).removeprefix("torch."), activation, torch.get_num_threads())


Makers = dict[str, Callable[[], Kernel]]


def linear_kernels(rows: int, weight: Tensor, bias: Tensor | None, activation: str) -> Makers:
    """Kernels for activation(x W^T + b) with x (..., in) of `rows` rows, by name."""
    act = ACTIVATIONS[activation]

    def linear() -> Kernel:
        return lambda x: act.in_place(F.linear(x, weight, bias))

    def onednn() -> Kernel:
        ops = cast(Any, torch.ops.mkldnn)
        packed = ops._reorder_linear_weight(weight.detach(), rows)
        run = ops._linear_pointwise.default
        return lambda x: run(x, packed, bias, act.name, [], act.algorithm)

    def mkl() -> Kernel:
        ops = cast(Any, torch.ops.mkl)
        packed = ops._mkl_reorder_linear_weight(weight.detach(), rows)
        run = ops._mkl_linear.default
        return lambda x: act.in_place(run(x, packed, weight, bias, rows))

    makers: Makers = {"linear": linear}
    if _has("mkldnn", "_linear_pointwise"):
        makers["onednn"] = onednn
    if weight.dtype == torch.float32 and _has("mkl", "_mkl_linear"):
        makers["mkl"] = mkl
    return makers


def conv_kernels(shape: torch.Size, conv: FusedConv2d) -> Makers:
    """Kernels for a convolution with its activation on channels_last maps of one shape, by name."""
    act = ACTIVATIONS[conv.activation]
    weight, bias, groups = conv.weight, conv.bias, conv.groups
    stride, padding, dilation = (list(cast(Any, pair)) for pair in (conv.stride, conv.padding, conv.dilation))

    def plain() -> Kernel:
        return lambda x: act.in_place(
            F.conv2d(x, weight, bias=bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
        )

    def onednn() -> Kernel:
        ops = cast(Any, torch.ops.mkldnn)
        arguments = (padding, stride, dilation, groups)
        packed = ops._reorder_convolution_weight(weight.detach(), *arguments, list(shape))
        run = ops._convolution_pointwise.default
        return lambda x: run(x, packed, bias, *arguments, act.name, [], act.algorithm)

    makers: Makers = {"conv": plain}
    if _has("mkldnn", "_convolution_pointwise"):
        makers["onednn_conv"] = onednn
    if conv.kernel_size == (1, 1) and conv.stride == (1, 1) and groups == 1 and conv.padding == (0, 0):
        rows = shape[0] * shape[2] * shape[3]
        for name, make in linear_kernels(rows, weight.flatten(1), bias, conv.activation).items():
            makers[name] = partial(_on_tokens, make)
    return makers


def _on_tokens(make: Callable[[], Kernel]) -> Kernel:
    kernel = make()
    return lambda x: kernel(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _has(library: str, operator: str) -> bool:
    return getattr(torch.backends, library).is_available() and hasattr(getattr(torch.ops, library), operator)
