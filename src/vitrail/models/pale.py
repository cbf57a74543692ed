"""Pale Transformer: attention inside interlaced rows and interlaced columns that reach over the whole map.

S. Wu, T. Wu, H. Tan, G. Guo, "Pale Transformer: A General Vision Transformer Backbone with Pale-Shaped Attention",
AAAI 2022, arXiv 2112.14000. No code of the authors is public; what the paper leaves open is marked "not in the paper".
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import ConvPositionEncoding, Mlp, PatchEmbedConv, Pointwise, blocks_per_stage, pad_to_multiple, per_stage
from ..layers.tracing import unscripted
from ._class_token import ClassTokenPyramid
from ._pale_attention import PaleAttention
from .checkpoints import encoder_of, fit_axes, rename_all, unwrap
from .pyramid import Stage, build, default_cfg, drop_path_schedule

__all__ = ["Pale", "pale_base", "pale_small", "pale_tiny"]

_norm = partial(LayerNorm2d, eps=1e-5)


class PaleBlock(nn.Module):
    """Conditional position, PS-Attention, MLP, each with its shortcut (Eq. 6-8).

    Args:
        dim: channels.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP / dim.
        cpe_kernel: kernel of the position encoding.
        drop_path: rate of stochastic depth on attention and MLP; the position encoding has none.
        options: the other arguments of `PaleAttention`.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        cpe_kernel: int,
        drop_path: float,
        options: dict[str, Any],
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.cpe = ConvPositionEncoding(dim, cpe_kernel, **dd)
        self.norm1 = _norm(dim, **dd)
        self.attn = PaleAttention(dim, num_heads, **options, **dd)
        self.norm2 = _norm(dim, **dd)
        self.mlp = Mlp(dim, mlp_ratio, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe(x)  # Eq. 6
        x = x + self.drop_path(self.attn(self.norm1(x)))  # Eq. 7
        return x + self.drop_path(self.mlp(self.norm2(x)))  # Eq. 8

    @unscripted
    def saved_macs(self, height: int, width: int) -> dict[str, int]:
        """Biases of the linear layers, 9 C a token, which the paper's dense tables count for real tokens alone."""
        linear = ("pw.bias", "proj.bias", "fc1.bias", "fc2.bias")
        biases = sum(p.numel() for name, p in self.named_parameters() if name.endswith(linear))
        return {"token_bias": biases * height * width}


class PaleStem(PatchEmbedConv):
    """7x7 convolution of stride 4, after zero padding at the right and bottom so that no pixel is lost.

    Shapes: (B, in_chans, H, W) -> (B, C, ceil(H / 4), ceil(W / 4)).
    """

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 4).permute(0, 3, 1, 2)  # not in the paper; nothing at multiples of 4
        return self.norm(self.conv1(x))


class Pale(ClassTokenPyramid):
    """Pale Transformer (Table 1).

    Args:
        embed_dims, depths, num_heads, mlp_ratios: per stage.
        mixers: token mixer, one name or one per stage; see `PaleAttention`.
        pale_size: one number, one per stage, or one (s_r, s_c) per stage.
        split_size: widths of the stripes of "cross_shaped", in the same forms (not printed; CSWin's).
        global_last_stage: "cross_shaped" attends to the whole map in the last stage (as CSWin).
        qkv_kernel, qkv_norm, qkv_bias, cpe_kernel: readings of what the paper leaves open; the defaults fit its counts.
        pad_mode, mask_padding: see `PaleAttention`.
        token_labeling: add `aux_head`, a classifier of the last map's tokens (the starred rows of Table 2).
        mix_token: in training mix samples by MixToken and return `forward_token_labeling`'s tuple.
        aux_logit_weight: of the largest token logits in the logits (0.5 = LV-ViT's evaluation).
        drop_path_rate: stochastic depth of the last block, linear from 0.
        out_norms: a LayerNorm on each pyramid output, as in the paper's dense tasks.

    Shapes: (B, in_chans, H, W) -> (B, num_classes), any H and W.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 16, 2),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        mixers: str | Sequence[str] = "parallel",
        pale_size: int | Sequence[int | Sequence[int]] = 7,
        split_size: int | Sequence[int | Sequence[int]] = (1, 2, 7, 7),
        global_last_stage: bool = True,
        qkv_kernel: int = 3,
        qkv_norm: str = "bn",
        qkv_bias: bool = True,
        cpe_kernel: int = 3,
        pad_mode: str = "tight",
        mask_padding: bool = True,
        token_labeling: bool = False,
        mix_token: bool = False,
        aux_logit_weight: float = 0.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        embed_dims, depths = per_stage("embed_dims", embed_dims), blocks_per_stage(depths)
        num_heads, mlp_ratios = per_stage("num_heads", num_heads), per_stage("mlp_ratios", mlp_ratios)
        mixers = per_stage("mixers", mixers)
        pales, stripes = _sizes("pale_size", pale_size), _sizes("split_size", split_size)
        if qkv_kernel != 0:
            _check_odd("qkv_kernel", qkv_kernel, " or 0 for none")
        _check_odd("cpe_kernel", cpe_kernel)
        super().__init__(
            embed_dims, num_classes, in_chans, global_pool, drop_rate, token_labeling, mix_token, aux_logit_weight
        )
        self.stem = PaleStem(in_chans, embed_dims[0], 7, 4, padding=2, **dd)
        rates = drop_path_schedule(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            mixer, size = mixers[i], pales[i]
            if mixer == "cross_shaped":
                mixer, size = ("global" if i == 3 and global_last_stage else mixer), stripes[i]
            blocks = []
            for j in range(depths[i]):
                options = {
                    "mixer": mixer,
                    "pale_size": size,
                    "block": j,
                    "qkv_kernel": qkv_kernel,
                    "qkv_norm": qkv_norm,
                    "qkv_bias": qkv_bias,
                    "pad_mode": pad_mode,
                    "mask_padding": mask_padding,
                }
                blocks.append(PaleBlock(dim, num_heads[i], mlp_ratios[i], cpe_kernel, rates[i][j], options, **dd))
            stages.append(Stage(blocks, PatchEmbedConv(embed_dims[i - 1], dim, 3, 2, **dd) if i else None))
        self.stages = nn.Sequential(*stages)
        self.finish(_norm(embed_dims[-1], **dd), global_pool, partial(_norm, **dd) if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Linear layers as CSWin, depthwise convolutions as Twins; norms and strided convolutions keep their own."""
        if isinstance(module, (nn.Linear, Pointwise)):
            trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            nn.init.normal_(module.weight, std=(2.0 / (module.kernel_size[0] * module.kernel_size[1])) ** 0.5)
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_odd(option: str, value: int, also: str = "") -> None:
    if not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f"{option}={value!r} is not allowed; give an odd number{also}")


def _sizes(option: str, value: Any) -> list[tuple[int, int]]:
    """(rows, columns) of each stage from one number, one per stage, or one pair per stage."""
    pairs = [tuple(s) if isinstance(s, (list, tuple)) else (s, s) for s in per_stage(option, value)]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(s, int) and s >= 1 for s in pair):
            raise ValueError(f"{option}={value!r} is not allowed; give numbers, or pairs of numbers, of at least 1")
    return pairs


# ---- checkpoints and variants -------------------------------------------------------------------------------------

#: names of an implementation on token sequences, and ours
LAYOUT = (
    (r"(\.blocks\.\d+\.cpe)\.(weight|bias)$", r"\1.conv.\2"),
    (r"(\.blocks\.\d+)\.mixer\.", r"\1.attn."),
    (r"(\.attn\.[qkv])\.dwconv\.", r"\1.dw."),
    (r"(\.attn\.[qkv])\.pwconv\.", r"\1.pw."),
    (r"(\.downsample)\.conv\.", r"\1.conv1."),
    *((rf"^norm{i + 1}\.", f"out_norms.{i}.") for i in range(4)),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A state dict for `Pale`, from its own or from one of token sequences, with linear layers and `mixer`.

    Wrappers are taken off; our own state dicts pass unchanged.
    """
    return fit_axes(rename_all(encoder_of(unwrap(state_dict, model)), LAYOUT), model)


default_cfgs = generate_default_cfgs({name: default_cfg() for name in ("pale_tiny", "pale_small", "pale_base")})


def _pale(variant: str, pretrained: bool, options: dict[str, Any], overrides: dict[str, Any]) -> nn.Module:
    if overrides.get("token_labeling"):
        overlay = {"classifier": ("head", "aux_head"), **(overrides.get("pretrained_cfg_overlay") or {})}
        overrides = {**overrides, "pretrained_cfg_overlay": overlay}
    return build(Pale, variant, pretrained, options, overrides, checkpoint_filter_fn)


@register_model
def pale_tiny(pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Pale-T."""
    return _pale("pale_tiny", pretrained, {}, overrides)


@register_model
def pale_small(pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Pale-S."""
    return _pale("pale_small", pretrained, {"embed_dims": (96, 192, 384, 768)}, overrides)


@register_model
def pale_base(pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Pale-B."""
    options = {"embed_dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32)}
    return _pale("pale_base", pretrained, options, overrides)
