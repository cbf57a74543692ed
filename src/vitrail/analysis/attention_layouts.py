"""How the attention of each class of modules lies on the map: windows, heads, queries and keys, registered by class.

A layout is a function of a module and one forward pass of it that gives `AttentionWeights` by the attention's name, ""
where the module has only one. The networks do not know their layouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.models.coat import FactorAttnConvRelPosEnc
from timm.models.edgenext import CrossCovarianceAttn
from timm.models.efficientformer import Attention as EfficientFormerAttention
from timm.models.levit import Attention as LevitAttention
from timm.models.mobilevit import MobileVitBlock
from timm.models.nest import Attention as NestAttention
from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.swin_transformer import WindowAttention as SwinAttention
from timm.models.swin_transformer import window_partition as swin_partition
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from timm.models.xcit import XCA
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import round_up, unfold3x3, window_partition
from ..layers.class_attention import ClassAttention
from ..models.emsnet import ConvAttention, GlobalAttention
from ..models.lvt import CSA, RASA, SpatialReduction
from ..models.mat import MatAttention, WindowAttention
from ..models.pale import PaleAttention, pad_map
from ..models.partialformer import FullAttention, PartialAttention, foreground_count
from ..models.pslt import LadderAttention, effective_shift, shifted_axis
from .attention_weights import AttentionWeights, Layout, Pass, fused_weights
from .layers import prefix_tokens

Found = dict[str, AttentionWeights]

#: timm's attention over channels, or of keys alone: it has a dropout as attention has, but no weights between tokens
NOT_BETWEEN_TOKENS = (CrossCovarianceAttn, FactorAttnConvRelPosEnc, XCA)

#: class of modules -> its layout
LAYOUTS: dict[type[nn.Module], Layout] = {}


def layout_of(*kinds: type[nn.Module]) -> Callable[[Layout], Layout]:
    """Register a function as the layout of classes of modules; subclasses do not inherit it."""

    def add(layout: Layout) -> Layout:
        LAYOUTS.update(dict.fromkeys(kinds, layout))
        return layout

    return add


# ---- positions -------------------------------------------------------------------------------------------------------


def positions(height: int, width: int) -> Tensor:
    """Row-major positions plus one, as a map (1, H, W, 1): zero padding then marks what lies outside."""
    return torch.arange(1, height * width + 1).reshape(1, height, width, 1)


def whole_map(size: tuple[int, int]) -> Tensor:
    """Positions of the tokens of a map in one window: (1, 1, H * W)."""
    return torch.arange(size[0] * size[1]).reshape(1, 1, -1)


def within(weights: Tensor, values: Tensor | None, places: Tensor, size: tuple[int, int]) -> AttentionWeights:
    """Attention among the tokens of each window.

    Args:
        weights: (images, windows, heads, tokens, tokens).
        values: (images, windows, heads, tokens, d).
        places: positions (windows, tokens).
        size: (height, width) of the map.
    """
    places = places[None].to(weights.device)
    return AttentionWeights(weights, values, places, places, query_size=size, key_size=size)


def square(tokens: int, prefix: int = 0) -> tuple[int, int] | None:
    """(height, width) of a square map's tokens; None where they make no square."""
    side = math.isqrt(max(tokens - prefix, 0))
    return (side, side) if side and side * side == tokens - prefix else None


def with_prefix(size: tuple[int, int], prefix: int) -> Tensor:
    """Positions (1, 1, prefix + H * W) of a column of tokens; -1 for its class and register tokens."""
    return F.pad(whole_map(size), (prefix, 0), value=-1)


# ---- PSLT, Pale, MAT: windows and groups -----------------------------------------------------------------------------


@layout_of(LadderAttention)
def ladder(module: LadderAttention, one: Pass) -> Found:
    """Windows of a branch, shifted and delivered ones too."""
    (weights, values) = one.attentions[0]  # (B, windows * heads, T, T)
    height, width = one.inputs[0].shape[2:]
    m, heads = module.window_size, module.num_heads
    if weights.shape[-1] == height * width and module.window_layout(height, width, weights.device)[1] is None:
        places = torch.arange(height * width)[None]
    else:
        shift = effective_shift(height, width, m, module.shift)
        rows = shifted_axis(height, m, shift, torch.device("cpu"))[:, None]
        cols = shifted_axis(width, m, shift, torch.device("cpu"))
        pixels = (rows * width + cols).masked_fill((rows >= height) | (cols >= width), -1)
        places = window_partition(pixels[None, :, :, None], m).squeeze(2)
    split = (weights.unflatten(1, (-1, heads)), values.unflatten(1, (-1, heads)))
    return {"": within(*split, places=places, size=(height, width))}


@layout_of(PaleAttention)
def pale(module: PaleAttention, one: Pass) -> Found:
    """Row groups and column groups, pales, or the whole map."""
    height, width = one.inputs[0].shape[2:]
    mode = module.mode(height, width)
    groups = positions(height, width)
    if module.pad_first:
        groups = pad_map(groups, *module.padded_size(height, width))
    found, attentions = {}, iter(one.attentions)
    for kind in ("rows", "columns") if mode == "parallel" else (mode,):
        places = [part.squeeze(3)[0] - 1 for part in module.group(kind, groups)]  # (groups, tokens)
        pairs = [next(attentions) for _ in places]  # (B * groups, heads, tokens, tokens)
        longest = max(place.shape[1] for place in places)
        weights = [_filled(w.unflatten(0, (one.images, -1)), longest, longest) for w, _ in pairs]
        values = [_filled(v.unflatten(0, (one.images, -1)), longest, v.shape[-1]) for _, v in pairs]
        index = torch.cat([F.pad(place, (0, longest - place.shape[1]), value=-1) for place in places])
        name = "pales" if kind == "vanilla" else kind
        found[name] = within(torch.cat(weights, 1), torch.cat(values, 1), places=index, size=(height, width))
    return found


def _filled(x: Tensor, rows: int, cols: int) -> Tensor:
    """Zeros at the end of the last two axes, up to a size."""
    return F.pad(x, (0, cols - x.shape[-1], 0, rows - x.shape[-2]))


def _windows(module: WindowAttention, height: int, width: int) -> Tensor:
    """Positions (windows, tokens) of the windows of an (H, W) map."""
    if module.is_single_window(height, width):
        return torch.arange(height * width)[None]
    m = module.window_size
    return window_partition(pad_map(positions(height, width), round_up(height, m), round_up(width, m)), m)[..., 0] - 1


@layout_of(WindowAttention)
def windows(module: WindowAttention, one: Pass) -> Found:
    """Windows without a token of their own."""
    height, width = one.inputs[0].shape[2:]
    weights, values = (x.unflatten(0, (one.images, -1)) for x in one.attentions[0])
    return {"": within(weights, values, places=_windows(module, height, width), size=(height, width))}


@layout_of(MatAttention)
def abstract_tokens(module: MatAttention, one: Pass) -> Found:
    """Local attention, token abstraction, mixing of the abstract tokens, and fusion.

    The abstract tokens lie on the grid of the windows.
    """
    height, width = one.inputs[0].shape[2:]
    attentions = one.attentions
    weights, values = (x.unflatten(0, (one.images, -1)) for x in attentions[0])  # (B, nW, heads, T + 1, T or T + 1)
    device = weights.device
    m = module.window_size
    size, grid = (height, width), (-(-height // m), -(-width // m))
    queries = _windows(module, height, width)
    keys = F.pad(queries, (0, weights.shape[-1] - queries.shape[1]), value=-1)[None].to(device)
    tokens = torch.arange(grid[0] * grid[1], device=device)
    found = {
        "local": AttentionWeights(
            weights[:, :, :, :-1], values, queries[None].to(device), keys, query_size=size, key_size=size
        ),
        "abstraction": AttentionWeights(
            weights[:, :, :, -1:], values, tokens[None, :, None], keys, query_size=grid, key_size=size
        ),
    }
    if len(attentions) == 1:  # one window: both softmaxes over its only abstract token are 1 and are left out
        ones = weights.new_ones((one.images, 1, module.num_heads, 1, 1))
        mixing: tuple[Tensor, Tensor | None] = (ones, None)
        fusion: tuple[Tensor, Tensor | None] = (ones.expand(-1, -1, -1, height * width, -1), None)
    else:
        mixing, fusion = ((w[:, None], v[:, None]) for w, v in attentions[1:])
    pixels = positions(height, width)
    if module.pad_first:
        pixels = pad_map(pixels, grid[0] * m, grid[1] * m)
    spots = pixels.reshape(1, 1, -1).to(device) - 1
    tokens = tokens[None, None]
    found["mixing"] = AttentionWeights(*mixing, tokens, tokens, query_size=grid, key_size=grid)
    found["fusion"] = AttentionWeights(*fusion, spots, tokens, query_size=size, key_size=grid)
    return found


# ---- EMSNet, LVT, VOLO -----------------------------------------------------------------------------------------------


def _windows3x3(height: int, width: int) -> Tensor:
    """Positions (windows, 9) of the 3x3 windows at stride 2."""
    return unfold3x3(positions(height, width)).flatten(1, 2)[0, ..., 0] - 1


@layout_of(ConvAttention)
def predicted_attention(module: ConvAttention, one: Pass) -> Found:
    """C-MHSA: 3x3 windows at stride 2 of the token map."""
    size = tuple(one.inputs[0].shape[2:])
    weights = one.softmaxes[0].permute(0, 4, 1, 2, 3)  # (B, L, heads, 9, 9)
    values = one.of("matmul")[-1].args[1]  # (B, L, heads, 9, d)
    return {"": within(weights, values, places=_windows3x3(*size), size=size)}


@layout_of(CSA)
def convolutional_self_attention(module: CSA, one: Pass) -> Found:
    """CSA and outlook attention: queries are the output positions of a window, keys its input positions."""
    batch, _, height, width = one.inputs[0].shape
    weights = one.softmaxes[0].unflatten(2, (module.num_heads, 9)).permute(0, 2, 3, 1)  # (B * L, heads, 9 out, 9 in)
    weights, values = (x.unflatten(0, (batch, -1)) for x in (weights, one.of("matmul")[-1].args[1]))
    return {"": within(weights, values, places=_windows3x3(height, width), size=(height, width))}


@layout_of(GlobalAttention, FullAttention)
def all_tokens(module: nn.Module, one: Pass) -> Found:
    """Attention over the whole map."""
    size = tuple(one.inputs[0].shape[2:])
    weights, values = one.attentions[0]
    return {"": within(weights[:, None], values[:, None], places=whole_map(size)[0], size=size)}


@layout_of(RASA)
def recursive_attention(module: RASA, one: Pass) -> Found:
    """One attention for each pass of the recursion, over keys that are cells of the map.

    "pass_1.dilation_3" are the weights that the query of one dilation alone would give, whose sum the query is.
    """
    size = tuple(one.inputs[0].shape[2:])
    keys = reduced_size(module.sr, *size)
    device = one.inputs[0].device
    found: Found = {}
    number, queries = 1, []

    def add(name: str, weights: Tensor, values: Tensor | None) -> None:
        spots, cells = whole_map(size).to(device), whole_map(keys).to(device)
        values = None if values is None else values[:, None]
        found[name] = AttentionWeights(weights[:, None], values, spots, cells, query_size=size, key_size=keys)

    for call in one.of("silu", "scaled_dot_product_attention"):
        if call.name == "silu":
            queries.append(call.output)
            continue
        add(f"pass_{number}", *fused_weights(*call.args, **call.options))
        _, key, value = call.args[:3]
        # the last activations before the attention are of its query, one for each dilation
        for rate, query in zip(module.atrous_rates, queries[-len(module.atrous_rates) :], strict=False):
            alone = query.flatten(2).unflatten(1, (module.num_heads, -1)).transpose(2, 3)
            add(f"pass_{number}.dilation_{rate}", fused_weights(alone, key, value)[0], None)
        number, queries = number + 1, []
    return found


def reduced_size(reduction: nn.Module, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the keys that a map of that size is reduced to."""
    if not isinstance(reduction, SpatialReduction):
        return height, width
    s = reduction.ratio
    if reduction.pad:
        return round_up(height, s) // s, round_up(width, s) // s
    return max(1, height // s), max(1, width // s)


@layout_of(ClassAttention)
def class_token(module: ClassAttention, one: Pass) -> Found:
    """The class token over itself and the map."""
    weights, values = (x[:, None] for x in one.attentions[0])
    size = square(weights.shape[-1], 1)
    if size is None:
        return {"": AttentionWeights(weights, values)}
    nowhere = torch.full((1, 1, 1), -1, device=weights.device)
    return {
        "": AttentionWeights(
            weights, values, nowhere, with_prefix(size, 1).to(weights.device), query_size=size, key_size=size
        )
    }


# ---- PartialFormer ---------------------------------------------------------------------------------------------------


@layout_of(PartialAttention)
def partial_attention(module: PartialAttention, one: Pass) -> Found:
    """Foreground attention after the softmax and as it multiplies the values, and the single query's.

    "mixed" are maps after the second layer of the head MLP, whose rows need not sum to 1; "softmax" has e * h heads;
    "unmixed" are what the same queries and keys would give without the head MLP, to compare with.
    The abstract token, where there is one, comes first and lies on no map, as the single query of "query".
    """
    size = tuple(one.inputs[0].shape[2:])
    chosen = foreground(module, one)[:, None]  # (B, 1, N_F)
    if module.abstract_token is not None:
        chosen = F.pad(chosen, (1, 0), value=-1)
    scores = one.of("topk", "sort")[0].args[0]
    softmaxes = one.softmaxes
    found: Found = {}
    if module.head_mlp is None:
        mixed, values = one.attentions[0]
        soft = mixed
    else:
        soft = softmaxes.pop(0)
        logits, product = one.of("matmul")[:2]
        mixed, values = product.args
        # keys that are no foreground get no weight in any row
        unmixed = logits.output.masked_fill((soft == 0).all(1, keepdim=True), float("-inf")).softmax(-1)
        found["unmixed"] = AttentionWeights(unmixed[:, None], None, chosen, chosen, query_size=size, key_size=size)
    found |= {
        "softmax": AttentionWeights(soft[:, None], None, chosen, chosen, query_size=size, key_size=size),
        "mixed": AttentionWeights(
            mixed[:, None], values[:, None], chosen, chosen, query_size=size, key_size=size, scores=scores
        ),
    }
    if softmaxes:
        nowhere = torch.full((1, 1, 1), -1, device=soft.device)
        spots = whole_map(size).to(soft.device)
        query = softmaxes[0][:, None, :, None]
        found["query"] = AttentionWeights(query, None, nowhere, spots, query_size=size, key_size=size)
    return found


def foreground(module: PartialAttention, one: Pass) -> Tensor:
    """Positions of the foreground of one pass (B, N_F); -1 where an image's padding leaves it fewer."""
    index = one.of("topk", "sort")[0].output[1]
    height, width = one.inputs[0].shape[2:]
    padding = one.inputs[2] if len(one.inputs) > 2 else None
    # `sort` gives all tokens, highest score first
    index = index[:, : foreground_count(height * width, module.numerator, module.denominator, module.max_foreground)]
    surplus = module.surplus(index, padding)
    return index if surplus is None else index.masked_fill(surplus, -1)


# ---- timm ------------------------------------------------------------------------------------------------------------


def _timm_weights(one: Pass) -> tuple[Tensor, Tensor | None]:
    """(images, windows, heads, queries, keys) and values, fused or not; windows of an image follow each other."""
    values: Tensor | None
    if one.of("scaled_dot_product_attention"):
        weights, values = one.attentions[0]
    else:
        weights, values = one.softmaxes[0], None
        products = one.of("matmul")
        # what multiplies the values may follow from the softmax, as where heads are mixed (CaiT)
        if products and products[-1].args[0].shape == weights.shape:
            weights, values = products[-1].args
    if weights.ndim == 4:
        weights = weights.unflatten(0, (one.images, -1))
        values = None if values is None else values.unflatten(0, (one.images, -1))
    return weights, values


@layout_of(EfficientFormerAttention, LevitAttention)
def plain_attention(module: Any, one: Pass) -> Found:
    """Attention of a class that is not known: over a column of tokens where there is one window an image.

    The map is a square, or timm's `grid_size`, without the network's prefix tokens.
    """
    weights, values = _timm_weights(one)
    tokens = weights.shape[-1]
    blocks = [block for block in one.network.modules() if isinstance(block, MobileVitBlock)]
    if block := next((block for block in blocks if module in block.modules()), None):
        return {"": mobilevit(block, weights, values)}
    if weights.shape[1] != 1 or weights.shape[-2] != tokens:
        return {"": AttentionWeights(weights, values)}
    prefix = prefix_tokens(one.network)
    grid = getattr(getattr(one.network, "patch_embed", None), "grid_size", None)
    if grid and math.prod(grid) == tokens:  # the class token comes later (CaiT)
        prefix = 0
    size = tuple(grid) if grid and math.prod(grid) == tokens - prefix else square(tokens, prefix)
    if size is None:
        return {"": AttentionWeights(weights, values)}
    return {"": within(weights, values, places=with_prefix(size, prefix)[0], size=size)}


def mobilevit(block: Any, weights: Tensor, values: Tensor | None) -> AttentionWeights:
    """The pixels at one place of their patch make a window; the patches make a square."""
    grid = square(weights.shape[-1])
    if grid is None:
        return AttentionWeights(weights, values)
    height, width = block.patch_size
    size = (grid[0] * height, grid[1] * width)
    pixels = torch.arange(size[0] * size[1]).reshape(grid[0], height, grid[1], width)
    return within(weights, values, places=pixels.permute(1, 3, 0, 2).reshape(height * width, -1), size=size)


@layout_of(NestAttention)
def nested_blocks(module: Any, one: Pass) -> Found:
    """Blocks of a square map, row by row."""
    fused = one.attentions
    weights, values = (x.transpose(1, 2) for x in (fused[0] if fused else one.of("matmul")[-1].args))
    blocks, tokens = square(weights.shape[1]), square(weights.shape[-1])
    if blocks is None or tokens is None:
        return {"": AttentionWeights(weights, values)}
    side = blocks[0] * tokens[0]
    places = window_partition(positions(side, side), tokens[0])[..., 0] - 1
    return {"": within(weights, values, places=places, size=(side, side))}


@layout_of(SwinAttention)
def swin(module: SwinAttention, one: Pass) -> Found:
    """Windows of the map that the block has shifted and padded."""
    weights, values = _timm_weights(one)
    block: Any = one.outer
    assert one.outer_shape is not None
    _, height, width, _ = one.outer_shape
    m, n = block.window_size
    shifted = positions(height, width).roll([-shift for shift in block.shift_size], (1, 2))
    parts = swin_partition(pad_map(shifted, round_up(height, m), round_up(width, n)), block.window_size)
    return {"": within(weights, values, places=parts.flatten(1) - 1, size=(height, width))}


@layout_of(LocallyGroupedAttn)
def twins_windows(module: Any, one: Pass) -> Found:
    """Windows of the padded map; padding is attended to."""
    weights, values = _timm_weights(one)
    height, width = one.inputs[1]
    m = module.ws
    padded = pad_map(positions(height, width), round_up(height, m), round_up(width, m))
    return {"": within(weights, values, places=window_partition(padded, m)[..., 0] - 1, size=(height, width))}


@layout_of(PvtAttention, GlobalSubSampleAttn)
def reduced_keys(module: nn.Module, one: Pass) -> Found:
    """All tokens over keys that a convolution or pooling has reduced; the keys make a map of the same proportions."""
    weights, values = _timm_weights(one)
    size = tuple(one.inputs[1])
    ratio = math.sqrt(size[0] * size[1] / weights.shape[-1])
    keys = (round(size[0] / ratio), round(size[1] / ratio))
    if math.prod(keys) != weights.shape[-1]:
        return {"": AttentionWeights(weights, values)}
    spots, cells = (whole_map(one_size).to(weights.device) for one_size in (size, keys))
    return {"": AttentionWeights(weights, values, spots, cells, query_size=size, key_size=keys)}


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


@layout_of(nn.MultiheadAttention)
def multi_head(module: nn.MultiheadAttention, one: Pass) -> Found:
    """PyTorch's own attention, as in torchvision's networks; it is asked again for the weights that it did not give."""
    call = one.of("multi_head_attention_forward")[0]
    wanted = call.options | {"need_weights": True, "average_attn_weights": False, "training": False}
    weights = F.multi_head_attention_forward(*call.args, **wanted)[1]  # (images, heads, queries, keys)
    assert weights is not None
    weights = weights.unflatten(0, (one.images, -1))
    values = None
    if module.bias_v is None and not module.add_zero_attn:  # these add a key
        own = module.in_proj_weight.chunk(3)[2] if module.v_proj_weight is None else module.v_proj_weight
        bias = None if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[2]
        values = F.linear(call.args[2], own, bias).unflatten(2, (module.num_heads, -1))  # (keys, images, heads, d)
        values = values.permute(1, 2, 0, 3).unflatten(0, (one.images, -1))
    prefix = prefix_tokens(one.network)
    size = square(weights.shape[-1], prefix)
    if size is None or weights.shape[1] != 1 or weights.shape[-2] != weights.shape[-1]:
        return {"": AttentionWeights(weights, values)}
    return {"": within(weights, values, places=with_prefix(size, prefix)[0], size=size)}
