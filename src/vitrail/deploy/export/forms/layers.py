"""Export forms of layers that several families share."""

from __future__ import annotations

from timm.layers import LayerNorm2d
from torch import Tensor
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
