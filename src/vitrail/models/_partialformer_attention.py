"""The token mixers of PartialFormer: partial attention and, to compare with, full attention."""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..layers import Pointwise, attention, channels_last, check_choice, check_divides
from ..layers.tracing import notrace_module, unscripted

EPS = 1e-6
SCORES = ("mean", "l2", "random")


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
    # 1 in place of 0; not every exporter has a maximum of sizes
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


def without_keys(maps: Tensor, spare: Tensor, value: float) -> Tensor:
    """Logits or weights (B, h, queries, keys) with one value at the keys that `spare` (B, keys) marks."""
    return maps.masked_fill(spare[:, None, None, :], value)


class HeadMlp(nn.Module):
    """Attention maps from logits, with the heads mixed before and after the softmax (Eq. 5.5).

    Args:
        num_heads: h.
        expansion: e; the softmax runs on e * h maps.

    Shapes: logits (B, h, M, M), and keys (B, M) that get no weight or None -> maps (B, h, M, M); rows of a map need
        not sum to 1.
    """

    def __init__(self, num_heads: int, expansion: int = 2, device: Any = None, dtype: Any = None):
        super().__init__()
        self.fc1 = Pointwise(num_heads, expansion * num_heads, device=device, dtype=dtype)
        self.fc2 = Pointwise(expansion * num_heads, num_heads, device=device, dtype=dtype)

    def forward(self, logits: Tensor, spare: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        logits = weigh_heads(logits, self.fc1.weight, self.fc1.bias)
        if spare is not None:
            logits = without_keys(logits, spare, float("-inf"))
        maps = weigh_heads(logits.softmax(-1), self.fc2.weight, self.fc2.bias)
        return maps if spare is None else without_keys(maps, spare, 0.0)  # the second bias reaches every key


def weigh_heads(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:  # noqa: UP045 - TorchScript reads this
    """A 1x1 convolution over the heads of attention maps: (B, h, M, M), (g, h, 1, 1), (g,) -> (B, g, M, M).

    As a matrix product, up to 15 times faster: a convolution with its weights channels last copies the maps to and fro.
    """
    assert bias is not None
    weights = weight.flatten(1).expand(x.shape[0], -1, -1)
    return torch.baddbmm(bias[:, None], weights, x.flatten(2)).unflatten(2, (x.shape[2], x.shape[3]))


class ChannelMlp(nn.Sequential):
    """What the background gets in place of an output projection: d -> m, LayerNorm, ReLU, m -> d (Eq. 5.7)."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(dim, hidden, **dd)
        self.norm = nn.LayerNorm(hidden, eps=EPS, **dd)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, dim, **dd)
        self.drop = nn.Dropout(drop)


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
        proj_scope: W_O on the "foreground" only (Eq. 5.9) or on "all" tokens.
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
        spare = self.spare(index, padding)
        q, k, v = self.foreground_qkv(tokens.gather(1, rows))
        foreground, query = self.leave_mmsa(self.mix(q, k, v, spare), spare)
        out = self.background(tokens, query, self.no_keys(tokens, index, padding, spare))
        # back to their own positions
        foreground = foreground.to(out.dtype)
        if spare is None:
            out = out.scatter_(1, rows, foreground)  # in place, since `background` gives a tensor of its own
        else:
            out = out.scatter(1, rows, torch.where(spare.unsqueeze(-1), out.gather(1, rows), foreground))
        return out.unflatten(1, (x.shape[2], x.shape[3])).permute(0, 3, 1, 2)

    def select(self, source: Tensor, padding: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        """Positions of the foreground (B, N_F), row-major in the map.

        In no particular order, or with `padding` best first; N_F is that of the whole map, see `spare`.
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

    def spare(self, index: Tensor, padding: Optional[Tensor]) -> Optional[Tensor]:  # noqa: UP045 - TorchScript reads this
        """Which of the selected positions (B, N_F) are not foreground: an image's own tokens ask for fewer."""
        if padding is None:
            return None
        own = padding.logical_not().flatten(1).sum(1)
        counts = foreground_counts(own, self.numerator, self.denominator, self.max_foreground)
        return torch.arange(index.shape[1], device=index.device) >= counts.unsqueeze(1)

    def spare_keys(self, spare: Tensor) -> Tensor:
        """Which keys of MMSA get no weight (B, M)."""
        if self.abstract_token is None:
            return spare
        return torch.cat([torch.zeros_like(spare[:, :1]), spare], dim=1)

    def foreground_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K, V of X_F' = [Q_A; X_F], each (B, h, M, d_h), from X_F (B, N_F, d)."""
        if self.abstract_token is not None:
            x = torch.cat([self.abstract_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, spare: Optional[Tensor] = None) -> Tensor:  # noqa: UP045 - TorchScript reads this
        """The attention of MMSA, before W_O: (B, h, M, d_h) three times -> (B, M, d); `spare` rows are no keys."""
        keys = None if spare is None else self.spare_keys(spare)
        if self.head_mlp is not None:
            maps = self.head_mlp((q * self.scale) @ k.transpose(-2, -1), keys)  # Eq. 5.5
            x = self.attn_drop(maps) @ v
        else:
            mask = None if keys is None else keys.logical_not()[:, None, None, :]
            x = attention(q, k, v, mask, dropout=self.attn_drop.p if self.training else 0.0)
        return x.transpose(1, 2).flatten(2)

    def leave_mmsa(self, x: Tensor, spare: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:  # noqa: UP045 - TorchScript reads this
        """W_O, then the foreground's output (B, N_F, d) and the single query (B, 1, d) apart (Eq. 5.9)."""
        x = self.proj_drop(self.proj(x))
        if self.abstract_token is not None:
            return x[:, 1:], x[:, :1]
        if spare is None:
            return x, x.mean(dim=1, keepdim=True)
        own = spare.logical_not().unsqueeze(-1)
        return x, (x * own).sum(dim=1, keepdim=True) / own.sum(dim=1, keepdim=True)

    def no_keys(
        self,
        tokens: Tensor,
        index: Tensor,
        padding: Optional[Tensor] = None,  # noqa: UP045 - TorchScript reads this
        spare: Optional[Tensor] = None,  # noqa: UP045 - TorchScript reads this
    ) -> Tensor:
        """What is added to the single query's logits (B, N): much below zero on foreground and padding.

        In float32: adding it promotes half precision. Finite, since a map of one token has no background: its weights
        mean nothing then, and the only row of the result is the foreground's.
        """
        mask = torch.zeros(tokens.shape[:2], device=tokens.device, dtype=torch.float32)
        if padding is None or spare is None:
            return mask.scatter(1, index, -1e30)
        mask = mask.scatter(1, index, torch.zeros_like(index, dtype=torch.float32).masked_fill(~spare, -1e30))
        return mask.masked_fill(padding.flatten(1), -1e30)

    def background(self, tokens: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        """O_B at every position, in a tensor of its own (Eq. 5.7); the foreground's positions are overwritten later."""
        if self.channel_mlp is not None:
            found = self.gather_values(self.query_weights(tokens, query, mask), tokens)
            shift = self.channel_mlp(found).to(tokens.dtype)  # (B, 1, d), the same for every background token
            out = tokens + shift if self.background_residual else shift.expand_as(tokens).clone()
        else:
            out = tokens.clone() if self.background_residual else torch.zeros_like(tokens)
        return self.proj(out) if self.proj_scope == "all" else out

    def query_weights(self, tokens: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        """Attention of the single query over all tokens (B, h, N), zero on the foreground (Eq. 5.6); see `no_keys`.

        a_h (W_K x + b_K) = (W_K^T a_h) x + constant over keys: no token is projected, and the bias drops out.
        The query is not projected by W_Q: it has just left W_O.
        """
        w_k = self.qkv.weight.unflatten(0, (3, self.num_heads, self.head_dim))[1]  # (h, d_h, d)
        a = (query[:, 0] * self.scale).unflatten(-1, (self.num_heads, self.head_dim)).transpose(0, 1)  # (h, B, d_h)
        logits = (a @ w_k).transpose(0, 1) @ tokens.transpose(1, 2)  # (B, h, N)
        return self.attn_drop((logits + mask.unsqueeze(1)).softmax(-1))

    def gather_values(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """The values under `weights`, W_V (sum of weighted tokens) + b_V: (B, h, N) -> (B, 1, d)."""
        w_v = self.qkv.weight.unflatten(0, (3, self.num_heads, self.head_dim))[2]  # (h, d_h, d)
        z = weights.to(tokens.dtype) @ tokens  # (B, h, d)
        y = (z.transpose(0, 1) @ w_v.transpose(1, 2)).transpose(0, 1).flatten(1).unsqueeze(1)
        bias = self.qkv.bias
        return y if bias is None else y + bias[2 * tokens.shape[2] :]

    @unscripted
    def saved_macs(self, height: int, width: int) -> dict[str, int]:
        """Multiply-adds of the thesis' form that `forward` leaves out: queries, keys and values of the background.

        `forward` pays for that with two products with the weights, and attends in the width of the tokens.
        """
        if self.channel_mlp is None:
            return {}
        tokens, dim = height * width, self.head_dim * self.num_heads
        background = tokens - foreground_count(tokens, self.numerator, self.denominator, self.max_foreground)
        return {
            "linear": 3 * background * dim**2 - 2 * dim**2,
            "matmul": 2 * background * dim - 2 * self.num_heads * tokens * dim,
        }

    @unscripted
    @torch.no_grad()
    def attention_maps(self, x: Tensor, raw: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        """What `forward` computes on the way, for analysis; same arguments.

        Returns:
            index: (B, N_F) positions of the foreground, row-major.
            softmax: (B, e * h, M, M) maps after the softmax; the abstract token, where there is one, comes first.
            mixed: (B, h, M, M) the maps V is weighted with, after the second layer of the head MLP.
            query: (B, h, N) weights of the single query, zero on the foreground; only with `use_sqa`.
            spare: (B, N_F) positions in `index` that are no foreground; only with `padding`.
        """
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        index = self.select(raw if self.score_source == "raw" else x, padding)
        spare = self.spare(index, padding)
        q, k, v = self.foreground_qkv(tokens.take_along_dim(index.unsqueeze(-1), 1))
        logits = (q * self.scale) @ k.transpose(-2, -1)
        logits = logits if self.head_mlp is None else self.head_mlp.fc1(logits)
        keys = None if spare is None else self.spare_keys(spare)
        soft = (logits if keys is None else without_keys(logits, keys, float("-inf"))).softmax(-1)
        mixed = soft if self.head_mlp is None else self.head_mlp.fc2(soft)
        maps = {"index": index, "softmax": soft, "mixed": mixed if keys is None else without_keys(mixed, keys, 0.0)}
        if self.channel_mlp is not None:
            query = self.leave_mmsa(self.mix(q, k, v, spare), spare)[1]
            maps["query"] = self.query_weights(tokens, query, self.no_keys(tokens, index, padding, spare))
        return maps if spare is None else {**maps, "spare": spare}


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


def check_positive(option: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{option}={value!r} is not allowed; give a whole number of at least 1")


def check_ratio(option: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is (numerator, denominator) of a share above 0 and up to 1."""
    whole = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int) for n in value)
    if not whole or not 0 < value[0] <= value[1]:
        raise ValueError(f"{option}: {value!r} is not allowed; give (numerator, denominator) of a share up to 1")
