"""LVT: convolutional self-attention at the finest scale, recursive atrous self-attention at the others.

C. Yang, Y. Wang, J. Zhang, H. Zhang, Z. Wei, Z. Lin, A. Yuille, "Lite Vision Transformer with Enhanced Self-Attention",
CVPR 2022 (arXiv 2112.10809). Equation, table and section numbers below are that paper's. Where the paper and the
authors' released network differ, the released network is followed, and a comment says so.

The authors' weights, which `checkpoint_filter_fn` converts, come with a licence for non-commercial research only.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from timm.layers import LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    Mlp,
    PatchEmbedConv,
    Pointwise,
    blocks_per_stage,
    per_stage,
)
from ..layers.class_attention import ClassAttentionPost
from ._class_token import ClassTokenPyramid
from ._lvt_attention import EPS, REFERENCE_NAMES, Block, check_rasa, mixer_of
from .checkpoints import encoder_of, fit_shapes, renamed, unwrap
from .pyramid import Stage, build, default_cfg, drop_path_schedule

__all__ = ["LVT", "lvt", "lvt_r1", "lvt_r3", "lvt_r4", "lvt_scaled"]


# ---- Network (section 3.3) ------------------------------------------------------------------------------------------


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
        qkv_bias: biases on query, key and value projections; CSA's per-tap projections never have one.
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
            embed_dims, num_classes, in_chans, global_pool, drop_rate, token_labeling, mix_token, aux_logit_weight
        )

        rasa = (atrous_rates, rasa_recursions, rasa_state, rasa_output_act)

        def make_mixer(i: int) -> nn.Module:
            return mixer_of(i, mixers[i], embed_dims[i], num_heads[i], rasa, sr_ratios[i], sr_pad, qkv_bias, **dd)

        self.stem = PatchEmbedConv(in_chans, embed_dims[0], 7, 4, **dd)
        drop_paths = drop_path_schedule(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            down = PatchEmbedConv(embed_dims[i - 1], dim, 3, 2, **dd) if i else None
            blocks = [Block(make_mixer(i), dim, mlp_ratios[i], mlp_dwconv[i], rate, **dd) for rate in drop_paths[i]]
            stages.append(Stage(blocks, down))
        self.stages = nn.Sequential(*stages)

        post = norm = None
        if class_attention:
            post = ClassAttentionPost(dim, num_heads[-1], mlp_ratios[-1], qkv_bias=qkv_bias, norm_eps=EPS, **dd)
        else:
            norm = LayerNorm2d(dim, eps=EPS, **dd)
        self.finish(norm, global_pool, partial(LayerNorm2d, eps=EPS, **dd) if out_norms else None, post=post, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """As measured on the authors' network; what is not named here keeps the framework's initialisation."""
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


# ---- Variants -------------------------------------------------------------------------------------------------------


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Our own checkpoint unchanged; the authors' (classifier, encoder or segmenter file) in our names and shapes."""
    state_dict = encoder_of(unwrap(state_dict, model), "backbone")
    if not any(name.startswith("backbone.") for name in state_dict):
        return state_dict
    with_token = "cls_token" in state_dict  # the norm is class attention's, then
    return fit_shapes(renamed((name, _our_name(name, with_token), v) for name, v in state_dict.items()), model)


def _our_name(name: str, with_token: bool) -> str:
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


_cfg = partial(default_cfg, crop_pct=0.96, classifier=("head", "aux_head"))
default_cfgs = generate_default_cfgs({name: _cfg() for name in ("lvt", "lvt_r1", "lvt_r3", "lvt_r4", "lvt_scaled")})


def _lvt(variant: str, pretrained: bool, overrides: dict[str, Any], **options: Any) -> LVT:
    return build(LVT, variant, pretrained, options, overrides, checkpoint_filter_fn)  # pyright: ignore[reportReturnType]


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

    Its configuration was not published: this one is inferred, and meets the printed parameters and FLOPs.
    """
    options = {"embed_dims": (96, 128, 320, 512), "depths": (2, 5, 6, 3), "num_heads": (3, 4, 10, 16)}
    return _lvt("lvt_scaled", pretrained, kwargs, **options)
