"""Softmax attention, used by all networks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T * scale + mask) v, fused.

    Args:
        q: (..., queries, d); k: (..., keys, d); v: (..., keys, d_v); leading axes as batch and heads.
        mask: broadcastable to (..., queries, keys): boolean (True = may attend) or an additive float of q's dtype.
        scale: default d ** -0.5.

    Returns:
        (..., queries, d_v).
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
