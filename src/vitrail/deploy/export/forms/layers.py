"""Export forms of layers that several families share."""

from __future__ import annotations

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ....layers.rebuild import rebuild
from .tokens import map_of, tokens_of


class TokenLayerNorm(LayerNorm2d):
    """`LayerNorm2d` on tokens (B, H * W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        tokens = F.layer_norm(tokens_of(x), self.normalized_shape, self.weight, self.bias, eps=self.eps)
        return map_of(tokens, x.shape[2:])


def token_layer_norm(layer: LayerNorm2d) -> TokenLayerNorm:
    """The norm on tokens."""
    return rebuild(layer, TokenLayerNorm)


class HalvingConv(nn.Conv2d):
    """timm's `Conv2dSame` of stride 2 whose padding is a short expression of the input's size.

    TensorFlow's "same" padding of an odd kernel k has (k - 3) / 2 on the left, and one more where the size is odd. timm
    computes it by rounding and a maximum; on maps of free size, of which each is the input of the next, these
    expressions double and double again, and the graph of `tf_efficientnet_lite0` took two minutes. Here k - 1 is padded
    in all, whether the size is odd or not: a superfluous place on the right changes nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / 2), ceil(W / 2))."""
        sides = (_sides(size, kernel) for size, kernel in zip(x.shape[2:], self.kernel_size, strict=True))
        (top, bottom), (left, right) = sides
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, self.bias, self.stride, groups=self.groups)


def _sides(size: int, kernel: int) -> tuple[int, int]:
    """Padding before and behind a map."""
    before = (kernel - 3) // 2 + size % 2
    return before, kernel - 1 - before


def halving_conv(conv: nn.Conv2d) -> nn.Module:
    """The form of a convolution of stride 2 with odd kernels; others stay as they are."""
    odd = all(size % 2 == 1 and size > 1 for size in conv.kernel_size)
    return rebuild(conv, HalvingConv) if odd and conv.stride == (2, 2) and conv.dilation == (1, 1) else conv
