"""Layers of maps as layers of tokens (B, tokens, C), with the same weights; maps as tokens and back."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ....layers import Mlp


def tokens_of(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C).

    The flattening is for OpenVINO, which takes a map (B, H, W, C) for one of NCHW and reorders it in memory.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def map_of(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W); `size` is (H, W)."""
    return x.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these tensors, which it shares."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def linear_of(layer: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution as a linear layer; the tensors are shared."""
    return linear(layer.weight.flatten(1), layer.bias)


def layer_norm_of(norm: LayerNorm2d) -> nn.LayerNorm:
    """A norm over the channels of a map as one over those of tokens; the tensors are shared."""
    shape = list(norm.normalized_shape)
    made = nn.LayerNorm(shape, eps=norm.eps, elementwise_affine=norm.elementwise_affine, device="meta")
    made.weight, made.bias = norm.weight, norm.bias
    return made


def token_mlp(mlp: Mlp) -> nn.Sequential:
    """An MLP without depthwise convolution on tokens, in evaluation mode; the tensors are shared."""
    return nn.Sequential(linear_of(mlp.fc1), mlp.act, linear_of(mlp.fc2))
