"""PartialFormer: full attention for the tokens that matter, one query for all the others.

Source: Vo, Nguyen, Priadana, Jo, "Efficient Vision Transformers with Partial Attention", ECCV 2024, read through
chapter 5 of X.-T. Vo's thesis, whose equation numbers stand at the lines: Eq. 5.5-5.7 define partial attention, Eq.
5.8-5.10 its cost, which settles where W_O and W_Q act. Widths, depths and heads are reported (Table 5.1); stem, patch
embeddings, head and foreground ratios are the ones that reproduce the reported parameters and FLOPs.

The thesis' names: MMSA is `PartialAttention.mix` with `HeadMlp`, SQA is `PartialAttention.attend_background`, its
ChannelMLP `ChannelMlp`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Optional, cast

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d, NormMlpClassifierHead, trunc_normal_
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import (
    ConvNormAct,
    ConvPositionEncoding,
    Mlp,
    PatchEmbedConv,
    Pointwise,
    attention,
    blocks_per_stage,
    channels_last,
    check_choice,
    check_divides,
    per_stage,
)
from ..layers.tracing import notrace_module, unscripted
from .checkpoints import encoder_of, fit_axes, rename_all, unwrap
from .pyramid import HiddenHeadPyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["PartialFormer"]

EPS = 1e-6
MIXERS = ("partial", "full")
SCORES = ("mean", "l2", "random")

# ---- partial attention (Eq. 5.5-5.7) -------------------------------------------------------------------------------


@notrace_module
class PartialAttention(nn.Module):
    """Partial attention: MMSA over the foreground, SQA over the background.

    The N_F tokens of highest score are the foreground. They and a learnable abstract token attend to each other
    (mixed multi-head self-attention). The abstract token that comes out is the single query over the background, and
    what it finds is added to every background token (single-query attention). Both share W_Q, W_K, W_V.

    No token is sorted or moved but the foreground, and the background is never projected: with one query per head,
    W_K and W_V are folded onto the query's side. Same function as the thesis writes, fewer operations.

    Args:
        dim, num_heads: d and h.
        foreground_ratio: N_F / N as (numerator, denominator).
        max_foreground: upper bound of N_F (None = no bound).
        use_sqa: off = background tokens get nothing from attention.
        use_abstract_token: off = the query is the mean of the foreground's outputs.
        head_mlp: off = plain multi-head attention in MMSA.
        head_expansion: e of the head MLP.
        channel_reduction, channel_reduction_min: r, and the least width of the channel MLP, m = max(min, d // r).
        score: what ranks a token: "mean" of its channels, their "l2" norm, or "random", drawn anew in every forward.
        score_source: rank "raw" tokens or the "norm"alised ones. The channel mean of normalised tokens is rounding
            noise as long as the norm's affine part is untrained.
        proj_scope: W_O on the "foreground" only, as Eq. 5.9 counts it, or on "all" tokens.
        background_residual: the term X_B of Eq. 5.7.
        deterministic: among equal scores the token that comes first wins, on every device.
        attn_drop, proj_drop: dropout of attention weights, and of what leaves W_O and the channel MLP.

    Shapes: x and raw, the tokens after and before the norm, both (B, d, H, W), and optionally padding (B, H, W), True
        where a token is padding -> (B, d, H, W).

    Padding is neither foreground nor a key, and each image has the foreground of its own number of tokens, so that
    tokens get what they would get of the map without its padding. Padding gets what background gets. Of an image that
    is nothing but padding the result is finite and means nothing.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        foreground_ratio: tuple[int, int] = (1, 64),
        max_foreground: int | None = None,
        use_sqa: bool = True,
        use_abstract_token: bool = True,
        head_mlp: bool = True,
        head_expansion: int = 2,
        channel_reduction: int = 32,
        channel_reduction_min: int = 8,
        score: str = "mean",
        score_source: str = "raw",
        proj_scope: str = "foreground",
        background_residual: bool = True,
        qkv_bias: bool = True,
        deterministic: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        check_divides("embed_dims", dim, num_heads, "num_heads")
        check_choice("score", score, SCORES)
        check_choice("score_source", score_source, ("raw", "norm"))
        check_choice("proj_scope", proj_scope, ("foreground", "all"))
        check_ratio("foreground_ratios", foreground_ratio)
        for option, value in (
            ("max_foreground", 1 if max_foreground is None else max_foreground),
            ("head_expansion", head_expansion),
            ("channel_reduction", channel_reduction),
            ("channel_reduction_min", channel_reduction_min),
        ):
            check_positive(option, value)
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.numerator, self.denominator = foreground_ratio
        self.max_foreground = max_foreground
        self.score = score
        self.score_source = score_source
        self.proj_scope = proj_scope
        self.background_residual = background_residual
        self.deterministic = deterministic

        self.abstract_token = nn.Parameter(torch.zeros(1, 1, dim, **dd)) if use_abstract_token else None  # Q_A
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.head_mlp = HeadMlp(num_heads, head_expansion, **dd) if head_mlp else None
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        hidden = max(channel_reduction_min, dim // channel_reduction)
        self.channel_mlp = ChannelMlp(dim, hidden, proj_drop, **dd) if use_sqa else None

    def reset_parameters(self) -> None:
        if self.abstract_token is not None:
            nn.init.zeros_(self.abstract_token)

    def forward(self, x: Tensor, raw: Tensor, padding: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, d); a view of a channels_last map
        index = self.select(raw if self.score_source == "raw" else x, padding)
        rows = index.unsqueeze(-1).expand(-1, -1, tokens.shape[2])  # (B, N_F, d)
        surplus = self.surplus(index, padding)
        q, k, v = self.foreground_qkv(tokens.gather(1, rows))
        foreground, query = self.project_foreground(self.mix(q, k, v, surplus), surplus)  # MMSA (Eq. 5.5)
        # SQA (Eq. 5.6, 5.7)
        out = self.attend_background(tokens, query, self.background_mask(tokens, index, padding, surplus))
        # back to their own positions
        foreground = foreground.to(out.dtype)
        if surplus is None:
            out = out.scatter_(1, rows, foreground)  # in place, since `attend_background` gives a tensor of its own
        else:
            out = out.scatter(1, rows, torch.where(surplus.unsqueeze(-1), out.gather(1, rows), foreground))
        return out.unflatten(1, (x.shape[2], x.shape[3])).permute(0, 3, 1, 2)

    def select(self, source: Tensor, padding: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        """Positions of the foreground (B, N_F), row-major in the map.

        In any order, or with `padding` highest score first; N_F is that of the map with its padding, see `surplus`.
        """
        # Positions carry no gradient. In this memory, the network's own, the channels of every token are summed in one
        # order, so that equal tokens have equal scores wherever they lie.
        source = channels_last(source.detach())
        if self.score == "mean":
            score = source.mean([1], dtype=torch.float32).flatten(1)
        elif self.score == "l2":
            score = source.float().square().sum(1).flatten(1)
        else:
            score = torch.rand(source.shape[0], source.shape[2] * source.shape[3], device=source.device)
        wanted = foreground_count(score.shape[1], self.numerator, self.denominator, self.max_foreground)
        if padding is not None:
            score = score.masked_fill(padding.flatten(1), float("-inf"))
        if self.deterministic:
            return torch.sort(score, stable=True, dim=1, descending=True)[1][:, :wanted]
        return torch.topk(score, wanted, dim=1, sorted=padding is not None)[1]

    def surplus(self, index: Tensor, padding: Optional[Tensor]) -> Optional[Tensor]:  # noqa: UP045 - TorchScript reads this
        """Mask (B, N_F) of the selected positions that are too many for an image, as its padding does not count."""
        if padding is None:
            return None
        own = padding.logical_not().flatten(1).sum(1)
        counts = foreground_counts(own, self.numerator, self.denominator, self.max_foreground)
        return torch.arange(index.shape[1], device=index.device) >= counts.unsqueeze(1)

    def surplus_keys(self, surplus: Tensor) -> Tensor:
        """Mask (B, M) of the keys of MMSA that get no weight."""
        if self.abstract_token is None:
            return surplus
        return torch.cat([torch.zeros_like(surplus[:, :1]), surplus], dim=1)

    def foreground_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K, V of X_F' = [Q_A; X_F], each (B, h, M, d_h), from X_F (B, N_F, d)."""
        if self.abstract_token is not None:
            x = torch.cat([self.abstract_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, surplus: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        """The attention of MMSA, before W_O: (B, h, M, d_h) three times -> (B, M, d); `surplus` keys are masked."""
        keys = None if surplus is None else self.surplus_keys(surplus)
        if self.head_mlp is not None:
            maps = self.head_mlp((q * self.scale) @ k.transpose(-2, -1), keys)  # Eq. 5.5
            x = self.attn_drop(maps) @ v
        else:
            mask = None if keys is None else keys.logical_not()[:, None, None, :]
            x = attention(q, k, v, mask, dropout=self.attn_drop.p if self.training else 0.0)
        return x.transpose(1, 2).flatten(2)

    def project_foreground(self, x: Tensor, surplus: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:  # noqa: UP045 - TorchScript reads this
        """W_O (counted in Eq. 5.9), returns the foreground's output (B, N_F, d) and the single query (B, 1, d)."""
        x = self.proj_drop(self.proj(x))
        if self.abstract_token is not None:
            return x[:, 1:], x[:, :1]
        if surplus is None:
            return x, x.mean(dim=1, keepdim=True)
        own = surplus.logical_not().unsqueeze(-1)
        return x, (x * own).sum(dim=1, keepdim=True) / own.sum(dim=1, keepdim=True)

    def background_mask(
        self,
        tokens: Tensor,
        index: Tensor,
        padding: Optional[Tensor] = None,  # noqa: UP045 - TorchScript reads this
        surplus: Optional[Tensor] = None,  # noqa: UP045 - TorchScript reads this
    ) -> Tensor:
        """Additive mask for the single query's logits (B, N): -1e30 on foreground and padding.

        In float32: adding it promotes half precision. Finite, since a map of one token has no background: the weights
        are then unused, as the only row of the result is the foreground's.
        """
        mask = torch.zeros(tokens.shape[:2], device=tokens.device, dtype=torch.float32)
        if padding is None or surplus is None:
            return mask.scatter(1, index, -1e30)
        mask = mask.scatter(1, index, torch.zeros_like(index, dtype=torch.float32).masked_fill(~surplus, -1e30))
        return mask.masked_fill(padding.flatten(1), -1e30)

    def attend_background(self, tokens: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        """O_B at every position, in a tensor of its own (Eq. 5.7); the foreground's positions are overwritten later."""
        if self.channel_mlp is not None:
            found = self.weighted_values(self.query_weights(tokens, query, mask), tokens)
            shift = self.channel_mlp(found).to(tokens.dtype)  # (B, 1, d), the same for every background token
            out = tokens + shift if self.background_residual else shift.expand_as(tokens).clone()
        else:
            out = tokens.clone() if self.background_residual else torch.zeros_like(tokens)
        return self.proj(out) if self.proj_scope == "all" else out

    def query_weights(self, tokens: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        """Attention of the single query over all tokens (B, h, N), zero on the foreground (Eq. 5.6).

        a_h (W_K x + b_K) = (W_K^T a_h) x + constant over keys: no token is projected, and the bias drops out.
        The query is not projected by W_Q (Eq. 5.10 counts none): it has just left W_O.
        """
        w_k = self.qkv.weight.unflatten(0, (3, self.num_heads, self.head_dim))[1]  # (h, d_h, d)
        a = (query[:, 0] * self.scale).unflatten(-1, (self.num_heads, self.head_dim)).transpose(0, 1)  # (h, B, d_h)
        logits = (a @ w_k).transpose(0, 1) @ tokens.transpose(1, 2)  # (B, h, N)
        return self.attn_drop((logits + mask.unsqueeze(1)).softmax(-1))

    def weighted_values(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """The values under `weights`, W_V (sum of weighted tokens) + b_V: (B, h, N) -> (B, 1, d)."""
        w_v = self.qkv.weight.unflatten(0, (3, self.num_heads, self.head_dim))[2]  # (h, d_h, d)
        z = weights.to(tokens.dtype) @ tokens  # (B, h, d)
        y = (z.transpose(0, 1) @ w_v.transpose(1, 2)).transpose(0, 1).flatten(1).unsqueeze(1)
        bias = self.qkv.bias
        return y if bias is None else y + bias[2 * tokens.shape[2] :]

    @unscripted
    @torch.no_grad()
    def attention_maps(self, x: Tensor, raw: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        """Intermediate values of `forward`, for analysis; same arguments.

        Returns:
            index: (B, N_F) positions of the foreground, row-major.
            softmax: (B, e * h, M, M) maps after the softmax; the abstract token, where there is one, comes first.
            mixed: (B, h, M, M) the maps V is weighted with, after the second layer of the head MLP.
            query: (B, h, N) weights of the single query, zero on the foreground; only with `use_sqa`.
            surplus: (B, N_F) mask of the positions in `index` that are not foreground; only with `padding`.
        """
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        index = self.select(raw if self.score_source == "raw" else x, padding)
        surplus = self.surplus(index, padding)
        q, k, v = self.foreground_qkv(tokens.take_along_dim(index.unsqueeze(-1), 1))
        logits = (q * self.scale) @ k.transpose(-2, -1)
        logits = logits if self.head_mlp is None else self.head_mlp.fc1(logits)
        keys = None if surplus is None else self.surplus_keys(surplus)
        soft = (logits if keys is None else mask_keys(logits, keys, float("-inf"))).softmax(-1)
        mixed = soft if self.head_mlp is None else self.head_mlp.fc2(soft)
        maps = {"index": index, "softmax": soft, "mixed": mixed if keys is None else mask_keys(mixed, keys, 0.0)}
        if self.channel_mlp is not None:
            query = self.project_foreground(self.mix(q, k, v, surplus), surplus)[1]
            maps["query"] = self.query_weights(tokens, query, self.background_mask(tokens, index, padding, surplus))
        return maps if surplus is None else {**maps, "surplus": surplus}


class HeadMlp(nn.Module):
    """Attention maps from logits, with the heads mixed before and after the softmax (Eq. 5.5).

    Args:
        num_heads: h.
        expansion: e; the softmax runs on e * h maps.

    Shapes: logits (B, h, M, M), and a mask (B, M) of keys without weight or None -> maps (B, h, M, M); rows of a
        map need not sum to 1.
    """

    def __init__(self, num_heads: int, expansion: int = 2, device: Any = None, dtype: Any = None):
        super().__init__()
        self.fc1 = Pointwise(num_heads, expansion * num_heads, device=device, dtype=dtype)
        self.fc2 = Pointwise(expansion * num_heads, num_heads, device=device, dtype=dtype)

    def forward(self, logits: Tensor, masked: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        logits = mix_heads(logits, self.fc1.weight, self.fc1.bias)
        if masked is not None:
            logits = mask_keys(logits, masked, float("-inf"))
        maps = mix_heads(logits.softmax(-1), self.fc2.weight, self.fc2.bias)
        return maps if masked is None else mask_keys(maps, masked, 0.0)  # the second bias reaches every key


def mix_heads(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045 - TorchScript reads this
    """A 1x1 convolution over the heads of attention maps: (B, h, M, M), (g, h, 1, 1), (g,) -> (B, g, M, M).

    As a matrix product, up to 15 times faster: a convolution with channels_last weights converts the maps twice.
    """
    assert bias is not None
    weights = weight.flatten(1).expand(x.shape[0], -1, -1)
    return torch.baddbmm(bias[:, None], weights, x.flatten(2)).unflatten(2, (x.shape[2], x.shape[3]))


class ChannelMlp(nn.Sequential):
    """Channel MLP of the background, instead of an output projection: d -> m, LayerNorm, ReLU, m -> d (Eq. 5.7)."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(dim, hidden, **dd)
        self.norm = nn.LayerNorm(hidden, eps=EPS, **dd)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, dim, **dd)
        self.drop = nn.Dropout(drop)


# ---- foreground of images of different sizes -----------------------------------------------------------------------


def foreground_count(tokens: int, numerator: int, denominator: int, limit: int | None = None) -> int:
    """N_F: the given share of the tokens, at least one, leaving one for the background where there are two.

    Integer arithmetic only: a float product would be frozen into exported graphs.
    """
    count = tokens - 1 if numerator == denominator else tokens * numerator // denominator
    if limit is not None:
        if torch.jit.is_scripting():  # noqa: SIM108 - TorchScript leaves a branch out only in this form
            count = min(count, limit)
        else:
            count = torch.sym_min(count, limit)  # pyright: ignore[reportAssignmentType]
    # at least 1, without a maximum of sizes, which not every exporter has
    return count + 1 // (count + 1)  # pyright: ignore[reportReturnType]


def foreground_counts(tokens: Tensor, numerator: int, denominator: int, limit: Optional[int] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
    """`foreground_count` of each of several numbers of tokens (B,); 1 also where there are none."""
    if numerator == denominator:
        counts = tokens - 1
    else:
        counts = torch.div(tokens * numerator, denominator, rounding_mode="floor")
    if limit is not None:
        counts = counts.clamp(max=limit)
    return counts.clamp(min=1)


def mask_keys(maps: Tensor, masked: Tensor, value: float) -> Tensor:
    """Logits or weights (B, h, queries, keys) filled with a value at the keys marked in `masked` (B, keys)."""
    return maps.masked_fill(masked[:, None, None, :], value)


# ---- full attention, to compare with -------------------------------------------------------------------------------


@notrace_module
class FullAttention(nn.Module):
    """Plain multi-head self-attention over all tokens, to compare with; (B, d, H, W) -> (B, d, H, W).

    Tokens marked in `padding` (B, H, W) are no keys.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        check_divides("embed_dims", dim, num_heads, "num_heads")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attn_drop = attn_drop
        self.qkv = Pointwise(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = Pointwise(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, raw: Tensor, padding: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        qkv = self.qkv(x).permute(0, 2, 3, 1).flatten(1, 2).unflatten(-1, (3, self.num_heads, self.head_dim))
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, h, N, d_h)
        mask = None if padding is None else padding.logical_not().flatten(1)[:, None, None, :]
        out = attention(qkv[0], qkv[1], qkv[2], mask, dropout=self.attn_drop if self.training else 0.0)
        out = out.transpose(1, 2).flatten(2).unflatten(1, (x.shape[2], x.shape[3]))
        return self.proj_drop(self.proj(out.permute(0, 3, 1, 2)))


# ---- block (Fig. 5.3) ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Position encoding, token mixer, MLP (Fig. 5.3); (B, d, H, W), padding (B, H, W) or None -> (B, d, H, W).

    Args:
        attn: a module of (normalised, raw) maps and of the padding where there is any, or None for no attention.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module | None,
        mlp_ratio: float = 4.0,
        mlp_dwconv: bool = False,
        cpe_kernel: int = 7,
        layer_scale_init: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        scale = nn.Identity if layer_scale_init is None else partial(LayerScale2d, dim, layer_scale_init, **dd)
        self.cpe = ConvPositionEncoding(dim, cpe_kernel, **dd)
        self.attn = attn
        if attn is not None:
            self.norm1 = LayerNorm2d(dim, eps=EPS, **dd)
            self.ls1 = scale()
        self.norm2 = LayerNorm2d(dim, eps=EPS, **dd)
        self.mlp = Mlp(dim, mlp_ratio, mlp_dwconv, drop=proj_drop, **dd)
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, padding: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        x = self.cpe(x)
        if self.attn is not None:
            normed = self.norm1(x)
            mixed = self.attn(normed, x) if padding is None else self.attn(normed, x, padding)
            x = x + self.drop_path(self.ls1(mixed))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


# ---- stage and head ------------------------------------------------------------------------------------------------


class PartialStage(Stage):
    """A stage whose blocks know which tokens are padding.

    Args:
        stride: of its map.
        blocks, downsample: see `Stage`.

    Shapes: (B, C, H, W), the images' padding mask or None -> (B, C', H', W').
    """

    def __init__(self, stride: int, blocks: Sequence[nn.Module], downsample: nn.Module | None = None):
        super().__init__(blocks, downsample)
        self.stride = stride

    def forward(self, x: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        """Run the stage, recomputing the blocks in backward when checkpointing is on."""
        x = self.downsample(x)
        padding = None if padding_mask is None else padding_of_tokens(padding_mask, self.stride)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([partial(block, padding=padding) for block in self.blocks], x)
        for block in self.blocks:
            x = block(x, padding)
        return x


def padding_of_tokens(mask: Tensor, stride: int) -> Tensor:
    """Mask (B, ceil(H / stride), ceil(W / stride)) of the tokens all of whose pixels are padding, from (B, H, W)."""
    content = mask.logical_not().float().unsqueeze(1)
    return F.max_pool2d(content, stride, stride, ceil_mode=True).squeeze(1) == 0


def check_padding_mask(images: Tensor, mask: Tensor) -> None:
    """Raise `ValueError` unless `mask` is boolean and has the size of the images."""
    wanted = (images.shape[0], *images.shape[2:])
    if mask.dtype != torch.bool or tuple(mask.shape) != tuple(wanted):
        raise ValueError(
            f"padding_mask of {mask.dtype} and shape {tuple(mask.shape)} is not allowed; give torch.bool of shape "
            f"{tuple(wanted)}, True where a pixel is padding"
        )


class PooledHead(NormMlpClassifierHead):
    """Pooling, LayerNorm, linear, GELU, dropout, linear classifier: timm's head with this network's choices.

    Args: as `HiddenHead`'s. Without pooling, and with a classifier or not, it works on every pixel of the map.
    """

    def __init__(
        self,
        in_features: int,
        hidden_size: int,
        num_classes: int,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        norm = partial(LayerNorm2d, eps=EPS)
        super().__init__(
            in_features,
            num_classes,
            hidden_size=hidden_size,
            pool_type=global_pool,
            drop_rate=drop_rate,
            norm_layer=norm,
            act_layer="gelu",
            device=device,
            dtype=dtype,
        )

    def drop_hidden(self) -> None:
        """Remove norm, hidden layer and classifier."""
        self.reset(0, "", reset_other=True)


# ---- network (Table 5.1) -------------------------------------------------------------------------------------------


class PartialFormer(HiddenHeadPyramid):
    """The network of Table 5.1.

    Args:
        num_heads: per stage; 0 = stage without attention.
        mixers: "partial" or "full" (plain attention over all tokens), one name or one per stage.
        foreground_ratios: N_F / N per stage as (numerator, denominator).
        head_mlp_init: "identity" starts as plain multi-head attention, "normal" like any linear layer.
        cpe_kernel, mlp_dwconv: 3 and True are the other reading with the same number of parameters.
        layer_scale_init: None = no layer scale.
        head_hidden_size: width of the classifier's hidden layer.
        proj_drop_rate, attn_drop_rate: dropout in attention and MLP.
        out_norms: a LayerNorm on every pyramid output.

    The other options are `PartialAttention`'s.
    """

    no_decay = ("abstract_token",)
    head_type = PooledHead

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 2, 6, 6),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratios: float | Sequence[float] = 4.0,
        mixers: str | Sequence[str] = "partial",
        foreground_ratios: Sequence[Sequence[int]] = ((1, 64), (1, 16), (1, 8), (2, 5)),
        max_foreground: int | None = None,
        use_sqa: bool = True,
        use_abstract_token: bool = True,
        head_mlp: bool = True,
        head_expansion: int = 2,
        head_mlp_init: str = "identity",
        channel_reduction: int = 32,
        channel_reduction_min: int = 8,
        score: str = "mean",
        score_source: str = "raw",
        proj_scope: str = "foreground",
        background_residual: bool = True,
        cpe_kernel: int = 7,
        mlp_dwconv: bool = False,
        qkv_bias: bool = True,
        layer_scale_init: float | None = None,
        deterministic: bool = False,
        head_hidden_size: int = 1280,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        embed_dims, depths = per_stage("embed_dims", list(embed_dims)), blocks_per_stage(depths)
        super().__init__(embed_dims, num_classes, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate)
        check_choice("head_mlp_init", head_mlp_init, ("identity", "normal"))
        check_divides("embed_dims", embed_dims[0], 2, "the ratio of the stem's widths")
        if cpe_kernel < 1 or cpe_kernel % 2 == 0:
            raise ValueError(f"cpe_kernel={cpe_kernel!r} is not allowed; give a positive odd number")
        check_positive("head_hidden_size", head_hidden_size)
        self.head_mlp_init = head_mlp_init
        self.head_hidden_size = head_hidden_size
        dd = {"device": device, "dtype": dtype}
        drops = {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
        mixer = partial(
            PartialAttention,
            max_foreground=max_foreground,
            use_sqa=use_sqa,
            use_abstract_token=use_abstract_token,
            head_mlp=head_mlp,
            head_expansion=head_expansion,
            channel_reduction=channel_reduction,
            channel_reduction_min=channel_reduction_min,
            score=score,
            score_source=score_source,
            proj_scope=proj_scope,
            background_residual=background_residual,
            qkv_bias=qkv_bias,
            deterministic=deterministic,
            **drops,
            **dd,
        )

        heads, ratios = per_stage("num_heads", num_heads), per_stage("mlp_ratios", mlp_ratios)
        names, shares = per_stage("mixers", mixers), per_stage("foreground_ratios", list(foreground_ratios))
        drop_paths = drop_path_schedule(drop_path_rate, depths)

        def make_mixer(i: int) -> nn.Module | None:
            check_choice("mixers", names[i], MIXERS)
            if heads[i] == 0:
                return None
            if names[i] == "full":
                return FullAttention(embed_dims[i], heads[i], qkv_bias, **drops, **dd)
            return mixer(embed_dims[i], heads[i], shares[i])

        def make_stage(i: int) -> Stage:
            dim = embed_dims[i]
            block = partial(
                Block,
                dim,
                mlp_ratio=ratios[i],
                mlp_dwconv=mlp_dwconv,
                cpe_kernel=cpe_kernel,
                layer_scale_init=layer_scale_init,
                proj_drop=proj_drop_rate,
                **dd,
            )
            blocks = [block(make_mixer(i), drop_path=rate) for rate in drop_paths[i]]
            downsample = PatchEmbedConv(embed_dims[i - 1], dim, 3, 2, norm_eps=EPS, **dd) if i else None
            return PartialStage(self.feature_info[i]["reduction"], blocks, downsample)

        half, width = embed_dims[0] // 2, embed_dims[0]
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", ConvNormAct(in_chans, half, stride=2, **dd))
        self.stem.add_module("conv2", ConvNormAct(half, half, **dd))
        self.stem.add_module("conv3", ConvNormAct(half, width, stride=2, act=None, **dd))
        self.stages = nn.Sequential(*[make_stage(i) for i in range(4)])
        self.finish(None, global_pool, partial(LayerNorm2d, eps=EPS, **dd) if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Linear layers and Q_A truncated normal 0.02, convolutions normal sqrt(2 / fan out), biases zero."""
        if isinstance(module, PartialAttention) and module.abstract_token is not None:
            trunc_normal_(module.abstract_token, std=0.02)
        elif isinstance(module, nn.Linear | Pointwise) or (isinstance(module, nn.Conv2d) and name.startswith("head")):
            trunc_normal_(module.weight, std=0.02)
            if ".head_mlp." in name and self.head_mlp_init == "identity":
                average_of_copies_(module.weight)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        """(B, in_chans, H, W) -> (B, num_features, H/32, W/32).

        Args:
            padding_mask: (B, H, W), True where a pixel is padding, which is never foreground and never attended to;
                None = no padding. Convolutions read padding in any case.
        """
        if padding_mask is not None and not torch.jit.is_scripting():
            check_padding_mask(x, padding_mask)
        x = self.stem(channels_last(x))
        for stage in self.stages:
            x = stage(x, padding_mask)
        return self.norm(x)

    @unscripted
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        padding_mask: Tensor | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """See `Pyramid.forward_intermediates`; `padding_mask` as of `forward_features`."""
        if padding_mask is not None:
            check_padding_mask(x, padding_mask)
        return self._intermediates(
            x,
            indices,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
            context=(padding_mask,),
        )

    # ---- analysis --------------------------------------------------------------------------------------------------

    @unscripted
    def attention_maps(self, x: Tensor, padding_mask: Tensor | None = None) -> list[dict[str, Tensor]]:
        """`PartialAttention.attention_maps` of every block with partial attention, first to last, for an image batch.

        With score="random" the maps belong to a draw of their own.
        """
        maps: list[dict[str, Tensor]] = []
        handles = [
            module.register_forward_hook(
                lambda attn, inputs, _: maps.append(cast(PartialAttention, attn).attention_maps(*inputs))
            )
            for module in self.modules()
            if isinstance(module, PartialAttention)
        ]
        try:
            self.forward_features(x, padding_mask)
        finally:
            for handle in handles:
                handle.remove()
        return maps


def average_of_copies_(weight: Tensor) -> None:
    """Fill (e * h, h, 1, 1) with e copies of the identity, or (h, e * h, 1, 1) with their average."""
    out, inputs = weight.shape[:2]
    heads = min(out, inputs)
    eye = torch.eye(heads, device=weight.device, dtype=weight.dtype).repeat(out // heads, inputs // heads)
    with torch.no_grad():
        weight.copy_((eye * (heads / inputs)).view_as(weight))


def check_positive(option: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{option}={value!r} is not allowed; give a whole number of at least 1")


def check_ratio(option: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is (numerator, denominator) of a share above 0 and up to 1."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int) for n in value)
    if not is_pair or not 0 < value[0] <= value[1]:
        raise ValueError(f"{option}: {value!r} is not allowed; give (numerator, denominator) of a share up to 1")


# ---- checkpoints ---------------------------------------------------------------------------------------------------

#: names of an implementation on token sequences, and ours
LAYOUT = (
    (r"(\.blocks\.\d+\.cpe)\.(weight|bias)$", r"\1.conv.\2"),
    (r"(\.blocks\.\d+)\.mixer\.", r"\1.attn."),
    (r"\.attn\.token$", ".attn.abstract_token"),
    (r"\.attn\.head_fc([12])\.", r".attn.head_mlp.fc\1."),
    (r"(\.downsample)\.conv\.", r"\1.conv1."),
    (r"^stem\.conv([123])\.(weight|bias)$", r"stem.conv\1.conv.\2"),
    (r"^stem\.bn([123])\.", r"stem.conv\1.norm."),
    (r"^head\.hidden\.", "head.pre_logits.fc."),
    *((rf"^norm{i + 1}\.", f"out_norms.{i}.") for i in range(4)),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A state dict for `PartialFormer`, from its own or from one of token sequences, with linear layers and `mixer`.

    Wrappers are taken off; our own state dicts pass unchanged.
    """
    return fit_axes(rename_all(encoder_of(unwrap(state_dict, model)), LAYOUT), model)


# ---- variants (Table 5.1) ------------------------------------------------------------------------------------------

VARIANTS = {
    "partialformer_b0": {"embed_dims": (24, 48, 96, 192), "depths": (2, 2, 6, 6), "num_heads": (2, 4, 8, 16)},
    "partialformer_b1": {"embed_dims": (32, 64, 128, 256), "depths": (2, 2, 6, 6), "num_heads": (2, 4, 8, 16)},
    "partialformer_b2": {"embed_dims": (48, 96, 192, 384), "depths": (2, 2, 8, 8), "num_heads": (3, 6, 12, 24)},
    "partialformer_b3": {"embed_dims": (64, 128, 256, 512), "depths": (2, 2, 8, 8), "num_heads": (4, 8, 16, 32)},
    "partialformer_b4": {"embed_dims": (96, 192, 384, 768), "depths": (2, 2, 8, 6), "num_heads": (6, 12, 24, 48)},
}

_cfg = partial(default_cfg, first_conv="stem.conv1.conv", classifier="head.fc")
default_cfgs = generate_default_cfgs({name: _cfg() for name in VARIANTS})


def _partialformer(variant: str, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    return build(
        PartialFormer, variant, pretrained, VARIANTS[variant], overrides=overrides, filter_fn=checkpoint_filter_fn
    )


@register_model
def partialformer_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """5.3 M parameters, 0.41 GMAC at 224 x 224 (0.35 executed)."""
    return _partialformer("partialformer_b0", pretrained, kwargs)


@register_model
def partialformer_b1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """8.2 M parameters, 0.71 GMAC at 224 x 224 (0.6 executed)."""
    return _partialformer("partialformer_b1", pretrained, kwargs)


@register_model
def partialformer_b2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """21.1 M parameters, 1.91 GMAC at 224 x 224 (1.58 executed)."""
    return _partialformer("partialformer_b2", pretrained, kwargs)


@register_model
def partialformer_b3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """36.1 M parameters, 3.35 GMAC at 224 x 224 (2.78 executed)."""
    return _partialformer("partialformer_b3", pretrained, kwargs)


@register_model
def partialformer_b4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """64.5 M parameters, 6.8 GMAC at 224 x 224 (5.61 executed)."""
    return _partialformer("partialformer_b4", pretrained, kwargs)
