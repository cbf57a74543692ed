"""LVT: convolutional self-attention at the finest scale, recursive atrous self-attention at the others.

C. Yang, Y. Wang, J. Zhang, H. Zhang, Z. Wei, Z. Lin, A. Yuille, "Lite Vision Transformer with Enhanced Self-Attention",
CVPR 2022 (arXiv 2112.10809). Sections, equations and tables named below are that paper's. Where the paper and the
authors' released network differ, the released network is followed, and a comment says so.

The paper's names: CSA is `CSA`, RASA is `RASA`, and ASA, one pass of it, is `RASA.attend`.

The authors' weights, which `checkpoint_filter_fn` converts, come with a licence for non-commercial research only.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, List, cast  # noqa: UP035 - TorchScript reads this spelling

import torch
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import (
    Mlp,
    PatchEmbedConv,
    Pointwise,
    attention,
    blocks_per_stage,
    check_choice,
    check_divides,
    fold3x3,
    per_stage,
    round_up,
    unfold3x3,
)
from ..layers.class_attention import ClassAttentionPost
from ..layers.tracing import notrace_module
from .checkpoints import encoder_of, fit_shapes, renamed, unwrap
from .pyramid import ClassTokenPyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["LVT", "lvt", "lvt_r1", "lvt_r3", "lvt_r4", "lvt_scaled"]

EPS = 1e-5  # of every LayerNorm


# ---- Convolutional self-attention (CSA, Sec. 3.1, Eq. 3) ------------------------------------------------------------


@notrace_module
class CSA(nn.Module):
    """Convolutional self-attention: 3x3 windows at stride 2, each position projected by its own matrix (Eq. 3).

    In every window nine weighted sums of the nine projected pixels are formed, with weights predicted from the window's
    pixels (no query-key product), and added back to the nine positions. With one value matrix for all positions it is
    the outlook attention of VOLO; with constant weights and the centre's sum alone, a 3x3 convolution (Table 1).

    Args:
        shared_value: one value projection for all positions (outlook attention).
        value_bias: bias of that shared projection; those of one position have none.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        shared_value: bool = False,
        value_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.shared_value = shared_value
        self.logits = Pointwise(dim, 81 * num_heads, **dd)  # rows: head, output position, input position
        self.value = Pointwise(dim, dim, bias=value_bias, **dd) if shared_value else PositionProjection(dim, **dd)
        self.proj = Pointwise(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        heads = self.num_heads

        # Eq. 3, weights of the input positions, predicted from the 2x2 mean. At an odd border it is the mean of the
        # pixels that exist, since there is no padding; `count_include_pad=False` avoids a wrong gradient at that border
        # under torch.compile (pytorch issue 198119).
        pooled = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        rows, cols = pooled.shape[2], pooled.shape[3]
        logits = self.logits(pooled).permute(0, 2, 3, 1).reshape(-1, heads * 9, 9) * self.scale
        # the softmax runs over a leading axis: over a last one of 9 it does not vectorise on CPU
        attn = logits.transpose(1, 2).softmax(dim=1)  # (B*h*w, 9 in, heads * 9 out)
        attn = attn.unflatten(2, (heads, 9)).permute(0, 2, 3, 1)  # (B*h*w, heads, 9 out, 9 in)

        # Eq. 3, values: each position by its own matrix
        if self.shared_value:
            value = unfold3x3(self.value(x).permute(0, 2, 3, 1)).flatten(0, 2).transpose(0, 1)
        else:
            value = self.value(unfold3x3(x.permute(0, 2, 3, 1)))
        value = value.unflatten(2, (heads, dim // heads)).permute(1, 2, 0, 3)  # (B*h*w, heads, 9 in, d)

        # Eq. 3, weighted sums, added where windows overlap
        out = (attn @ value).transpose(1, 2).reshape(batch, rows, cols, 9, dim)
        return self.proj(fold3x3(out, height, width).permute(0, 3, 1, 2))


class PositionProjection(nn.Module):
    """A matrix of its own for each position of a 3x3 window, as in a convolution: (B, h, w, 9, C) -> (9, B*h*w, C)."""

    def __init__(self, dim: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(9, dim, dim, device=device, dtype=dtype))  # (position, out, in)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation sqrt(2 / (9 C))."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / (9 * self.weight.shape[1])))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.flatten(0, 2).transpose(0, 1), self.weight.transpose(1, 2))


# ---- Recursive atrous self-attention (RASA, Sec. 3.2, Eq. 8) --------------------------------------------------------


@notrace_module
class RASA(nn.Module):
    """Recursive atrous self-attention: global attention whose query sees several dilations, applied R times (Eq. 8).

    Args:
        sr_ratio: side s of the s x s cells that keys and values are reduced to; 0 or 1 = no reduction.
        atrous_rates: dilations of the query's depthwise convolution, which share one kernel (None or () = plain query).
        recursions: how often the attention runs, with the same weights.
        state: what enters a recursion: "accumulate" = the input plus all outputs so far (the authors' network),
            "previous" = the last two of them (Eq. 8); the same for up to two recursions.
        output_act: SiLU on the output of every pass when there are several (the authors' network, not in Eq. 8).

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    atrous_rates: List[int]  # noqa: UP006

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        sr_pad: bool = False,
        atrous_rates: Sequence[int] | None = (1, 3, 5),
        recursions: int = 2,
        state: str = "accumulate",
        output_act: bool = True,
        qkv_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.recursions = recursions
        self.accumulate = state == "accumulate"
        self.output_act = output_act and recursions > 1
        self.atrous_rates = list(atrous_rates or ())
        self.q = Pointwise(dim, dim, bias=qkv_bias, **dd)
        self.atrous = nn.Conv2d(dim, dim, 3, groups=dim, bias=False, **dd) if atrous_rates else None
        self.sr = SpatialReduction(dim, sr_ratio, sr_pad, **dd) if sr_ratio > 1 else nn.Identity()
        self.kv = Pointwise(dim, 2 * dim, bias=qkv_bias, **dd)
        self.proj = Pointwise(dim, dim, **dd)

    def query(self, x: Tensor) -> Tensor:
        """Multi-scale query: the sum over dilations of SiLU(depthwise 3x3 of the projected query), one kernel."""
        q = self.q(x)
        if self.atrous is None:
            return q
        out = F.silu(dilated_conv(q, self.atrous.weight, self.atrous_rates[0]))
        for rate in self.atrous_rates[1:]:
            out = out + F.silu(dilated_conv(q, self.atrous.weight, rate))
        return out

    def attend(self, x: Tensor) -> Tensor:
        """ASA, one pass of atrous self-attention."""
        batch, dim, height, width = x.shape
        heads = self.num_heads
        q = self.query(x).flatten(2).transpose(1, 2).reshape(batch, -1, heads, dim // heads).transpose(1, 2)
        kv = self.kv(self.sr(x)).flatten(2).transpose(1, 2).reshape(batch, -1, 2, heads, dim // heads)
        kv = kv.permute(2, 0, 3, 1, 4)
        x = attention(q, kv[0], kv[1])  # (B, heads, H * W, d)
        x = self.proj(x.transpose(1, 2).reshape(batch, height, width, dim).permute(0, 3, 1, 2))
        return F.silu(x) if self.output_act else x

    def forward(self, x: Tensor) -> Tensor:
        # Eq. 8: every pass reads the sum of input and hidden state, which is 0 at first
        hidden = x
        out = self.attend(x)
        for _ in range(self.recursions - 1):
            x = x + out if self.accumulate else hidden + out
            hidden = out
            out = self.attend(x)
        return out


def dilated_conv(x: Tensor, kernel: Tensor, rate: int) -> Tensor:
    """Depthwise 3x3 convolution with dilation and zero padding `rate`: (B, C, H, W), (C, 1, 3, 3) -> (B, C, H, W)."""
    return F.conv2d(x, kernel, padding=rate, dilation=rate, groups=x.shape[1])


class SpatialReduction(nn.Module):
    """Fewer keys and values: an s x s convolution with stride s, then LayerNorm (PVT).

    Rows and columns beyond the last full s x s cell are left out, as in the authors' network, unless `pad`.

    Args:
        pad: zero-pad at the bottom and right to a multiple of s instead.

    Shapes: (B, C, H, W) -> (B, C, max(1, H // s), max(1, W // s)); with `pad` rounded up.
    """

    def __init__(self, dim: int, ratio: int, pad: bool = False, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.ratio = ratio
        self.pad = pad
        self.conv = nn.Conv2d(dim, dim, ratio, ratio, **dd)
        self.norm = LayerNorm2d(dim, eps=EPS, **dd)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        # not in the authors' network: a map smaller than the kernel is padded up to it
        to_height = round_up(height, self.ratio) if self.pad else max(height, self.ratio)
        to_width = round_up(width, self.ratio) if self.pad else max(width, self.ratio)
        if to_height > height or to_width > width:
            x = F.pad(x, (0, to_width - width, 0, to_height - height))
        return self.norm(self.conv(x))


def check_rasa(recursions: int, atrous_rates: Sequence[int] | None, state: str) -> None:
    """Raise `ValueError` for options of `RASA` that are not allowed."""
    check_choice("rasa_state", state, ("accumulate", "previous"))
    if recursions < 1:
        raise ValueError(f"rasa_recursions={recursions!r} is not allowed; give 1 or more")
    if atrous_rates and min(atrous_rates) < 1:
        raise ValueError(f"atrous_rates={atrous_rates!r} is not allowed; give dilations of 1 or more, or () for none")


# ---- Block (Sec. 3.3) -----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm mixer and MLP, both residual: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(
        self,
        mixer: nn.Module,
        dim: int,
        mlp_ratio: float,
        mlp_dwconv: bool,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = LayerNorm2d(dim, eps=EPS, **dd)
        self.mixer = mixer
        self.norm2 = LayerNorm2d(dim, eps=EPS, **dd)
        self.mlp = Mlp(dim, mlp_ratio, mlp_dwconv, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def make_mixer(
    stage: int,
    mixer: str,
    dim: int,
    num_heads: int,
    rasa: dict[str, Any],
    sr_ratio: int = 0,
    sr_pad: bool = False,
    qkv_bias: bool = False,
    device: Any = None,
    dtype: Any = None,
) -> nn.Module:
    """The token mixer of a stage (from 0) by name; `rasa` has the options of `RASA` that "sa" does not use."""
    dd = {"device": device, "dtype": dtype}
    check_choice(f"mixers[{stage}]", mixer, ("rasa", "sa") if stage else ("csa", "outlook", "sa"))
    check_divides(f"embed_dims[{stage}]", dim, num_heads, f"num_heads[{stage}]")
    if mixer in ("csa", "outlook"):
        shared = mixer == "outlook"
        return CSA(dim, num_heads, shared_value=shared, value_bias=qkv_bias and shared, **dd)
    if mixer == "sa":
        rasa = {"atrous_rates": None, "recursions": 1, "output_act": False}
    return RASA(dim, num_heads, sr_ratio=sr_ratio, sr_pad=sr_pad, qkv_bias=qkv_bias, **rasa, **dd)


# ---- Network (Sec. 3.3) ---------------------------------------------------------------------------------------------


class LVT(ClassTokenPyramid):
    """Lite Vision Transformer.

    Args:
        num_classes, in_chans, drop_rate: see `Pyramid`.
        global_pool: "" keeps the last map (then `num_classes` must be 0). Anything else classifies: from the class
            token with `class_attention` (only the default "avg" is taken then), else from the pooled map.
        embed_dims, depths, num_heads, mlp_ratios: widths, blocks, heads, MLP expansion of the four stages.
        mlp_dwconv: per stage, a depthwise 3x3 inside the MLP (in the authors' network, not in the paper).
        mixers: stage 1: "csa", "outlook" or "sa"; stages 2-4: "rasa" or "sa". "sa" is attention with spatially reduced
            keys and values, without atrous query and recursion.
        rasa_recursions, atrous_rates, rasa_state, rasa_output_act: see `RASA`; write "no atrous query" as () with
            `create_model`, which takes None for "not given".
        sr_ratios: per stage, spatial reduction of keys and values (0 = none; CSA has none).
        sr_pad: zero-pad maps to a multiple of the reduction instead of leaving out the last rows and columns.
        qkv_bias: biases on query, key and value projections; CSA's projections of one position never have one.
        class_attention: two class-attention blocks before the classifier; False = LayerNorm and mean instead.
        token_labeling: an auxiliary classifier on every token of the last map.
        mix_token: in training, mix samples by MixToken and return `forward_token_labeling`'s tuple.
        aux_logit_weight: the logits are the classifier's plus this times the largest auxiliary ones.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first.
        out_norms: a LayerNorm on each pyramid output.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (2, 2, 5, 8),
        mlp_ratios: Sequence[float] = (4, 8, 4, 4),
        mlp_dwconv: Sequence[bool] = (False, True, True, True),
        mixers: Sequence[str] = ("csa", "rasa", "rasa", "rasa"),
        rasa_recursions: int = 2,
        atrous_rates: Sequence[int] | None = (1, 3, 5),
        rasa_state: str = "accumulate",
        rasa_output_act: bool = True,
        sr_ratios: Sequence[int] = (0, 4, 2, 1),
        sr_pad: bool = False,
        qkv_bias: bool = False,
        class_attention: bool = True,
        token_labeling: bool = True,
        mix_token: bool = False,
        aux_logit_weight: float = 0.5,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        embed_dims = per_stage("embed_dims", embed_dims)
        depths = blocks_per_stage(depths)
        num_heads = per_stage("num_heads", num_heads)
        mlp_ratios = per_stage("mlp_ratios", mlp_ratios)
        mlp_dwconv = per_stage("mlp_dwconv", mlp_dwconv)
        mixers = per_stage("mixers", mixers)
        sr_ratios = per_stage("sr_ratios", sr_ratios)
        check_rasa(rasa_recursions, atrous_rates, rasa_state)
        if min(sr_ratios) < 0:
            raise ValueError(f"sr_ratios={sr_ratios!r} is not allowed; give reductions of 1 or more, or 0 for none")
        super().__init__(
            embed_dims,
            num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            token_labeling=token_labeling,
            mix_token=mix_token,
            aux_logit_weight=aux_logit_weight,
        )

        rasa = {
            "atrous_rates": atrous_rates,
            "recursions": rasa_recursions,
            "state": rasa_state,
            "output_act": rasa_output_act,
        }

        def block(i: int, drop_path: float) -> Block:
            mixer = make_mixer(
                i,
                mixers[i],
                dim=embed_dims[i],
                num_heads=num_heads[i],
                rasa=rasa,
                sr_ratio=sr_ratios[i],
                sr_pad=sr_pad,
                qkv_bias=qkv_bias,
                **dd,
            )
            return Block(
                mixer, embed_dims[i], mlp_ratio=mlp_ratios[i], mlp_dwconv=mlp_dwconv[i], drop_path=drop_path, **dd
            )

        self.stem = PatchEmbedConv(in_chans, embed_dims[0], 7, 4, **dd)
        drop_paths = drop_path_schedule(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            down = PatchEmbedConv(embed_dims[i - 1], dim, 3, 2, **dd) if i else None
            stages.append(Stage([block(i, rate) for rate in drop_paths[i]], down))
        self.stages = nn.Sequential(*stages)

        post = norm = None
        if class_attention:
            post = ClassAttentionPost(dim, num_heads[-1], mlp_ratios[-1], qkv_bias=qkv_bias, norm_eps=EPS, **dd)
        else:
            norm = LayerNorm2d(dim, eps=EPS, **dd)
        self.finish(norm, global_pool, partial(LayerNorm2d, eps=EPS, **dd) if out_norms else None, post=post, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """As measured on the authors' network; all other layers keep the framework's initialisation."""
        owner, _, leaf = name.rpartition(".")
        if isinstance(module, (nn.Linear, Pointwise)):
            mlp = self.get_submodule(owner)
            if isinstance(mlp, Mlp) and isinstance(mlp.dwconv, nn.Conv2d):
                return
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif leaf == "atrous":
            nn.init.kaiming_uniform_(cast(Tensor, module.weight), a=0)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:  # patch embedding, spatial reduction
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
            nn.init.zeros_(cast(Tensor, module.bias))


# ---- Checkpoints ----------------------------------------------------------------------------------------------------


#: parts of a block's parameter names in the authors' files, and ours, in the order in which they are replaced
REFERENCE_NAMES = (
    (".attn.attn.", ".mixer.logits."),
    (".attn.weight.", ".mixer.value."),
    (".attn.ds.", ".mixer.atrous."),
    (".attn.sr.", ".mixer.sr.conv."),
    (".attn.norm.", ".mixer.sr.norm."),
    (".attn.", ".mixer."),
    (".mlp.depconv.", ".mlp.dwconv."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Our own checkpoint unchanged; the authors' (classifier, encoder or segmenter file) in our names and shapes."""
    state_dict = encoder_of(unwrap(state_dict, model), "backbone")
    if not any(name.startswith("backbone.") for name in state_dict):
        return state_dict
    with_token = "cls_token" in state_dict  # the norm is class attention's, then
    return fit_shapes(renamed((name, _our_name(name, with_token), v) for name, v in state_dict.items()), model)


def _our_name(name: str, with_token: bool) -> str:
    """Our name of an authors' entry; `with_token` = the file has class attention."""
    part, _, rest = name.partition(".")
    if part == "backbone" and rest.count(".") >= 2:
        stage, place, rest = rest.split(".", 2)
        if place == "0":
            return ("stem." if stage == "0" else f"stages.{stage}.downsample.") + rest.replace("proj.", "conv1.")
        name = f"stages.{stage}.blocks.{rest}"
        for theirs, ours in REFERENCE_NAMES:
            name = name.replace(theirs, ours)
        return name
    if part == "post_network":
        return f"post.blocks.{rest}"
    if part == "cls_token" or (part == "norm" and with_token):
        return f"post.{name}"
    return name


# ---- Variants (Tables 3 and 7) --------------------------------------------------------------------------------------


_cfg = partial(default_cfg, crop_pct=0.96, classifier=("head", "aux_head"))
default_cfgs = generate_default_cfgs({name: _cfg() for name in ("lvt", "lvt_r1", "lvt_r3", "lvt_r4", "lvt_scaled")})


def _lvt(variant: str, pretrained: bool, overrides: dict[str, Any], **options: Any) -> LVT:
    return build(LVT, variant, pretrained, options, overrides=overrides, filter_fn=checkpoint_filter_fn)  # pyright: ignore[reportReturnType]


@register_model
def lvt(pretrained: bool = False, **kwargs: Any) -> LVT:
    """LVT of Table 3 (two recursions): encoder 3.43 M, with classifier 5.52 M parameters."""
    return _lvt("lvt", pretrained, kwargs)


@register_model
def lvt_r1(pretrained: bool = False, **kwargs: Any) -> LVT:
    """LVT without recursion (Table 7)."""
    return _lvt("lvt_r1", pretrained, kwargs, rasa_recursions=1)


@register_model
def lvt_r3(pretrained: bool = False, **kwargs: Any) -> LVT:
    """LVT with three recursions (Table 7)."""
    return _lvt("lvt_r3", pretrained, kwargs, rasa_recursions=3)


@register_model
def lvt_r4(pretrained: bool = False, **kwargs: Any) -> LVT:
    """LVT with four recursions (Table 7)."""
    return _lvt("lvt_r4", pretrained, kwargs, rasa_recursions=4)


@register_model
def lvt_scaled(pretrained: bool = False, **kwargs: Any) -> LVT:
    """The scaled-up LVT of Table 3: encoder 24.8 M, with classifier 32.2 M parameters.

    Its configuration was not published: this one is inferred, and meets the reported parameters and FLOPs.
    """
    options = {"embed_dims": (96, 128, 320, 512), "depths": (2, 5, 6, 3), "num_heads": (3, 4, 10, 16)}
    return _lvt("lvt_scaled", pretrained, kwargs, **options)
