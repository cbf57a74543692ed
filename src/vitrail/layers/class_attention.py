"""Class attention: the last blocks update the class token only, reading all tokens (CaiT; here as in VOLO).

Works on (B, 1 + N, C) tokens, the class token first.
"""

from typing import Any

import torch
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from .attention import attention
from .checks import check_divides


class ClassAttention(nn.Module):
    """Attention whose only query is the class token; keys and values come from all tokens, the class token included.

    Shapes: (B, 1 + N, C) -> (B, 1, C).
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, device: Any = None, dtype: Any = None):
        super().__init__()
        check_divides("embed_dims", dim, num_heads, "num_heads")
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from the class token and project."""
        batch, tokens, dim = x.shape
        head_dim = dim // self.num_heads
        q = self.q(x[:, :1]).reshape(batch, 1, self.num_heads, head_dim).transpose(1, 2)  # (B, heads, 1, d)
        kv = self.kv(x).reshape(batch, tokens, 2, self.num_heads, head_dim).permute(2, 0, 3, 1, 4)
        x = attention(q, kv[0], kv[1])
        return self.proj(x.transpose(1, 2).reshape(batch, 1, dim))


class ClassAttentionBlock(nn.Module):
    """Class attention and MLP, both residual on the class token; the other tokens pass unchanged.

    Shapes: (B, 1 + N, C) -> (B, 1 + N, C).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        norm_eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = ClassAttention(dim, num_heads, qkv_bias, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens with an updated class token."""
        token = x[:, :1]
        token = token + self.attn(self.norm1(x))
        token = token + self.mlp(self.norm2(token))
        return torch.cat([token, x[:, 1:]], dim=1)


class ClassAttentionPost(nn.Module):
    """Post stage between last map and classifiers: class token, class-attention blocks, LayerNorm on all tokens.

    Shapes: (B, C, H, W) -> class token (B, C), map tokens in row-major order (B, H * W, C).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        depth: int = 2,
        qkv_bias: bool = False,
        norm_eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self.blocks = nn.Sequential(
            *(
                ClassAttentionBlock(dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, norm_eps=norm_eps, **dd)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The class token: truncated normal, standard deviation 0.02."""
        trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class token and map tokens, normalised."""
        x = x.flatten(2).transpose(1, 2)  # (B, N, C)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x))
        return x[:, 0], x[:, 1:]
