"""What the fast forms say they save is what the papers' forms cost more, multiply-add by multiply-add."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from partialformer_helpers import maps
from property_helpers import quick
from torch.utils.flop_counter import FlopCounterMode

from reference.partialformer import naive
from vitrail.flops.corrections import correction_of
from vitrail.models.mat import MatAttention, WindowAttention
from vitrail.models.pale import MIXERS, PaleAttention
from vitrail.models.partialformer import PartialAttention

sides = st.integers(1, 15)


def saved_by(module, height: int, width: int) -> dict[str, int]:
    correction = correction_of(module)
    return correction(module, height, width) if correction else {}


def multiply_adds(function, *inputs) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops() // 2


@quick
@given(height=st.integers(2, 9), width=sides, heads=st.sampled_from((2, 4)), ratio=st.sampled_from(((1, 8), (2, 5))))
def test_partial_attention_saves_the_projections_of_the_background(height, width, heads, ratio):
    attn, (x, raw) = PartialAttention(8, heads, ratio).eval(), maps(1, 8, height, width)
    saved = saved_by(attn, height, width)
    assert sum(saved.values()) == multiply_adds(lambda: naive(attn, x, raw)) - multiply_adds(attn, x, raw)
    background = height * width - max(1, height * width * ratio[0] // ratio[1])
    assert saved["linear"] == (3 * background - 2) * 8 * 8
    assert saved_by(PartialAttention(8, heads, ratio, use_sqa=False), height, width) == {}


@quick
@given(m=st.integers(1, 7), heads=st.sampled_from((1, 2, 4)))
def test_abstract_tokens_of_one_window_save_their_mixing_and_fusion(m, heads):
    whole, paper = (MatAttention(8, heads, m, pad_mode=mode).eval() for mode in ("tight", "paper"))
    x = torch.randn(1, 8, m, m)
    saved = saved_by(whole, m, m)
    assert saved == {"matmul": multiply_adds(paper, x) - multiply_adds(whole, x)}
    assert saved_by(paper, m, m) == {}
    assert saved_by(whole, m + 1, m) == saved_by(whole, m, m + 1) == {}
    assert saved_by(WindowAttention(8, heads, m), m, m) == {}


def padded_products(length: int, across: int, size: int, dim: int, interlaced: bool) -> int:
    """Multiply-adds of both products of the groups, on the padding that would make them equally long."""
    number, everything = -(-length // size), range(length)
    members = [everything[i::number] if interlaced else everything[i * size :][:size] for i in range(number)]
    groups = [len(rows) * across for rows in members]
    return sum(2 * dim * (max(groups) ** 2 - own**2) for own in groups)


@pytest.mark.parametrize("name", MIXERS)
@quick
@given(height=sides, width=sides, size=st.tuples(st.integers(1, 7), st.integers(1, 7)), block=st.integers(0, 1))
def test_pales_save_the_products_with_padding(name, height, width, size, block):
    saved = saved_by(PaleAttention(8, 4, name, size, block), height, width)
    own = (1, 1) if name == "axial" else size
    rows = padded_products(height, width, own[0], 4, name != "cross_shaped")
    columns = padded_products(width, height, own[1], 4, name != "cross_shaped")
    expected = {
        "parallel": rows + columns,
        "axial": rows + columns,
        "cross_shaped": rows + columns,
        "sequential": 2 * (columns if block else rows),
    }
    assert saved == ({"matmul": expected[name]} if name in expected else {})
    assert saved_by(PaleAttention(8, 4, name, size, block, pad_mode="paper"), height, width) == {}
