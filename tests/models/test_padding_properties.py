"""Padding is never attended to: whatever lies in it, the pixels of the map get the same."""

from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_helpers import assert_same, assert_same_function, quick, random_map, randomise, seeds, sides
from torch.nn import functional as F

from vitrail.models import mat, pale
from vitrail.models import pslt as ladder
from vitrail.models.lvt import RASA, SpatialReduction
from vitrail.models.mat import TOKEN_MERGES, MatAttention, WindowAttention
from vitrail.models.pale import MIXERS, PaleAttention
from vitrail.models.pslt import LadderAttention


def filled(padded: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    """A map padded with nan, its padding replaced by one value of `content` after the other."""
    values = content.repeat(-(-padded.numel() // content.numel()))[: padded.numel()]
    return torch.where(padded.isnan(), values.reshape(padded.shape), padded)


def noisy_padding(content: torch.Tensor) -> ExitStack:
    """Every place where a mixer pads, padding with `content` instead."""

    def to_multiple(x, multiple):
        return filled(F.pad(x, (0, 0, 0, -x.shape[2] % multiple, 0, -x.shape[1] % multiple), value=torch.nan), content)

    def pad(x, pads):
        return filled(F.pad(x, pads, value=torch.nan), content)

    with ExitStack() as patches:  # a place that is not found takes the others back
        patches.enter_context(mock.patch.object(ladder, "pad_to_multiple", to_multiple))
        patches.enter_context(mock.patch.object(mat, "pad_to_multiple", to_multiple))
        patches.enter_context(mock.patch.object(pale, "F", SimpleNamespace(pad=pad)))
        return patches.pop_all()


def assert_nothing_leaks(attn: torch.nn.Module, *maps: torch.Tensor) -> None:
    attn = randomise(attn)
    expected = attn(*maps)
    content = (50 * random_map(1, 11, 13).flatten()).requires_grad_()
    with noisy_padding(content):
        noisy = attn(*maps)
    assert_same(noisy, expected)
    (leak,) = torch.autograd.grad(noisy.square().sum(), content, allow_unused=True)
    assert leak is None or not leak.any()


pad_modes = st.sampled_from(("tight", "paper"))
windows = {"height": sides, "width": sides, "m": st.integers(2, 5), "pad_mode": pad_modes, "seed": seeds}


@quick
@given(**windows, shift=st.sampled_from((0, 1, -1, 3, -2)), delivered=st.booleans())
def test_shifted_windows_keep_padding_out(height, width, m, pad_mode, seed, shift, delivered):
    maps = [random_map(seed + i, height, width, dim=4) for i in range(2 if delivered else 1)]
    assert_nothing_leaks(LadderAttention(4, 2, m, shift % m, delivered, pad_mode=pad_mode), *maps)


@quick
@given(**windows, merge=st.sampled_from(("none", *TOKEN_MERGES)))
def test_windows_with_and_without_abstract_tokens_keep_padding_out(height, width, m, pad_mode, seed, merge):
    options = {"window_size": m, "pad_mode": pad_mode}
    attn = WindowAttention(4, 2, **options) if merge == "none" else MatAttention(4, 2, **options, token_merge=merge)
    assert_nothing_leaks(attn, random_map(seed, height, width, dim=4))


@quick
@given(
    name=st.sampled_from(MIXERS),
    height=sides,
    width=sides,
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pad_mode=pad_modes,
    seed=seeds,
)
def test_pales_keep_padding_out(name, height, width, size, pad_mode, seed):
    # plain linear q, k, v where the map is padded first: a 3x3 convolution would carry its padding into real tokens
    kernel = 3 if pad_mode == "tight" else 0
    attn = PaleAttention(8, 4, name, size, pad_mode=pad_mode, qkv_kernel=kernel)
    assert_nothing_leaks(attn, random_map(seed, height, width, dim=8))


def test_the_noise_reaches_padding_that_may_be_attended():
    """The tests above would see a leak: without masks there is one."""
    x = random_map(0, 5, 7, dim=8)
    for attn in (
        LadderAttention(8, 2, 4, mask_padding=False),
        MatAttention(8, 2, 4, mask_padding=False),
        PaleAttention(8, 2, "parallel", (3, 3), mask_padding=False, qkv_kernel=0),
        PaleAttention(8, 2, "vanilla", (3, 3), mask_padding=False, qkv_kernel=0),
    ):
        with pytest.raises(AssertionError):
            assert_nothing_leaks(attn, x)


# ---- padding before the projections and after them: the same function, the same gradients ---------------------------


@quick
@given(
    name=st.sampled_from(("pslt", "mat window", "mat", *MIXERS)),
    height=sides,
    width=sides,
    m=st.integers(2, 5),
    seed=seeds,
)
def test_pad_modes_are_one_function(name, height, width, m, seed):
    makers = {
        "pslt": lambda mode: LadderAttention(8, 2, m, 1, pad_mode=mode),
        "mat window": lambda mode: WindowAttention(8, 2, m, mode),
        "mat": lambda mode: MatAttention(8, 2, m, mode),
    }
    make = makers.get(name, lambda mode: PaleAttention(8, 4, name, (m, m), pad_mode=mode))
    tight, paper = (randomise(make(mode), seed) for mode in ("tight", "paper"))
    for p, q in zip(tight.parameters(), paper.parameters(), strict=True):
        q.data = p.data  # so that both gradients are for the same weights
    x = random_map(seed, height, width, dim=8)
    assert_same(tight(x), paper(x))
    assert_same_function(tight, shared(paper, tight), tight, x)


def shared(net: torch.nn.Module, owner: torch.nn.Module):
    """`net` as a function of the parameters of `owner`."""
    return lambda x: torch.func.functional_call(net, dict(owner.named_parameters()), (x,))


# ---- reductions that pad with zeros ---------------------------------------------------------------------------------


@quick
@given(height=sides, width=sides, ratio=st.integers(1, 4), seed=seeds)
def test_reduction_with_padding_is_that_of_the_map_with_zeros_around(height, width, ratio, seed):
    reduce = randomise(SpatialReduction(8, ratio, pad=True))
    x = random_map(seed, height, width, dim=8)
    by_hand = F.pad(x, (0, -width % ratio, 0, -height % ratio))
    assert_same(reduce(x), randomise(SpatialReduction(8, ratio))(by_hand))


@quick
@given(rows=st.integers(1, 3), cols=st.integers(1, 3), ratio=st.integers(2, 4), more=st.integers(0, 3), seed=seeds)
def test_left_out_rows_ask_but_are_not_asked(rows, cols, ratio, more, seed):
    """Without padding the pixels beyond the last full cell are queries and no keys."""
    mixer = randomise(RASA(8, 2, ratio, atrous_rates=(), recursions=1))
    height, width = rows * ratio + more % ratio, cols * ratio
    x = random_map(seed, height, width, dim=8)
    assert_same(mixer(x)[:, :, : rows * ratio], mixer(x[:, :, : rows * ratio]))
