"""Token mixers by name: those of all six papers, and the plain ones they are compared with.

Each is the paper's own module from its network's file, or is put together from such modules; the first line of its
function says what it is, the rest says what of the paper's block belongs to the mixer. Norm, residual, stochastic depth
and MLP stand in the host (`lab_plain.py`). A mixer maps the normalised map (B, C, H, W) to (B, C, H, W), for any H and
W.

A class of a user's own joins them by `register_mixer`.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError, nearest
from ..layers import Pointwise, check_divides, per_stage
from ..layers.tracing import notrace_module
from . import emsnet
from .lvt import CSA, RASA
from .mat import MatAttention
from .pale import PaleAttention
from .partialformer import PartialAttention
from .pslt import Fusion, LadderAttention, shift_strides

__all__ = ["MIXERS", "MixerKind", "Place", "make_mixer", "register_mixer"]


@dataclass(frozen=True)
class Place:
    """Where a mixer stands in its network.

    Attributes:
        dim: channels.
        num_heads: heads of the stage.
        stage: 0 to 3.
        block: index of the block inside its stage.
        device, dtype: of its parameters.
    """

    dim: int
    num_heads: int
    stage: int = 0
    block: int = 0
    device: Any = None
    dtype: Any = None

    @property
    def factory(self) -> dict[str, Any]:
        """`device` and `dtype` as keyword arguments of modules."""
        return {"device": self.device, "dtype": self.dtype}


@dataclass(frozen=True)
class MixerKind:
    """A mixer by its name.

    Attributes:
        name: what the option `mixer` of `lab_plain` takes.
        build: makes it from its `Place` and its options.
        description: one line.
        family: the paper's network it comes from; "" for the plain ones, "own" for a user's class.
        takes_raw: it is called with the normalised map and the map before the norm, which scores the tokens.
        made_of: the class, for a user's own.
    """

    name: str
    build: Callable[..., nn.Module]
    description: str
    family: str = ""
    takes_raw: bool = False
    made_of: type[nn.Module] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What `mixer_options` may set, with defaults."""
        parameters = list(inspect.signature(self.build).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}


#: every mixer by its name
MIXERS: dict[str, MixerKind] = {}

Builder = Callable[..., nn.Module]


def mixer(family: str = "", takes_raw: bool = False) -> Callable[[Builder], Builder]:
    """Register a function of a `Place` and options as the mixer of its name; its first line is the description."""

    def add(build: Builder) -> Builder:
        name = build.__name__
        description = (inspect.getdoc(build) or "").partition("\n")[0].rstrip(".")
        MIXERS[name] = MixerKind(name, build, description, family=family, takes_raw=takes_raw)
        return build

    return add


def make_mixer(name: str, place: Place, options: dict[str, Any] | None = None) -> nn.Module:
    """The mixer of a name at its place in a network.

    Raises:
        ValueError: unknown name or option, or an impossible value.
    """
    kind, options = kind_of(name), {} if options is None else options
    if not isinstance(options, dict):
        raise ValueError(f"mixer_options={options!r} is not allowed; give options by name, such as window_size")
    for option in options:
        if option not in kind.options:
            has = f"it has {', '.join(kind.options)}" if kind.options else "it has none"
            raise ValueError(f"mixer_options: mixer={name!r} has no option {option!r}; {has}")
    return kind.build(place, **options)


def kind_of(name: str) -> MixerKind:
    """The entry of `MIXERS` with a name.

    Raises:
        ValueError: there is none. Nothing is imported for it: a file's description may name anything.
    """
    if isinstance(name, str) and name in MIXERS:
        return MIXERS[name]
    shown = repr(name if not isinstance(name, str) or len(name) <= 80 else f"{name[:80]}...")
    if isinstance(name, str) and ":" in name:
        raise ValueError(
            f"mixer={shown} is a class of somebody's own that is not registered in this process: import it and call "
            "vitrail.lab.register_mixer with this name and the class first; no class is imported because a file names "
            "it"
        )
    close = nearest(name, MIXERS) if isinstance(name, str) else []
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"choose one of {', '.join(MIXERS)}"
    raise ValueError(f"mixer={shown} is not allowed; {hint}")


# ---- plain mixers ---------------------------------------------------------------------------------------------------


@mixer()
def identity(place: Place) -> nn.Module:
    """Nothing: the floor that every mixer has to beat.

    The block adds the normalised map, as the identity of "MetaFormer Baselines for Vision" (Yu et al., 2022).
    """
    return nn.Identity()


class Pooling(nn.Module):
    """Mean over k x k neighbours less the token itself (PoolFormer); (B, C, H, W) -> the same.

    At the border the mean is over the tokens that exist.
    """

    def __init__(self, kernel_size: int = 3):
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size
        return F.avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False) - x


@mixer()
def pooling(place: Place, kernel_size: int = 3) -> nn.Module:
    """Average pooling less the token itself, without parameters (PoolFormer)."""
    return Pooling(odd("kernel_size", kernel_size))


@mixer()
def depthwise(place: Place, kernel_size: int = 7) -> nn.Module:
    """Depthwise convolution 7x7 (ConvNeXt)."""
    size = odd("kernel_size", kernel_size)
    return nn.Conv2d(place.dim, place.dim, size, padding=size // 2, groups=place.dim, **place.factory)


def odd(option: str, value: Any) -> int:
    """The value, if it is a positive odd number; else `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f"{option}={value!r} is not allowed; give a positive odd number")
    return value


# `global` is no name that Python gives to a function
def _global(place: Place) -> nn.Module:
    """Attention of all tokens to all tokens (ViT)."""
    return emsnet.GlobalAttention(place.dim, place.num_heads, **place.factory)


_global.__name__ = "global"
mixer()(_global)


@mixer()
def spatial_reduction(place: Place, sr_ratios: Sequence[int] = (8, 4, 2, 1)) -> nn.Module:
    """Attention of all tokens to cells of s x s tokens, s by stage (PVT)."""
    return RASA(
        place.dim,
        place.num_heads,
        sr_ratio=positive("sr_ratios", per_stage("sr_ratios", sr_ratios)[place.stage]),
        atrous_rates=(),
        recursions=1,
        **place.factory,
    )


@mixer()
def window(place: Place, window_size: int = 7) -> nn.Module:
    """Attention inside windows that do not overlap, with relative position bias (Swin without its shift)."""
    return LadderAttention(
        place.dim, place.num_heads, window_size=positive("window_size", window_size), **place.factory
    )


@mixer()
def shifted_window(place: Place, window_size: int = 7) -> nn.Module:
    """Attention inside windows, displaced by half a window in every second block (Swin)."""
    shift = positive("window_size", window_size) // 2 if place.block % 2 else 0
    return LadderAttention(place.dim, place.num_heads, window_size=window_size, shift=shift, **place.factory)


def positive(option: str, value: Any) -> int:
    """The value, if it is a positive whole number; else `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{option}={value!r} is not allowed; give a whole number of 1 or more")
    return value


# ---- PSLT -----------------------------------------------------------------------------------------------------------


@notrace_module
class Ladder(nn.Module):
    """Ladder self-attention (PSLT, Eq. 1) with the norms and the FFN of its branches left to the host.

    Every branch attends in windows displaced in its own way on its share of the channels, and hands its output, with
    the residual, to the next one as values; then all are fused pixel by pixel (PAFM). The same as `pslt.LadderBlock`
    whose norms are the identity and whose light FFNs give 0.

    Args:
        dim: channels.
        num_heads: heads of each branch.

    Shapes: (B, dim, H, W) -> (B, dim, H, W).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_branches: int = 3,
        window_size: int = 7,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_divides("width", dim, num_branches * num_heads, "branches x heads of a branch")
        check_divides("width", dim, 2, "the ratio of the fusion's widths")
        self.num_branches = num_branches
        self.branches = nn.ModuleList(
            LadderAttention(dim // num_branches, num_heads, window_size=window_size, shift=shift, delivered=t > 0, **dd)
            for t, shift in enumerate(shift_strides(num_branches, window_size))
        )
        self.fusion = Fusion(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.chunk(self.num_branches, dim=1)  # I_t
        value: Tensor | None = None
        outputs: list[Tensor] = []
        for t, branch in enumerate(self.branches):
            attended = branch(inputs[t], value)  # Eq. 1: softmax(Q K^T / sqrt(d)) V, V = O of the branch before
            if value is not None:
                attended = attended + inputs[t]  # the shortcut of delivered branches in the authors' network
            out = inputs[t] + attended  # Eq. 1: ... + I, which is O_t without the FFN
            value = out
            outputs.append(out)
        return self.fusion(torch.cat(outputs, dim=1))


@mixer("pslt")
def ladder(place: Place, num_branches: int = 3, window_size: int = 7) -> nn.Module:
    """Ladder self-attention: branches of windows displaced progressively, values handed on, pixel-wise fusion.

    Norms and light FFN of the branches stay with the host. Heads of a branch: those of the stage divided by the
    number of branches, at least one.
    """
    if isinstance(num_branches, bool) or num_branches not in (1, 2, 3, 4, 6):
        raise ValueError(f"num_branches={num_branches!r} is not allowed; choose one of 1, 2, 3, 4, 6")
    if positive("window_size", window_size) < 2:
        raise ValueError(f"window_size={window_size!r} is not allowed; give 2 or more pixels")
    heads = max(1, place.num_heads // num_branches)
    return Ladder(place.dim, heads, num_branches=num_branches, window_size=window_size, **place.factory)


# ---- LVT ------------------------------------------------------------------------------------------------------------


@mixer("lvt")
def csa(place: Place) -> nn.Module:
    """Convolutional self-attention: 3x3 windows at stride 2 with predicted weights, a matrix a position."""
    return CSA(place.dim, place.num_heads, **place.factory)


@mixer("lvt")
def rasa(place: Place, sr_ratios: Sequence[int] = (8, 4, 2, 1), recursions: int = 2) -> nn.Module:
    """Recursive atrous self-attention: a query of several dilations, reduced keys, applied twice.

    LVT's block has a depthwise convolution inside its MLP, which is not part of the mixer.
    """
    return RASA(
        place.dim,
        place.num_heads,
        sr_ratio=positive("sr_ratios", per_stage("sr_ratios", sr_ratios)[place.stage]),
        recursions=positive("recursions", recursions),
        **place.factory,
    )


# ---- Pale -----------------------------------------------------------------------------------------------------------


def _pale(place: Place, mode: str, size: int, option: str = "pale_size") -> nn.Module:
    """`PaleAttention`, projections with their depthwise convolution and BatchNorm included.

    With one head in the first stage it has two, as rows and columns share the heads.
    """
    pale_size = (positive(option, size), size)
    heads = max(2, place.num_heads)
    return PaleAttention(place.dim, heads, mode, pale_size, block=place.block, **place.factory)


@mixer("pale")
def pale_parallel(place: Place, pale_size: int = 7) -> nn.Module:
    """Pale-shaped attention: half the channels in groups of interlaced rows, half of columns (the paper's form).

    The position encoding of Pale's block is the host's.
    """
    return _pale(place, "parallel", pale_size)


@mixer("pale")
def pale_sequential(place: Place, pale_size: int = 7) -> nn.Module:
    """Pale-shaped attention with all channels, row groups in even blocks, column groups in odd ones."""
    return _pale(place, "sequential", pale_size)


@mixer("pale")
def pale_vanilla(place: Place, pale_size: int = 7) -> nn.Module:
    """Attention inside whole pales: interlaced rows and columns together."""
    return _pale(place, "vanilla", pale_size)


@mixer("pale")
def pale_axial(place: Place) -> nn.Module:
    """Axial attention: half the channels along single rows, half along single columns."""
    return _pale(place, "axial", 1)


@mixer("pale")
def pale_cross_shaped(place: Place, split_sizes: Sequence[int] = (1, 2, 7, 7)) -> nn.Module:
    """Cross-shaped windows: stripes of adjacent rows and columns, as wide as the stage says (CSWin)."""
    return _pale(place, "cross_shaped", per_stage("split_sizes", split_sizes)[place.stage], option="split_sizes")


# ---- EMSNet ---------------------------------------------------------------------------------------------------------


def _ems(place: Place, static: bool, dynamic: bool) -> nn.Module:
    """EMSNet's mixer with the 1x1 layers around it, which project its input and output as others' q, k, v, o do."""
    dim, dd = place.dim, place.factory
    both = static and dynamic
    check_divides("width", dim, 8 if both else 4, "the slices of the EMS mixer")
    widths = (dim // 2, dim // 2) if both else (dim, dim)
    first = second = None
    if static:
        first = emsnet.StaticBranch(
            widths[0],
            emsnet.STATIC_OPS,
            ratios=(0.25, 0.5, 0.25),
            whiten="channel",
            local_kernel=7,
            coord_kernel=13,
            expand=2,
            patch_sizes=(2, 4),
            fusion=True,
            split=True,
            **dd,
        )
    if dynamic:
        check_divides("width", widths[1], 2 * place.num_heads, "2 x heads of the dynamic branch")
        second = emsnet.DynamicBranch(
            widths[1],
            emsnet.DYNAMIC_OPS,
            patch_sizes=(4, 6),
            cmhsa_expand=2,
            gmhsa_expand=1,
            head_dim=widths[1] // place.num_heads,  # as many heads as the stage has
            mask_border=False,
            fusion=True,
            split=True,
            **dd,
        )
    layers = nn.Sequential()
    layers.add_module("proj_in", Pointwise(dim, dim, bias=False, **dd))
    layers.add_module("act", nn.GELU())
    layers.add_module("ems", emsnet.Mixer(first, second, widths, split=True))
    layers.add_module("proj_out", Pointwise(dim, dim, bias=False, **dd))
    return layers


@mixer("emsnet")
def ems(place: Place) -> nn.Module:
    """EMSNet's whole mixer: half the channels to the static branch, half to the dynamic one."""
    return _ems(place, static=True, dynamic=True)


@mixer("emsnet")
def ems_static(place: Place) -> nn.Module:
    """EMSNet's static branch alone: a gate of convolutions at three scales."""
    return _ems(place, static=True, dynamic=False)


@mixer("emsnet")
def ems_dynamic(place: Place) -> nn.Module:
    """EMSNet's dynamic branch alone: predicted 3x3 attention and global attention, on pooled tokens."""
    return _ems(place, static=False, dynamic=True)


# ---- MAT ------------------------------------------------------------------------------------------------------------


@mixer("mat")
def mat(place: Place, window_size: int = 7) -> nn.Module:
    """Mixing abstract tokens: windows, and one token a window that attends to the other windows' tokens.

    The position encoding of MAT's block is the host's.
    """
    check_divides("width", place.dim, place.num_heads, "num_heads")
    return MatAttention(place.dim, place.num_heads, window_size=positive("window_size", window_size), **place.factory)


# ---- PartialFormer --------------------------------------------------------------------------------------------------


@mixer("partialformer", takes_raw=True)
def partial(place: Place, foreground_ratios: Sequence[Sequence[int]] = ((1, 64), (1, 16), (1, 8), (2, 5))) -> nn.Module:
    """Partial attention: full attention among the tokens of highest score, one query for all others.

    Tokens are scored before the norm, as in PartialFormer's block, whose position encoding is the host's.
    """
    ratio = per_stage("foreground_ratios", foreground_ratios)[place.stage]
    return PartialAttention(place.dim, place.num_heads, ratio, **place.factory)


# ---- a user's own ---------------------------------------------------------------------------------------------------


def register_mixer(name: str, made_of: type[nn.Module], description: str = "") -> MixerKind:
    """Make a class of a user's own a mixer of `lab_plain`.

    Args:
        name: what the option `mixer` will take; "module:Class" says where it comes from.
        made_of: a module that is built as made_of(dim) or made_of(dim, num_heads), and maps (B, dim, H, W) to
            (B, dim, H, W) for any H and W.
        description: one line; the first line of the class's docstring by default.

    Raises:
        UserError: the name is taken, the class is no module, or it does not map as it has to.
    """
    if name in MIXERS:
        if MIXERS[name].made_of is made_of:
            return MIXERS[name]
        raise UserError(f"A mixer is called {name!r} already: choose another name.")
    if not (isinstance(made_of, type) and issubclass(made_of, nn.Module)):
        raise UserError(f"Mixer {name!r} is no class of torch.nn.Module: {made_of!r}.")
    takes_heads = _takes_heads(name, made_of)

    def build(place: Place) -> nn.Module:
        return made_of(place.dim, place.num_heads) if takes_heads else made_of(place.dim)

    _check_maps(name, build)
    line = description or (inspect.getdoc(made_of) or "").partition("\n")[0].rstrip(".")
    MIXERS[name] = MixerKind(name, build, line, family="own", made_of=made_of)
    return MIXERS[name]


def _takes_heads(name: str, made_of: type[nn.Module]) -> bool:
    """True if a class is built as made_of(dim, num_heads), False as made_of(dim).

    Raises:
        UserError: it takes neither.
    """
    signature = inspect.signature(made_of)
    for arguments in ((1, 1), (1,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        # a second argument with a default is the heads only if it is called so
        named = list(signature.parameters)[1:2] == ["num_heads"]
        if len(arguments) == 1 or named or not _binds(signature, 1):
            return len(arguments) == 2
    raise UserError(f"Mixer {name!r} is built with {signature}; it has to take (dim) or (dim, num_heads).")


def _binds(signature: inspect.Signature, *arguments: Any) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


#: (channels, heads) and (height, width) on which a user's class is tried
TRIED = ((64, 4), (6, 9))


def _check_maps(name: str, build: Callable[[Place], nn.Module]) -> None:
    """Raise `UserError` unless the mixer maps a small map to one of the same shape."""
    (dim, heads), (height, width) = TRIED
    x = torch.zeros(2, dim, height, width)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            y = build(Place(dim, heads)).eval()(x)
    except Exception as error:  # whatever a stranger's module stops at
        raise UserError(
            f"Mixer {name!r} fails with {dim} channels and {heads} heads on a map of {height} x {width}: "
            f"{type(error).__name__}: {error}".rstrip(".")
            + ". A mixer has to take maps of any size."
        ) from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"Mixer {name!r} maps {tuple(x.shape)} to {found}; it has to keep the shape (B, C, H, W).")
