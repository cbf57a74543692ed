"""A plain four-stage network whose token mixer is an option: the host of the laboratory (`vitrail.lab`).

No paper's network: stem, down-sampling, norm, MLP and classifier are the common ones and stay the same for every mixer
of `mixers.py`, so that two networks of one width differ in the mixer alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    ConvNormAct,
    ConvPositionEncoding,
    Mlp,
    PatchEmbedConv,
    Pointwise,
    blocks_per_stage,
    check_choice,
    check_divides,
    per_stage,
)
from .checkpoints import encoder_of, unwrap
from .mixers import Place, kind_of, make_mixer
from .partialformer import PartialAttention, average_of_copies_
from .pyramid import Pyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["LabPlain", "lab_plain"]

EPS = 1e-6  # of every LayerNorm
WIDTH = 24  # of the first stage
GROWTH = (1, 2, 4, 8)  # of the width from stage to stage


class Block(nn.Module):
    """Position encoding, mixer and MLP, each with a residual; (B, dim, H, W) -> (B, dim, H, W).

    Args:
        mixer: module of the normalised map; with `takes_raw`, of the map before the norm, too.
        cpe: a depthwise 3x3 convolution before the mixer tells the tokens where they are.
    """

    takes_raw: Final[bool]

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        takes_raw: bool = False,
        mlp_ratio: float = 4.0,
        cpe: bool = True,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.takes_raw = takes_raw
        self.cpe = ConvPositionEncoding(dim, 3, **dd) if cpe else nn.Identity()
        self.norm1 = LayerNorm2d(dim, eps=EPS, **dd)
        self.mixer = mixer
        self.norm2 = LayerNorm2d(dim, eps=EPS, **dd)
        self.mlp = Mlp(dim, mlp_ratio, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe(x)
        if self.takes_raw:  # noqa: SIM108 - TorchScript leaves a branch out only in this form
            mixed = self.mixer(self.norm1(x), x)
        else:
            mixed = self.mixer(self.norm1(x))
        x = x + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LabPlain(Pyramid):
    """The host: a stem of two 3x3 convolutions, four stages, LayerNorm, mean, linear classifier.

    Args:
        num_classes, in_chans, global_pool, drop_rate: see `Pyramid`.
        mixer: one of `mixers.MIXERS`, the same in all blocks; a user's own class after `register_mixer`.
        mixer_options: of the mixer, such as {"window_size": 4}; see `MixerKind.options`.
        width: of the first stage; the others have 2, 4 and 8 times as many channels. None = 24.
        embed_dims: widths of the four stages instead.
        depths: blocks of the four stages.
        num_heads: heads of the four stages, of mixers that have heads.
        mlp_ratio: hidden width / width of the MLP.
        cpe: the position encoding of a block, which Pale, MAT and PartialFormer have in theirs; without it, most
            attentions know no positions but those that the borders of the stem leak.
        stem_stride: 1, 2 or 4; stages have this stride and 2, 4, 8 times as much. 4 is common at 224 pixels, 2 suits
            32 pixels, 1 suits 8.
        drop_path_rate: stochastic depth of the last block, linear from 0 at the first.
        out_norms: a LayerNorm on each pyramid output.

    Raises:
        ValueError: for an option outside its allowed values.
    """

    no_decay = ("relative_position_bias_table", "abstract_token", ".token")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        mixer: str = "window",
        mixer_options: dict[str, Any] | None = None,
        width: int | None = None,
        embed_dims: Sequence[int] | None = None,
        depths: Sequence[int] = (2, 2, 4, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratio: float = 4.0,
        cpe: bool = True,
        stem_stride: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        dims, depths, heads = widths_of(width, embed_dims), blocks_per_stage(depths), per_stage("num_heads", num_heads)
        check_choice("stem_stride", stem_stride, (1, 2, 4))
        if not mlp_ratio > 0:
            raise ValueError(f"mlp_ratio={mlp_ratio!r} is not allowed; give a number above 0")
        for i, (dim, count) in enumerate(zip(dims, heads, strict=True)):
            check_divides(f"embed_dims[{i}]", dim, count, f"num_heads[{i}]")
        super().__init__(
            dims,
            num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            reductions=[stem_stride * 2**i for i in range(4)],
        )
        kind = kind_of(mixer)
        self.own_mixer = kind.made_of is not None
        first = min(2, stem_stride)
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", ConvNormAct(in_chans, dims[0] // 2, stride=first, **dd))
        self.stem.add_module("conv2", ConvNormAct(dims[0] // 2, dims[0], stride=stem_stride // first, act=None, **dd))

        drop_paths = drop_path_schedule(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(dims):
            down = PatchEmbedConv(dims[i - 1], dim, 3, 2, norm_eps=EPS, **dd) if i else None
            blocks = [
                Block(
                    dim,
                    make_mixer(mixer, Place(dim, heads[i], stage=i, block=j, **dd), mixer_options),
                    takes_raw=kind.takes_raw,
                    mlp_ratio=mlp_ratio,
                    cpe=cpe,
                    drop_path=rate,
                    **dd,
                )
                for j, rate in enumerate(drop_paths[i])
            ]
            stages.append(Stage(blocks, down))
        self.stages = nn.Sequential(*stages)
        norm = partial(LayerNorm2d, eps=EPS, **dd)
        self.finish(norm(dims[-1]), global_pool, norm if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Linear layers and abstract tokens truncated normal 0.02, convolutions by fan-out, biases zero.

        The same for all mixers but a user's own, which initialise themselves. PartialFormer's head MLP starts as the
        identity, as in its network; what has a `reset_parameters` of a paper's own keeps it.
        """
        if self.own_mixer and ".mixer." in f"{name}.":
            return
        if isinstance(module, PartialAttention) and module.abstract_token is not None:
            trunc_normal_(module.abstract_token, std=0.02)
        elif isinstance(module, (nn.Linear, Pointwise)):
            trunc_normal_(module.weight, std=0.02)
            if ".head_mlp." in name:
                average_of_copies_(module.weight)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def widths_of(width: int | None, embed_dims: Sequence[int] | None) -> tuple[int, ...]:
    """Widths of the four stages, from the first one's or one by one.

    Raises:
        ValueError: both are given, or one is no positive even number.
    """
    if width is not None and embed_dims is not None:
        raise ValueError(f"width={width!r} and embed_dims={embed_dims!r} say the same; give one of them")
    base = WIDTH if width is None else width
    dims = [base * growth for growth in GROWTH] if embed_dims is None else list(per_stage("embed_dims", embed_dims))
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2 or dim % 2:
            option = f"width={width!r}" if embed_dims is None else f"embed_dims={embed_dims!r}"
            raise ValueError(f"{option} is not allowed; give even numbers of 2 or more channels")
    return tuple(dims)


# ---- checkpoints and registration -----------------------------------------------------------------------------------


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Our own checkpoints unchanged, out of a trainer's or a detector's file."""
    return encoder_of(unwrap(state_dict, model))


default_cfgs = generate_default_cfgs({"lab_plain": default_cfg(first_conv="stem.conv1.conv")})


@register_model
def lab_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The laboratory's host with the mixer of the option `mixer`; no paper's network."""
    return build(LabPlain, "lab_plain", pretrained, {}, overrides=kwargs, filter_fn=checkpoint_filter_fn)
