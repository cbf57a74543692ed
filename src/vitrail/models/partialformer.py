"""PartialFormer: full attention for the tokens that matter, one query for all the others.

Source: Vo, Nguyen, Priadana, Jo, "Efficient Vision Transformers with Partial Attention", ECCV 2024, read through
chapter 5 of X.-T. Vo's thesis (Table 5.1, Eq. 5.5-5.10); its equation numbers stand beside the lines, most of them in
`_partialformer_attention.py`.
Widths, depths and heads are printed; stem, patch embeddings, head and foreground ratios are the ones that reproduce
the printed parameters and FLOPs.
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
    blocks_per_stage,
    channels_last,
    check_choice,
    check_divides,
    per_stage,
)
from ..layers.tracing import unscripted
from ._partialformer_attention import EPS, FullAttention, PartialAttention, check_positive
from .checkpoints import encoder_of, fit_axes, rename_all, unwrap
from .pyramid import HiddenHeadPyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["PartialFormer"]

MIXERS = ("partial", "full")


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
    """Which tokens (B, ceil(H / stride), ceil(W / stride)) are padding: those all of whose pixels are, in (B, H, W)."""
    content = mask.logical_not().float().unsqueeze(1)
    return F.max_pool2d(content, stride, stride, ceil_mode=True).squeeze(1) == 0


def check_padding_mask(images: Tensor, mask: Tensor) -> None:
    """Raise `ValueError` unless `mask` is of bool and of the images' sides."""
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
        super().__init__(in_features, num_classes, hidden_size, global_pool, drop_rate, norm, "gelu", device, dtype)

    def drop_hidden(self) -> None:
        """Take norm, hidden layer and classifier out."""
        self.reset(0, "", reset_other=True)


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
        super().__init__(embed_dims, num_classes, in_chans, global_pool, drop_rate)
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
            padding_mask: (B, H, W), True where a pixel is padding, which then is never foreground and never looked at
                by attention; None = there is none. Convolutions read padding either way.
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
        return self._intermediates(x, indices, norm, stop_early, output_fmt, intermediates_only, padding_mask)

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


# ---- checkpoints and variants -------------------------------------------------------------------------------------

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
    return build(PartialFormer, variant, pretrained, VARIANTS[variant], overrides, checkpoint_filter_fn)


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
