"""EMSNet: efficient multi-scale spatial interactions.

Xuan-Thuy Vo, "Efficient Vision Transformers with Multi-Scale and Partial Attentions for Object Recognition", PhD
dissertation, University of Ulsan, 2023, chapter 3; equation and table numbers below are the thesis'.

A block's mixer slices channels: one part to a static branch (convolutions, Eq. 3.1-3.5), the other to a dynamic branch
(self-attention, Eq. 3.6-3.8). Every sub-branch pools to its own token scale, mixes the sparse tokens, and spreads them
back with a transposed depthwise convolution.

No code of the authors is public. What the text leaves open (expansion factors, kernel sizes, head widths, the two 1x1
layers around the mixer, the equal split of channels) is fitted to the printed parameters and FLOPs: see the comments.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath, LayerScale2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    ConvNormAct,
    Mlp,
    Pointwise,
    blocks_per_stage,
    check_choice,
    per_stage,
)
from ._emsnet_mixer import DYNAMIC_OPS, NORMS, STATIC_OPS, DynamicBranch, Mixer, StaticBranch
from .checkpoints import encoder_of, renamed, unwrap
from .pyramid import Pyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["EMSNet", "checkpoint_filter_fn", "emsnet_tiny", "emsnet_xtiny", "emsnet_xtiny_c128", "emsnet_xxtiny"]


class Block(nn.Module):
    """Spatial mixing, then channel mixing, each with a residual; (B, dim, H, W) -> (B, dim, H, W).

    The two 1x1 layers around the mixer are not in the text: the printed baseline is reached only with them.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float,
        norm: str,
        layer_scale_init: float | None,
        drop_path: float,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale_init is None else LayerScale2d(dim, layer_scale_init, **dd)

        self.norm1 = NORMS[norm](dim, **dd)
        self.proj_in = Pointwise(dim, dim, bias=False, **dd)
        self.act = nn.GELU()
        self.mixer = mixer
        self.proj_out = Pointwise(dim, dim, bias=False, **dd)
        self.ls1 = scale()
        self.norm2 = NORMS[norm](dim, **dd)
        self.mlp = Mlp(dim, mlp_ratio, bias=False, **dd)
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.act(self.proj_in(self.norm1(x))))
        x = x + self.drop_path(self.ls1(self.proj_out(y)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class EMSNet(Pyramid):
    """EMSNet (thesis chapter 3).

    Args:
        embed_dims, depths, mlp_ratios: widths, blocks and MLP expansions of the four stages (Table 3.1).
        static_ratio: share of the channels the static branch takes, if there are both branches.
        static_ops: subset of ("whiten", "dw", "pe2", "pe4", "gate"); () = no static branch (Table 3.5).
        dynamic_ops: subset of ("cmhsa", "gmhsa"); () = no dynamic branch (Tables 3.5, 3.9).
        branch_ratios: shares of the static branch's three slices: first scale, untouched, second scale (Table 3.7).
        whiten: which mean the whitening removes, "channel" (Eq. 3.1), "spatial" (Eq. 3.12) or "none". None is "none"
            too, but `timm.create_model` leaves out options that are None.
        local_kernel, coord_kernel: sizes of the static branch's depthwise kernels, k x k and 1 x k, k x 1; odd.
        static_expand, cmhsa_expand, gmhsa_expand: channel expansion of the tokens.
        patch_sizes: pooling of the two static scales, of C-MHSA and of G-MHSA.
        head_dim: width of a head of C-MHSA; G-MHSA has heads half as wide.
        branch_fusion: the 1x1 layers after both concatenations (Eq. 3.4, 3.8; Table 3.9).
        channel_split: False gives every sub-branch all channels, without expansion, and adds (Table 3.9).
        mask_border: C-MHSA ignores window positions outside the map.
        norm: of the blocks, "bn", "gn" or "ln".
        layer_scale_init: initial layer scale of both residuals, None for none.
        out_norms: a BatchNorm on every output of the feature pyramid.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (32, 64, 128, 192),
        depths: Sequence[int] = (2, 2, 4, 2),
        mlp_ratios: float | Sequence[float] = (8, 8, 4, 4),
        static_ratio: float = 0.5,
        static_ops: Sequence[str] = STATIC_OPS,
        dynamic_ops: Sequence[str] = DYNAMIC_OPS,
        branch_ratios: Sequence[float] = (0.25, 0.5, 0.25),
        whiten: str | None = "channel",
        local_kernel: int = 7,
        coord_kernel: int = 13,
        static_expand: int = 2,
        cmhsa_expand: int = 2,
        gmhsa_expand: int = 1,
        patch_sizes: Sequence[int] = (2, 4, 4, 6),
        head_dim: int = 32,
        branch_fusion: bool = True,
        channel_split: bool = True,
        mask_border: bool = False,
        norm: str = "bn",
        layer_scale_init: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(embed_dims, num_classes, in_chans, global_pool, drop_rate)
        whiten = "none" if whiten is None else whiten
        check_choice("whiten", whiten, ("channel", "spatial", "none"))
        check_choice("norm", norm, tuple(NORMS))
        check_ops("static_ops", static_ops, STATIC_OPS)
        check_ops("dynamic_ops", dynamic_ops, DYNAMIC_OPS)
        check_shares(static_ratio, branch_ratios)
        for option, kernel in (("local_kernel", local_kernel), ("coord_kernel", coord_kernel)):
            check_choice(f"{option} % 2", kernel % 2, (1,))
        per_stage("patch_sizes", tuple(patch_sizes))
        embed_dims, depths = per_stage("embed_dims", embed_dims), blocks_per_stage(depths)
        mlp_ratios = per_stage("mlp_ratios", mlp_ratios)

        def make_mixer(dim: int) -> Mixer:
            both = bool(channel_split and static_ops and dynamic_ops)
            widths = (int(static_ratio * dim), dim - int(static_ratio * dim)) if both else (dim, dim)
            shared = {"fusion": branch_fusion, "split": channel_split, **dd}
            static = dynamic = None
            if static_ops:
                kernels = {"local_kernel": local_kernel, "coord_kernel": coord_kernel, "expand": static_expand}
                scales = {"ratios": branch_ratios, "patch_sizes": patch_sizes[:2]}
                static = StaticBranch(widths[0], static_ops, whiten=whiten, **scales, **kernels, **shared)
            if dynamic_ops:
                expand = {"cmhsa_expand": cmhsa_expand, "gmhsa_expand": gmhsa_expand}
                heads = {"head_dim": head_dim, "mask_border": mask_border}
                dynamic = DynamicBranch(widths[1], dynamic_ops, patch_sizes[2:], **expand, **heads, **shared)
            return Mixer(static, dynamic, widths, channel_split)

        self.stem = stem(in_chans, embed_dims[0], **dd)
        drop_path = drop_path_schedule(drop_path_rate, depths)
        stages = []
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            down = ConvNormAct(embed_dims[i - 1], dim, 3, stride=2, act=None, **dd) if i else None
            blocks = [
                Block(dim, make_mixer(dim), mlp_ratios[i], norm, layer_scale_init, drop_path[i][j], **dd)
                for j in range(depth)
            ]
            stages.append(Stage(blocks, down))
        self.stages = nn.Sequential(*stages)
        batch_norm = partial(nn.BatchNorm2d, **dd)
        self.finish(batch_norm(embed_dims[-1]), global_pool, batch_norm if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Our choice (the thesis names none): 1x1 and linear 0.02, k x k by fan-out; Prop initialises itself."""
        if isinstance(module, (Pointwise, nn.Linear)):
            trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def stem(in_chans: int, dim: int, device: Any = None, dtype: Any = None) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2 (Section 3.2.1); (B, in_chans, H, W) -> (B, dim, ceil(H / 4), ceil(W / 4))."""
    dd = {"device": device, "dtype": dtype}
    layers = nn.Sequential()
    layers.add_module("conv1", nn.Conv2d(in_chans, dim, 3, 2, 1, bias=False, **dd))
    layers.add_module("norm1", nn.BatchNorm2d(dim, **dd))
    layers.add_module("act", nn.GELU())
    layers.add_module("conv2", nn.Conv2d(dim, dim, 3, 2, 1, bias=False, **dd))
    layers.add_module("norm2", nn.BatchNorm2d(dim, **dd))
    return layers


def check_ops(option: str, ops: Any, allowed: Sequence[str]) -> None:
    """Raise `ValueError` unless `ops` is a list or tuple of some of `allowed`."""
    if not isinstance(ops, (list, tuple)) or not set(ops) <= set(allowed):
        raise ValueError(f"{option}={ops!r} is not allowed; give a list of any of {', '.join(map(repr, allowed))}")


def check_shares(static_ratio: float, branch_ratios: Sequence[float]) -> None:
    """Raise `ValueError` unless the shares of channels are shares."""
    if not 0.0 < static_ratio < 1.0:
        raise ValueError(f"static_ratio={static_ratio!r} must lie between 0 and 1; static_ops=() leaves the branch out")
    if len(branch_ratios) != 3 or min(branch_ratios) < 0 or abs(sum(branch_ratios) - 1) > 1e-6:
        raise ValueError(f"branch_ratios={branch_ratios!r} must be three shares of at least 0 that sum to 1")


default_cfgs = generate_default_cfgs(
    {name: default_cfg() for name in ("emsnet_xxtiny", "emsnet_xtiny", "emsnet_xtiny_c128", "emsnet_tiny")}
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Our own checkpoint unchanged; one that calls the layers behind both concatenations "fuse" in our names."""
    state_dict = encoder_of(unwrap(state_dict, model))
    return renamed((name, name.replace(".fuse.", ".fusion."), value) for name, value in state_dict.items())


@register_model
def emsnet_xxtiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EMSNet-XXTiny (Table 3.1): 2.57 M parameters."""
    options = {"embed_dims": (32, 64, 128, 192), "depths": (2, 2, 4, 2)}
    return build(EMSNet, "emsnet_xxtiny", pretrained, options, kwargs, checkpoint_filter_fn)


@register_model
def emsnet_xtiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EMSNet-XTiny: 2.96 M parameters.

    Its last width is 192: with the 128 of Table 3.1 (`emsnet_xtiny_c128`) the network has 2.31 M parameters, while
    Tables 3.1, 3.2 and 3.8 print 3.0 M.
    """
    options = {"embed_dims": (32, 64, 96, 192), "depths": (3, 3, 10, 2)}
    return build(EMSNet, "emsnet_xtiny", pretrained, options, kwargs, checkpoint_filter_fn)


@register_model
def emsnet_xtiny_c128(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EMSNet-XTiny with the widths printed in Table 3.1: 2.31 M parameters."""
    options = {"embed_dims": (32, 64, 96, 128), "depths": (3, 3, 10, 2)}
    return build(EMSNet, "emsnet_xtiny_c128", pretrained, options, kwargs, checkpoint_filter_fn)


@register_model
def emsnet_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EMSNet-Tiny (Table 3.1): 5.47 M parameters."""
    options = {"embed_dims": (64, 96, 128, 256), "depths": (3, 3, 10, 2)}
    return build(EMSNet, "emsnet_tiny", pretrained, options, kwargs, checkpoint_filter_fn)
