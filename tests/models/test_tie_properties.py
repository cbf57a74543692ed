"""Partial attention among equal scores: what may depend on their order, and what may not."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st
from property_helpers import assert_same, quick, random_map, randomise, seeds
from torch import Tensor

from reference.partialformer import naive
from vitrail.models.partialformer import PartialAttention, foreground_count

sides = st.integers(1, 6)
ratios = st.sampled_from(((1, 16), (1, 4), (2, 5), (1, 2), (1, 1)))
tied = {"height": sides, "width": sides, "levels": st.integers(1, 4), "ratio": ratios, "seed": seeds}


def raw_map(levels: Tensor) -> Tensor:
    """A map (B, 8, H, W) whose tokens have exactly the scores given, (B, H, W): whole numbers, so sums are exact."""
    return levels[:, None].expand(-1, 8, -1, -1).double()


def drawn_levels(seed: int, height: int, width: int, levels: int) -> Tensor:
    return torch.randint(levels, (2, height, width), generator=torch.Generator().manual_seed(seed))


def make(ratio: tuple[int, int], **options) -> PartialAttention:
    return randomise(PartialAttention(8, 2, ratio, **options))


def first_by_score(levels: Tensor, wanted: int) -> list[list[int]]:
    """Positions by falling score, the earlier one first among equal ones: Python's sort, one image after the other."""
    images = levels.flatten(1).tolist()
    return [sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:wanted] for scores in images]


@quick
@given(**tied)
def test_the_first_of_equal_tokens_wins(height, width, levels, ratio, seed):
    attn = make(ratio, deterministic=True)
    drawn = drawn_levels(seed, height, width, levels)
    wanted = foreground_count(height * width, *ratio)
    assert attn.select(raw_map(drawn)).tolist() == first_by_score(drawn, wanted)


@quick
@given(**tied)
def test_without_the_rule_ties_are_open_at_the_boundary_only(height, width, levels, ratio, seed):
    drawn = drawn_levels(seed, height, width, levels)
    wanted = foreground_count(height * width, *ratio)
    for scores, chosen in zip(drawn.flatten(1), make(ratio).select(raw_map(drawn)), strict=True):
        assert len(chosen.unique()) == wanted
        last = scores.sort(descending=True).values[wanted - 1]
        assert set((scores > last).nonzero().flatten().tolist()) <= set(chosen.tolist())
        assert (scores[chosen] >= last).all()


@quick
@given(**tied)
def test_outputs_follow_the_tie_rule_as_the_stable_sort_does(height, width, levels, ratio, seed):
    attn = make(ratio, deterministic=True)
    x, raw = random_map(seed, height, width, dim=8), raw_map(drawn_levels(seed, height, width, levels))
    argsort = torch.Tensor.argsort
    with mock.patch.object(torch.Tensor, "argsort", lambda t, **options: argsort(t, stable=True, **options)):
        expected = naive(attn, x, raw)
    assert_same(attn(x, raw), expected)


@quick
@given(**tied, use_abstract_token=st.booleans(), head_mlp=st.booleans())
def test_the_order_of_the_chosen_does_not_matter(height, width, levels, ratio, seed, use_abstract_token, head_mlp):
    attn = make(ratio, use_abstract_token=use_abstract_token, head_mlp=head_mlp)
    x, raw = random_map(seed, height, width, dim=8), raw_map(drawn_levels(seed, height, width, levels))
    chosen = attn.select(raw)
    expected = attn(x, raw)
    order = torch.randperm(chosen.shape[1], generator=torch.Generator().manual_seed(seed))
    for index in (chosen[:, order], chosen.sort(1).values):
        with mock.patch.object(attn, "select", lambda source, padding, index=index: index):
            assert_same(attn(x, raw), expected)


def permuted(x: Tensor, order: Tensor) -> Tensor:
    return x.flatten(2)[:, :, order].unflatten(2, x.shape[2:])


def clear_boundary(seed: int, height: int, width: int, wanted: int) -> Tensor:
    """Levels with ties everywhere but between the last token chosen and the first one left out."""
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))
    scores = torch.empty(height * width, dtype=torch.long)
    scores[order[:wanted]] = 5 + torch.arange(wanted) % 2
    scores[order[wanted:]] = torch.arange(height * width - wanted) % 3
    return scores.reshape(1, height, width).expand(2, -1, -1)


@quick
@given(height=sides, width=sides, ratio=ratios, seed=seeds, deterministic=st.booleans())
def test_ties_away_from_the_boundary_change_nothing(height, width, ratio, seed, deterministic):
    """Tokens may be given in any order, and the tie rule has nothing to decide."""
    x = random_map(seed, height, width, dim=8)
    raw = raw_map(clear_boundary(seed, height, width, foreground_count(height * width, *ratio)))
    attn, other = (make(ratio, deterministic=d) for d in (deterministic, not deterministic))
    assert_same(attn(x, raw), other(x, raw))
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed + 1))
    assert_same(attn(permuted(x, order), permuted(raw, order)), permuted(attn(x, raw), order))


@quick
@given(**tied, deterministic=st.booleans())
def test_equal_tokens_may_change_places(height, width, levels, ratio, seed, deterministic):
    """Copies of a token share one score: which of them is chosen changes where outputs lie, not which there are."""
    drawn = drawn_levels(seed, height, width, levels)
    kinds = random_map(seed, 1, levels, batch=1, dim=8)[0, :, 0]  # (8, levels): one token a level
    x, raw = kinds[:, drawn].transpose(0, 1), raw_map(drawn)
    attn = make(ratio, deterministic=deterministic)
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed + 1))
    before, after = permuted(attn(x, raw), order), attn(permuted(x, order), permuted(raw, order))
    for image in range(2):
        places = permuted(raw, order)[image, 0].flatten()
        for level in range(levels):
            ours, theirs = (out[image].flatten(1)[:, places == level] for out in (after, before))
            assert_same(by_first_channel(ours), by_first_channel(theirs))


def by_first_channel(tokens: Tensor) -> Tensor:
    return tokens[:, tokens[0].argsort()]


@quick
@given(
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    score=st.sampled_from(("mean", "l2")),
    dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16)),
    seed=seeds,
)
def test_equal_tokens_tie_in_every_layout_of_memory(height, width, score, dtype, seed):
    """Sums in other orders at other positions would rank copies of one token by rounding noise."""
    x = random_map(seed, 1, 1, dim=48).to(dtype).expand(-1, -1, height, width)
    attn = PartialAttention(48, 2, (1, 4), score=score, deterministic=True)
    first = torch.arange(foreground_count(height * width, 1, 4)).expand(2, -1)
    for layout in (x, x.contiguous(), x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(attn.select(layout), first)


@quick
@given(height=sides, width=sides, ratio=ratios, seed=seeds)
def test_a_constant_map_has_two_outputs_at_most(height, width, ratio, seed):
    attn = make(ratio, deterministic=True)
    x = random_map(seed, 1, 1, dim=8).expand(-1, -1, height, width)
    tokens = attn(x, x).flatten(2)
    wanted = foreground_count(height * width, *ratio)
    for part in (tokens[:, :, :wanted], tokens[:, :, wanted:]):  # the first ones are the foreground
        assert_same(part, part[:, :, :1].expand_as(part))
