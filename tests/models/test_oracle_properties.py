"""The fast forms are the slow definitions, in their outputs and in their gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle_helpers import (
    asa_oracle,
    conv_attention_oracle,
    ladder_attention_oracle,
    ladder_block_oracle,
    mat_oracle,
    pale_oracle,
)
from partialformer_helpers import maps
from property_helpers import assert_same_function, quick, random_map, randomise, seeds
from torch import Tensor
from torch.nn import functional as F

from reference.partialformer import naive
from vitrail.models.emsnet import ConvAttention
from vitrail.models.lvt import CSA, RASA
from vitrail.models.mat import TOKEN_MERGES, MatAttention, WindowAttention
from vitrail.models.pale import MIXERS, PaleAttention
from vitrail.models.partialformer import PartialAttention
from vitrail.models.pslt import LadderAttention, LadderBlock

sides = st.integers(1, 7)
maps_of = {"height": sides, "width": sides, "seed": seeds}


# ---- 3x3 attention on a stride-2 grid, by torch's unfold and fold ---------------------------------------------------


def folded(attn: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows' sums added back: weights (B, heads, 9 out, 9 in, L) of values (B, C, 9, L)."""
    values = values.unflatten(1, (attn.shape[1], -1))
    sums = torch.einsum("bhoil,bhdil->bhdol", attn, values)
    return F.fold(sums.flatten(1, 3), size, 3, padding=1, stride=2)


def unfolded(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 9, L)."""
    return F.unfold(x, 3, padding=1, stride=2).unflatten(1, (x.shape[1], 9))


def unfolded_csa(mixer: CSA, x: Tensor) -> Tensor:
    heads = mixer.num_heads
    logits = F.conv2d(F.avg_pool2d(x, 2, ceil_mode=True), mixer.logits.weight, mixer.logits.bias)
    attn = (logits.flatten(2).unflatten(1, (heads, 9, 9)) * mixer.scale).softmax(3)
    if mixer.shared_value:
        values = unfolded(F.conv2d(x, mixer.value.weight, mixer.value.bias))
    else:
        values = torch.einsum("toc,bctl->botl", mixer.value.weight, unfolded(x))
    return F.conv2d(folded(attn, values, x.shape[2:]), mixer.proj.weight, mixer.proj.bias)


def unfolded_conv_attention(mixer: ConvAttention, x: Tensor) -> Tensor:
    reduced = F.conv2d(x, mixer.reduce.weight, stride=2, padding=1, groups=x.shape[1])
    logits = F.conv2d(reduced, mixer.logits.weight, mixer.logits.bias).flatten(2).unflatten(1, (mixer.num_heads, 9, 9))
    if mixer.mask_border:
        inside = unfolded(torch.ones_like(x[:1, :1]))[:, :, None].bool()  # (1, 1, 1, 9 in, L)
        logits = logits.masked_fill(~inside, float("-inf"))
    values = unfolded(F.conv2d(x, mixer.value.weight))
    return F.conv2d(folded(logits.softmax(3), values, x.shape[2:]), mixer.proj.weight, mixer.proj.bias)


@quick
@given(**maps_of, heads=st.sampled_from((1, 2, 4)), outlook=st.booleans())
def test_convolutional_self_attention_is_unfold_attend_fold(height, width, seed, heads, outlook):
    mixer = randomise(CSA(8, heads, shared_value=outlook, value_bias=outlook))
    x = random_map(seed, height, width, dim=8)
    assert_same_function(mixer, lambda x: unfolded_csa(mixer, x), mixer, x)


@quick
@given(**maps_of, heads=st.sampled_from((1, 2, 4)), mask_border=st.booleans())
def test_convolutional_heads_of_emsnet_are_unfold_attend_fold(height, width, seed, heads, mask_border):
    mixer = randomise(ConvAttention(8, heads, mask_border))
    x = random_map(seed, height, width, dim=8)
    assert_same_function(mixer, lambda x: unfolded_conv_attention(mixer, x), mixer, x)
    assert_same_function(mixer, lambda x: conv_attention_oracle(mixer, x, heads, mask_border), mixer, x)


@quick
@given(
    **maps_of,
    reduction=st.sampled_from((1, 2, 4)),
    pad=st.booleans(),
    rates=st.sampled_from(((), (1, 3, 5))),
)
def test_gradients_of_atrous_attention_are_those_of_its_definition(height, width, seed, reduction, pad, rates):
    mixer = randomise(RASA(8, 2, reduction, pad, rates, recursions=1, qkv_bias=True))
    x = random_map(seed, height, width, batch=1, dim=8)

    def oracle(x):
        return asa_oracle(x.permute(0, 2, 3, 1), mixer, rates, reduction, pad).permute(0, 3, 1, 2)

    assert_same_function(mixer, oracle, mixer, x)


# ---- dense masks, ragged windows, the sorted path -------------------------------------------------------------------


@quick
@given(**maps_of, m=st.integers(2, 4), shift=st.integers(-3, 3), delivered=st.booleans())
def test_gradients_of_shifted_windows_are_those_of_a_dense_mask(height, width, seed, m, shift, delivered):
    net = randomise(LadderAttention(4, 2, m, shift if abs(shift) < m else 1, delivered))
    inputs = [random_map(seed + i, height, width, dim=4) for i in range(1 + delivered)]
    assert_same_function(net, lambda x, value=None: ladder_attention_oracle(net, x, value), net, *inputs)


@quick
@given(**maps_of, shifts=st.sampled_from(((0,), (0, 1), (0, 1, -1), (0, 1, -1, 2))))
def test_gradients_of_the_ladder_are_those_of_its_rungs(height, width, seed, shifts):
    block = randomise(LadderBlock(4 * len(shifts), 2, shifts, window_size=3))
    x = random_map(seed, height, width, dim=4 * len(shifts))
    assert_same_function(block, lambda x: ladder_block_oracle(block, x), block, x)


@pytest.mark.parametrize("name", MIXERS)
@quick
@given(**maps_of, size=st.tuples(st.integers(1, 4), st.integers(1, 4)), block=st.integers(0, 1))
def test_gradients_of_pales_are_those_of_dense_masks(name, height, width, seed, size, block):
    attn = randomise(PaleAttention(8, 4, name, size, block))
    x = random_map(seed, height, width, dim=8)
    own = (1, 1) if name == "axial" else size
    assert_same_function(attn, lambda x: pale_oracle(attn, x, name, own, block), attn, x)


@quick
@given(**maps_of, m=st.integers(2, 4), merge=st.sampled_from(("none", *TOKEN_MERGES)))
def test_gradients_of_mixed_windows_are_those_of_ragged_ones(height, width, seed, m, merge):
    attn = WindowAttention(8, 2, m) if merge == "none" else MatAttention(8, 2, m, token_merge=merge)
    attn = randomise(attn)
    x = random_map(seed, height, width, dim=8)
    assert_same_function(attn, lambda x: torch.stack([mat_oracle(attn, image)[0] for image in x]), attn, x)


@quick
@given(
    **maps_of,
    ratio=st.sampled_from(((1, 64), (1, 4), (1, 1))),
    use_abstract_token=st.booleans(),
    use_sqa=st.booleans(),
    head_mlp=st.booleans(),
    proj_scope=st.sampled_from(("foreground", "all")),
    background_residual=st.booleans(),
)
def test_gradients_of_partial_attention_are_those_of_the_sorted_path(height, width, seed, ratio, **options):
    attn = randomise(PartialAttention(8, 2, ratio, **options))
    x, raw = (t.double() for t in maps(2, 8, height, width, seed))
    assert_same_function(lambda x: attn(x, raw), lambda x: naive(attn, x, raw), attn, x)
