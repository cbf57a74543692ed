"""Export forms of layers that several families share."""

from __future__ import annotations

from timm.layers import LayerNorm2d
from torch import Tensor
from torch.nn import functional as F

from ....layers.rebuild import rebuild


class TokenLayerNorm(LayerNorm2d):
    """`LayerNorm2d` on tokens (B, H * W, C).

    OpenVINO takes a map (B, H, W, C) for one of NCHW and reorders it in memory before the norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        tokens = F.layer_norm(tokens, self.normalized_shape, self.weight, self.bias, eps=self.eps)
        return tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def token_layer_norm(layer: LayerNorm2d) -> TokenLayerNorm:
    """The norm on tokens."""
    return rebuild(layer, TokenLayerNorm)
