"""PSLT: a light-weight vision transformer with ladder self-attention and progressive shift.

Wu, Zheng, Lu, Tian, IEEE TPAMI 45(9), 2023, doi 10.1109/TPAMI.2023.3265499, arXiv 2304.03481. Sections, equations and
tables named below are the paper's; "code" marks what only the authors' released code settles.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    ConvNormAct,
    Pointwise,
    blocks_per_stage,
    check_choice,
    check_divides,
    pad_to_multiple,
    per_stage,
)
from ._pslt_ladder import ChannelGate, LadderBlock, LayerNorm, bottleneck
from ._pslt_windows import shift_strides
from .checkpoints import encoder_of, renamed, unwrap
from .pyramid import Pyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["PSLT", "pslt", "pslt_large", "pslt_tiny"]


# ---- convolutional stages and down-sampling (Sec. 3.3, Table 3) -----------------------------------------------------


class InvertedResidual(nn.Module):
    """MobileNetV2 block with squeeze-and-excitation on its output channels, inside the residual.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expand_ratio: float = 4.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = bottleneck(in_channels, int(in_channels * expand_ratio), out_channels, stride, **dd)
        self.se = ChannelGate(out_channels, pooled=True, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.conv(x))
        return x + y if self.residual else y


class PatchMerging(nn.Module):
    """Concatenate each 2x2 neighbourhood, normalise, reduce (Table 3 prints a 2x2 convolution; its count is this).

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, in_channels: int, out_channels: int, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = LayerNorm(4 * in_channels, **dd)
        self.reduction = Pointwise(4 * in_channels, out_channels, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 2)
        # column by column, as the authors' weights have it
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x.permute(0, 3, 1, 2)))


# ---- network (Sec. 3.3, Table 3) ------------------------------------------------------------------------------------


class PSLT(Pyramid):
    """Two convolutional and two ladder stages.

    Args:
        embed_dims: widths of the stages; the stem has half the first.
        depths: blocks of the stages; a convolutional stage's strided first block is one of them.
        num_heads: attention heads **per branch**; 0 makes a convolutional stage.
        mlp_ratios: expansion of inverted residuals and of the "mlp" FFN; the "light" FFN expands by a quarter of it.
        window_size: side of the attention windows.
        num_branches: 1, 2, 3, 4 or 6 branches in a ladder block (Table 11).
        shift: displace the windows of the later branches (Table 12).
        feature_delivery: hand each branch's output to the next one as values (Table 12).
        ffn: "light" or "mlp" (Table 13).
        fusion: "pafm", "fc", "aw", "concat" or "se" (Table 14).
        delivered_shortcut: a delivered branch adds its normalised input to its attention output.
        mask_padding: False lets windows attend to their zero padding, as the authors' detection backbone does.
        pad_mode: "tight", or "paper" for projecting padded maps: the same values while padding is masked.
        stem_stride, stage1_stride: 1 or 2, for small images (Table 5).
        drop_path_rate: of the last ladder block, rising linearly over the ladder blocks; branches draw on their own.
        out_norms: a LayerNorm on every pyramid output.
    """

    no_decay = ("relative_position_bias_table",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (72, 144, 288, 576),
        depths: Sequence[int] = (3, 3, 10, 3),
        num_heads: Sequence[int] = (0, 0, 4, 8),
        mlp_ratios: float | Sequence[float] = 4.0,
        window_size: int = 7,
        num_branches: int = 3,
        shift: bool = True,
        feature_delivery: bool = True,
        ffn: str = "light",
        fusion: str = "pafm",
        delivered_shortcut: bool = True,
        mask_padding: bool = True,
        pad_mode: str = "tight",
        stem_stride: int = 2,
        stage1_stride: int = 2,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        dims, depths = per_stage("embed_dims", embed_dims), blocks_per_stage(depths)
        heads, ratios = per_stage("num_heads", num_heads), per_stage("mlp_ratios", mlp_ratios)
        check_choice("num_branches", num_branches, (1, 2, 3, 4, 6))
        check_choice("ffn", ffn, ("light", "mlp"))
        check_choice("fusion", fusion, ("pafm", "fc", "aw", "concat", "se"))
        check_choice("pad_mode", pad_mode, ("tight", "paper"))
        check_choice("stem_stride", stem_stride, (1, 2))
        check_choice("stage1_stride", stage1_stride, (1, 2))
        if window_size < 2:
            raise ValueError(f"window_size={window_size!r} is not allowed; give 2 or more pixels")
        check_divides("embed_dims[0]", dims[0], 4, "the stem's divisor")
        for i in range(4):
            if depths[i] < 1:
                raise ValueError(f"depths={depths!r} is not allowed; give every stage 1 block or more")
            if ratios[i] <= 0:
                raise ValueError(f"mlp_ratios={mlp_ratios!r} is not allowed; give ratios above 0")
            if heads[i]:
                meaning = f"num_branches * num_heads[{i}]"
                check_divides(f"embed_dims[{i}]", dims[i], num_branches * heads[i], meaning)
        first = stem_stride * stage1_stride
        super().__init__(dims, num_classes, in_chans, global_pool, drop_rate, [first * 2**i for i in range(4)])

        # stem: 3x3 convolutions, each followed by GELU and then BN (code)
        stem, width = partial(ConvNormAct, order="conv-act-norm", **dd), dims[0] // 2
        self.stem = nn.Sequential(
            stem(in_chans, width // 2, stride=stem_stride), stem(width // 2, width), stem(width, width)
        )

        ladder = partial(
            LadderBlock,
            shifts=shift_strides(num_branches, window_size) if shift else [0] * num_branches,
            feature_delivery=feature_delivery,
            fusion=fusion,
            ffn=ffn,
            delivered_shortcut=delivered_shortcut,
            window_size=window_size,
            mask_padding=mask_padding,
            pad_mode=pad_mode,
            **dd,
        )
        rates = drop_path_schedule(drop_path_rate, [depth if h else 0 for depth, h in zip(depths, heads, strict=True)])
        stages = []
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, ratios, strict=True)):
            if i > 0 and heads[i - 1]:
                downsample = PatchMerging(dims[i - 1], dim, **dd)
            else:
                downsample = InvertedResidual(width, dim, 2 if i else stage1_stride, ratio, **dd)
            if heads[i]:
                blocks = [ladder(dim, heads[i], mlp_ratio=ratio, drop_path=rate) for rate in rates[i]]
            else:  # the down-sampling block is the first of the stage
                blocks = [InvertedResidual(dim, dim, 1, ratio, **dd) for _ in range(depth - 1)]
            stages.append(Stage(blocks, downsample))
            width = dim
        self.stages = nn.Sequential(*stages)
        # for reading the authors' files, also once stages are pruned
        self.residuals = [name for name, module in self.named_modules() if isinstance(module, InvertedResidual)]
        self.ladder_stages = [i for i in range(4) if heads[i]]
        norm = partial(LayerNorm, **dd)
        self.finish(norm(dims[-1]), global_pool, norm if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Linear layers truncated normal 0.02; convolutions and norms keep the framework's defaults (code)."""
        if isinstance(module, (nn.Linear, Pointwise)):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ---- checkpoints and variants ---------------------------------------------------------------------------------------

# place in the authors' nn.Sequential -> layer of ours
_CONV = {"0": "0.conv", "2": "0.norm", "3": "1.conv", "5": "1.norm", "6": "2.conv", "7": "2.norm", "8": "2.norm"}
_LADDER = {"blocks": "branches", "se": "fusion.gate", "pointconv": "fusion.mix"}
# buffers of theirs that are computed here
_COMPUTED = re.compile(r"^layers\.\d+\.blocks\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)$")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Our own checkpoints unchanged; the authors' (classification or detection backbone) under our names."""
    state_dict = encoder_of(unwrap(state_dict, model), "patch_embed")
    if not any(key.startswith("patch_embed.") for key in state_dict):
        return state_dict
    entries = []
    for key, value in state_dict.items():
        if _COMPUTED.search(key):
            continue
        linear = value.ndim == 2 and not key.endswith("_table") and not key.startswith("head.")
        entries.append((key, _our_name(key, cast(PSLT, model)), value[:, :, None, None] if linear else value))
    return renamed(entries)


def _our_name(key: str, model: PSLT) -> str:
    """The name here of an authors' entry; where that has no place, a name that is none here either."""

    def place(places: list[str], match: re.Match[str]) -> str:
        at = int(match[1])
        return places[at] if at < len(places) else match[0]

    ladders = [f"stages.{i}" for i in model.ladder_stages]
    downs = [f"stages.{i + 1}.downsample" for i in model.ladder_stages]
    key = re.sub(r"\b(conv|proj)\.(\d)\.", lambda m: f"{m[1]}.{_CONV.get(m[2], m[2])}.", key)
    key = re.sub(r"^patch_embed\.proj\.", "stem.", key)
    key = re.sub(r"^conv_layers\.(\d+)(?=\.)", partial(place, model.residuals), key)
    key = re.sub(r"^(layers\.\d+\.blocks\.\d+)\.(blocks|se|pointconv)\.", lambda m: f"{m[1]}.{_LADDER[m[2]]}.", key)
    key = re.sub(r"^layers\.(\d+)\.downsample(?=\.)", partial(place, downs), key)
    key = re.sub(r"^layers\.(\d+)(?=\.blocks\.)", partial(place, ladders), key)
    return key.replace(".mlp.conv.", ".ffn.").replace(".attn.kv.", ".attn.qkv.")


default_cfgs = generate_default_cfgs(
    {name: default_cfg(crop_pct=0.875, first_conv="stem.0.conv") for name in ("pslt_tiny", "pslt", "pslt_large")}
)


def _pslt(variant: str, stem_width: int, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    options = {"embed_dims": tuple(stem_width * 2**i for i in range(1, 5))}
    return build(PSLT, variant, pretrained, options, overrides, checkpoint_filter_fn)


@register_model
def pslt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PSLT-Tiny: 4.3 M parameters (Table 4; widths from the code)."""
    return _pslt("pslt_tiny", 24, pretrained, kwargs)


@register_model
def pslt(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PSLT: 9.2 M parameters (Tables 3 and 4)."""
    return _pslt("pslt", 36, pretrained, kwargs)


@register_model
def pslt_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PSLT-Large: 16.1 M parameters, printed 16.0 (Table 4; widths from the code)."""
    return _pslt("pslt_large", 48, pretrained, kwargs)
