"""VOLO-D0, the trunk into which LVT's Table 6 puts its two attentions one after the other.

Yuan, Hou, Jiang, Feng, Yan, "VOLO: Vision Outlooker for Visual Recognition", 2021, arXiv 2106.13112, in the size that
the LVT paper (CVPR 2022, Table 6) calls D0. Its heads, of width 16, are the reading that meets all reported counts.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import ConvNormAct, Pointwise, blocks_per_stage, pad_to_multiple, per_stage, sizes_known
from ..layers.class_attention import ClassAttentionPost
from ..layers.tracing import notrace_function
from .checkpoints import encoder_of, fit_shapes, renamed, unwrap
from .lvt import EPS, REFERENCE_NAMES, Block, check_rasa, make_mixer
from .pyramid import ClassTokenPyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["VOLO", "volo_d0", "volo_d0_csa", "volo_d0_csa_rasa"]

STEM_WIDTH = 64
GRID = 14  # of the learned positions: 224 / 16


# ---- Stem and down-sampling -----------------------------------------------------------------------------------------


class VoloStem(nn.Sequential):
    """Three convolutions of 64 channels, the first at stride 2, then a patch embedding of 4x4.

    The image is zero-padded at the right and bottom to a multiple of 16 first, so that the patches and their merging
    lose no pixel; the authors' network drops the rest.

    Shapes: (B, in_chans, H, W) -> (B, dim, 2 * ceil(H / 16), 2 * ceil(W / 16)).
    """

    def __init__(self, in_chans: int, dim: int, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        layer = partial(ConvNormAct, act=nn.ReLU, **dd)
        self.conv1 = layer(in_chans, STEM_WIDTH, 7, stride=2)
        self.conv2 = layer(STEM_WIDTH, STEM_WIDTH, 3)
        self.conv3 = layer(STEM_WIDTH, STEM_WIDTH, 3)
        self.proj = nn.Conv2d(STEM_WIDTH, dim, 4, 4, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 16).permute(0, 3, 1, 2)
        return self.proj(self.conv3(self.conv2(self.conv1(x))))


@notrace_function
def resized(positions: Tensor, height: int, width: int) -> Tensor:
    """Learned positions (1, C, h, w) on a grid of another size, bicubic."""
    if sizes_known(height, width) and height == positions.shape[2] and width == positions.shape[3]:
        return positions
    return F.interpolate(positions, size=(height, width), mode="bicubic", align_corners=False)


class PatchMerging(nn.Module):
    """Convolution of 2x2 patches, then learned positions added; (B, C, H, W) -> (B, dim, H / 2, W / 2)."""

    def __init__(self, in_dim: int, dim: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, 2, 2, device=device, dtype=dtype)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, GRID, GRID, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x + resized(self.pos_embed, x.shape[2], x.shape[3]).to(x.dtype)


# ---- Network (LVT, Table 6) -----------------------------------------------------------------------------------------


class VOLO(ClassTokenPyramid):
    """VOLO with LVT's attentions for options: maps at strides 8, 16, 16, 16.

    Args:
        num_classes, in_chans, drop_rate: see `Pyramid`.
        global_pool, class_attention, token_labeling, mix_token, aux_logit_weight: see `LVT`.
        embed_dims, depths, num_heads, mlp_ratios: widths, blocks, heads, MLP expansion of the four stages; the last
            three have one width.
        mixers: stage 1: "outlook", "csa" or "sa"; stages 2-4: "sa" or "rasa".
        rasa_recursions, atrous_rates, rasa_state, rasa_output_act: see `LVT`.
        qkv_bias: biases on query, key and value projections.
        drop_path_rate: stochastic depth of the last block, rising linearly over all; the first stage has none.
        out_norms: a LayerNorm on each pyramid output.
    """

    no_decay = ("cls_token", "pos_embed")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (96, 192, 192, 192),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 12, 12),
        mlp_ratios: Sequence[float] = (3, 3, 3, 3),
        mixers: Sequence[str] = ("outlook", "sa", "sa", "sa"),
        rasa_recursions: int = 2,
        atrous_rates: Sequence[int] | None = (1, 3, 5),
        rasa_state: str = "accumulate",
        rasa_output_act: bool = True,
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
        dims, depths = per_stage("embed_dims", embed_dims), blocks_per_stage(depths)
        heads, ratios = per_stage("num_heads", num_heads), per_stage("mlp_ratios", mlp_ratios)
        mixers = per_stage("mixers", mixers)
        check_rasa(rasa_recursions, atrous_rates, rasa_state)
        if len(set(dims[1:])) > 1:
            raise ValueError(f"embed_dims={dims!r} is not allowed; give the last three stages one width")
        super().__init__(
            dims,
            num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            token_labeling=token_labeling,
            mix_token=mix_token,
            aux_logit_weight=aux_logit_weight,
            reductions=(8, 16, 16, 16),
        )

        rasa = {
            "atrous_rates": atrous_rates,
            "recursions": rasa_recursions,
            "state": rasa_state,
            "output_act": rasa_output_act,
        }
        rates = drop_path_schedule(drop_path_rate, depths)
        rates[0] = [0.0] * depths[0]

        def block(i: int, drop_path: float) -> Block:
            mixer = make_mixer(i, mixers[i], dim=dims[i], num_heads=heads[i], rasa=rasa, qkv_bias=qkv_bias, **dd)
            return Block(mixer, dims[i], ratios[i], mlp_dwconv=False, drop_path=drop_path, **dd)

        self.stem = VoloStem(in_chans, dims[0], **dd)
        self.stages = nn.Sequential(
            *(
                Stage([block(i, rate) for rate in rates[i]], PatchMerging(dims[0], dims[1], **dd) if i == 1 else None)
                for i in range(4)
            )
        )
        post = norm = None
        if class_attention:
            post = ClassAttentionPost(dims[-1], heads[-1], ratios[-1], qkv_bias=qkv_bias, norm_eps=EPS, **dd)
        else:
            norm = LayerNorm2d(dims[-1], eps=EPS, **dd)
        self.finish(norm, global_pool, partial(LayerNorm2d, eps=EPS, **dd) if out_norms else None, post=post, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Linear layers and positions truncated normal 0.02; the rest keeps the framework's initialisation."""
        if isinstance(module, PatchMerging):
            module.reset_parameters()
        elif isinstance(module, (nn.Linear, Pointwise)):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif name.endswith(".atrous"):
            nn.init.kaiming_uniform_(cast(Tensor, module.weight), a=0)


# ---- Checkpoints ----------------------------------------------------------------------------------------------------


#: parts of a name in the authors' files, and ours, in the order in which they are replaced
_NAMES = (
    (r"^patch_embed\.conv\.([036])\.", lambda m: f"stem.conv{int(m[1]) // 3 + 1}.conv."),
    (r"^patch_embed\.conv\.([147])\.", lambda m: f"stem.conv{int(m[1]) // 3 + 1}.norm."),
    (r"^patch_embed\.proj\.", "stem.proj."),
    (r"^pos_embed$", "stages.1.downsample.pos_embed"),
    (r"^network\.1\.proj\.", "stages.1.downsample.conv1."),
    (r"^network\.(\d)\.", lambda m: f"stages.{max(0, int(m[1]) - 1)}.blocks."),
    (r"^(cls_token$|norm\.)", r"post.\1"),
    *((re.escape(theirs), ours) for theirs, ours in ((".attn.v.", ".mixer.value."), *REFERENCE_NAMES)),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Our own checkpoint unchanged; the authors' classifiers in our names and shapes."""
    state_dict = encoder_of(unwrap(state_dict, model), "network")
    if not any(name.startswith("network.") for name in state_dict):
        return state_dict
    entries = []
    for name, value in state_dict.items():
        ours = _our_name(name)
        if name == "pos_embed":
            value = value.permute(0, 3, 1, 2)
        if ours.endswith(".mixer.qkv.weight"):  # one matrix there, two here
            own, width = ours.removesuffix("qkv.weight"), len(value) // 3
            entries += [(name, f"{own}q.weight", value[:width]), (name, f"{own}kv.weight", value[width:])]
        else:
            entries.append((name, ours, value))
    return fit_shapes(renamed(entries), model)


def _our_name(name: str) -> str:
    """Our name of an authors' entry."""
    if name.startswith("post_network."):  # class attention: our names already
        return name.replace("post_network.", "post.blocks.")
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


# ---- Variants (LVT, Table 6) ----------------------------------------------------------------------------------------


_cfg = partial(
    default_cfg, crop_pct=0.96, pool_size=(14, 14), first_conv="stem.conv1.conv", classifier=("head", "aux_head")
)
default_cfgs = generate_default_cfgs({name: _cfg() for name in ("volo_d0", "volo_d0_csa", "volo_d0_csa_rasa")})


def _volo(variant: str, mixers: tuple[str, ...], pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    return build(VOLO, variant, pretrained, {"mixers": mixers}, overrides=overrides, filter_fn=checkpoint_filter_fn)


@register_model
def volo_d0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VOLO-D0, the baseline of LVT's Table 6: 3.9 M parameters."""
    return _volo("volo_d0", ("outlook", "sa", "sa", "sa"), pretrained, kwargs)


@register_model
def volo_d0_csa(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VOLO-D0 with convolutional self-attention in place of outlook attention."""
    return _volo("volo_d0_csa", ("csa", "sa", "sa", "sa"), pretrained, kwargs)


@register_model
def volo_d0_csa_rasa(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VOLO-D0 with both attentions of LVT."""
    return _volo("volo_d0_csa_rasa", ("csa", "rasa", "rasa", "rasa"), pretrained, kwargs)
