"""Convolutional layers: 1x1, conv-norm-act, patch embedding, conditional position encoding.

All work on (B, C, H, W) maps, meant to lie in channels_last memory.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .checks import check_choice


class Pointwise(nn.Conv2d):
    """A linear layer over the channels of a map, kept as a 1x1 convolution.

    Same arithmetic as `nn.Linear` on (B, H, W, C); as a convolution on channels_last maps it takes the faster kernels
    of several backends. A class of its own so that it is initialised as the linear layer it is.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, device: Any = None, dtype: Any = None):
        super().__init__(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)


class ConvNormAct(nn.Sequential):
    """Convolution with "same" padding, normalisation and activation in either order.

    Args:
        norm, act: module classes, or None to leave the step out. `norm` is called as norm(channels).
        order: "conv-norm-act", or "conv-act-norm" (PSLT).
    """

    # TorchScript shares compiled code between modules with children of the same names, whatever their order, unless a
    # constant tells them apart
    __constants__ = ("order",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: Any = nn.BatchNorm2d,
        act: Any = nn.GELU,
        order: str = "conv-norm-act",
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        check_choice("order", order, ("conv-norm-act", "conv-act-norm"))
        self.order = order
        dd = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=bias,
            **dd,
        )
        steps = [("norm", norm(out_channels, **dd) if norm else None), ("act", act() if act else None)]
        for name, module in steps if order == "conv-norm-act" else reversed(steps):
            if module is not None:
                self.add_module(name, module)


class PatchEmbedConv(nn.Sequential):
    """Overlapping patch embedding: strided convolution with bias, then a norm over channels.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) with the default padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int | None = None,
        norm: Any = LayerNorm2d,
        norm_eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=kernel_size, stride=stride, padding=padding, **dd)
        self.norm = norm(out_channels, eps=norm_eps, **dd)


class ConvPositionEncoding(nn.Module):
    """Conditional position encoding (CPVT): a depthwise convolution with bias, added to its input.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, dim: int, kernel_size: int = 3, device: Any = None, dtype: Any = None):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Add the encoding."""
        return x + self.conv(x)


def channels_last(x: Tensor) -> Tensor:
    """The same map in channels_last memory: `x.permute(0, 2, 3, 1)` is then a free (B, H, W, C) view."""
    return x.contiguous(memory_format=torch.channels_last)
