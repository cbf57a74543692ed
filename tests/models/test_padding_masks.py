"""PartialFormer told where its images are padding, beside the definition on the tokens that are none."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from partialformer_helpers import maps, partial_attention, randomised, tiny
from property_helpers import quick, seeds, sides
from torch.nn import functional as F

from vitrail.deploy.fuse.fuse import fuse
from vitrail.models.partialformer import FullAttention, foreground_count, foreground_counts, padding_of_tokens

RATIOS = ((1, 64), (1, 8), (2, 5), (1, 2), (1, 1))
choices = {
    "ratio": st.sampled_from(RATIOS),
    "use_sqa": st.booleans(),
    "use_abstract_token": st.booleans(),
    "head_mlp": st.booleans(),
    "score": st.sampled_from(["mean", "l2"]),
    "proj_scope": st.sampled_from(["foreground", "all"]),
    "background_residual": st.booleans(),
    "deterministic": st.booleans(),
    "max_foreground": st.sampled_from([None, 1, 3]),
}


def rectangles(batch, height, width, seed):
    """Padding masks whose contents are rectangles in the upper left corner, as of a batch of images."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, height, width, dtype=torch.bool)
    for own in mask:
        own[
            : torch.randint(1, height + 1, (), generator=generator),
            : torch.randint(1, width + 1, (), generator=generator),
        ] = False
    return mask


def scattered(batch, height, width, seed):
    """Padding masks of any form with at least one token that is content."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, height * width, generator=generator) < torch.rand(batch, 1, generator=generator)
    mask.scatter_(1, torch.randint(height * width, (batch, 1), generator=generator), False)
    return mask.view(batch, height, width)


def dense(attn, x, raw, mask):
    """One image's partial attention as a loop over its tokens that are no padding, and what padding gets."""
    dim, h = x.shape[0], attn.num_heads
    tokens, source = x.flatten(1).T, raw.flatten(1).T
    content = [i for i, padding in enumerate(mask.flatten().tolist()) if not padding]
    score = {i: float(source[i].mean() if attn.score == "mean" else source[i].norm()) for i in content}
    n_f = len(content) * attn.numerator // attn.denominator
    n_f = max(1, min(n_f, attn.max_foreground or n_f, max(1, len(content) - 1)))
    chosen = sorted(content, key=lambda i: -score[i])[:n_f]
    others = [i for i in content if i not in chosen]
    w, b = attn.qkv.weight, attn.qkv.bias

    def part(t, i):  # 0 queries, 1 keys, 2 values
        return F.linear(t, w[i * dim : (i + 1) * dim], b[i * dim : (i + 1) * dim]).unflatten(1, (h, -1)).transpose(0, 1)

    x_f = tokens[chosen]
    if attn.abstract_token is not None:
        x_f = torch.cat([attn.abstract_token[0], x_f])
    a = part(x_f, 0) @ part(x_f, 1).mT / math.sqrt(dim // h)
    if attn.head_mlp is None:
        a = a.softmax(-1)
    else:
        fc1, fc2 = attn.head_mlp.fc1, attn.head_mlp.fc2
        a = (torch.einsum("oi,iqk->oqk", fc1.weight[:, :, 0, 0], a) + fc1.bias[:, None, None]).softmax(-1)
        a = torch.einsum("oi,iqk->oqk", fc2.weight[:, :, 0, 0], a) + fc2.bias[:, None, None]
    o_f = attn.proj((a @ part(x_f, 2)).transpose(0, 1).flatten(1))
    query, o_f = (o_f[:1], o_f[1:]) if attn.abstract_token is not None else (o_f.mean(0, keepdim=True), o_f)
    out = tokens.clone() if attn.background_residual else torch.zeros_like(tokens)
    if attn.channel_mlp is not None and others:
        q = query.unflatten(1, (h, -1)).transpose(0, 1)
        y = (q @ part(tokens[others], 1).mT / math.sqrt(dim // h)).softmax(-1) @ part(tokens[others], 2)
        mlp = attn.channel_mlp
        out = out + mlp.fc2(mlp.norm(mlp.fc1(y.transpose(0, 1).flatten(1))).relu())
    if attn.proj_scope == "all":
        out = attn.proj(out)
    out[chosen] = o_f
    return out.T.unflatten(1, x.shape[1:]), set(chosen), bool(others)


def chosen_of(attn, x, raw, mask):
    found = attn.attention_maps(x, raw, mask)
    return [set(i[~s].tolist()) for i, s in zip(found["index"], found["surplus"], strict=True)], found


@quick
@given(
    height=sides,
    width=sides,
    batch=st.integers(1, 3),
    seed=seeds,
    form=st.sampled_from([rectangles, scattered]),
    **choices,
)
def test_masked_attention_is_attention_among_the_tokens_that_are_content(
    height, width, batch, seed, form, ratio, **options
):
    attn = partial_attention(foreground_ratio=ratio, seed=seed % 7, **options).double()
    x, raw = (t.double() for t in maps(batch, 8, height, width, seed))
    mask = form(batch, height, width, seed)
    with torch.no_grad():
        out = attn(x, raw, mask)
        assert out.isfinite().all()
        selected, _ = chosen_of(attn, x, raw, mask)
        for i in range(batch):
            expected, chosen, background = dense(attn, x[i], raw[i], mask[i])
            assert selected[i] == chosen
            # padding gets what background gets; where there is no background, something finite that means nothing
            read = torch.ones_like(mask[i]) if background else ~mask[i]
            torch.testing.assert_close(out[i][:, read], expected[:, read], rtol=1e-5, atol=1e-5)


@quick
@given(
    height=sides,
    width=sides,
    seed=seeds,
    form=st.sampled_from([rectangles, scattered]),
    source=st.sampled_from(["raw", "norm"]),
    **choices,
)
def test_what_padding_holds_changes_nothing_outside_it(height, width, seed, form, source, ratio, **options):
    attn = partial_attention(foreground_ratio=ratio, score_source=source, **options)
    (x, raw), mask = maps(2, 8, height, width, seed), form(2, height, width, seed)
    noise = 100 * torch.randn(2, 8, height, width, generator=torch.Generator().manual_seed(seed))
    other = [torch.where(mask[:, None], noise + 50, t).requires_grad_() for t in (x, raw)]
    content = ~mask[:, None].expand_as(x)
    assert chosen_of(attn, x, raw, mask)[0] == chosen_of(attn, *other, mask)[0]
    out = attn(*other, mask)
    torch.testing.assert_close(out[content], attn(x, raw, mask)[content], rtol=1e-5, atol=1e-5)
    (leak,) = torch.autograd.grad(out[content].square().sum(), other[0])
    assert not leak[~content].any()


@quick
@given(height=sides, width=sides, seed=seeds, ratio=st.sampled_from(RATIOS))
def test_padding_is_never_selected_and_never_a_key(height, width, seed, ratio):
    attn = partial_attention(foreground_ratio=ratio)
    (x, raw), mask = maps(3, 8, height, width, seed), scattered(3, height, width, seed)
    raw = raw + 1000 * mask[:, None]  # without the mask these would be the best
    selected, found = chosen_of(attn, x, raw, mask)
    for i in range(3):
        padding, content = mask[i].flatten(), int((~mask[i]).sum())
        assert not padding[list(selected[i])].any()
        assert len(selected[i]) == foreground_count(content, *ratio)
        surplus = found["surplus"][i]
        assert not found["softmax"][i][:, :, 1:][:, :, surplus].any()
        assert not found["mixed"][i][:, :, 1:][:, :, surplus].any()
        if content > len(selected[i]):
            assert not found["query"][i][:, padding].any()


@quick
@given(height=sides, width=sides, seed=seeds, ratio=st.sampled_from(RATIOS), score=st.sampled_from(["mean", "random"]))
def test_a_mask_without_padding_changes_nothing(height, width, seed, ratio, score):
    attn, (x, raw) = partial_attention(foreground_ratio=ratio, score=score), maps(2, 8, height, width, seed)
    torch.manual_seed(seed)
    expected = attn(x, raw)
    torch.manual_seed(seed)
    torch.testing.assert_close(
        attn(x, raw, torch.zeros(2, height, width, dtype=torch.bool)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("limit", [None, 1, 7])
def test_counts_of_several_images_are_those_of_one(ratio, limit):
    counts = foreground_counts(torch.arange(1, 300), *ratio, limit)
    assert counts.tolist() == [foreground_count(n, *ratio, limit) for n in range(1, 300)]
    assert foreground_counts(torch.tensor([0]), *ratio, limit).tolist() == [1]


@quick
@given(height=sides, width=sides, seed=seeds)
def test_masked_full_attention_has_no_padding_among_its_keys(height, width, seed):
    full, (x, _) = randomised(FullAttention(8, 2)), maps(2, 8, height, width, seed)
    mask = rectangles(2, height, width, seed)
    out = full(x, x, mask)
    for i in range(2):
        h, w = (int((~mask[i]).any(axis).sum()) for axis in (1, 0))
        alone = x[i : i + 1, :, :h, :w]
        torch.testing.assert_close(out[i : i + 1, :, :h, :w], full(alone, alone), rtol=1e-4, atol=1e-5)


@quick
@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=seeds, stride=st.sampled_from([4, 8, 16, 32]))
def test_a_token_is_padding_when_all_of_its_pixels_are(height, width, seed, stride):
    for mask in (rectangles(2, height, width, seed), scattered(2, height, width, seed)):
        found = padding_of_tokens(mask, stride)
        assert found.shape == (2, -(-height // stride), -(-width // stride))
        for i, row, column in found.new_ones(found.shape).nonzero().tolist():
            pixels = mask[i, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            assert bool(found[i, row, column]) == bool(pixels.all())
    sizes = [
        (-(-int((~own).any(1).sum()) // stride), -(-int((~own).any(0).sum()) // stride))
        for own in rectangles(2, height, width, seed)
    ]
    for own, (h, w) in zip(padding_of_tokens(rectangles(2, height, width, seed), stride), sizes, strict=True):
        assert not own[:h, :w].any()  # as many tokens as the image has alone
        assert int((~own).sum()) == h * w


@pytest.mark.parametrize("options", [{}, {"use_abstract_token": False, "head_mlp": False}, {"mixers": "full"}], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_training_with_almost_everything_padding_is_finite(options, recompute):
    torch.manual_seed(0)
    model = tiny(foreground_ratios=((1, 2),) * 4, **options).train()
    model.set_grad_checkpointing(recompute)
    mask = torch.ones(3, 96, 130, dtype=torch.bool)
    mask[0, :1, :1] = False  # one token, fewer than the foreground of the map
    mask[1, :40, :99] = False  # and the third image is nothing but padding
    found = model.forward_intermediates(torch.randn(3, 3, 96, 130), intermediates_only=True, padding_mask=mask)
    sum(x.square().mean() for x in found).backward()
    assert all(x.isfinite().all() for x in found)
    wrong = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert wrong == []


def test_recomputation_in_backward_has_the_mask():
    model, x = randomised(tiny()).train(), torch.randn(2, 3, 70, 96)
    mask = torch.zeros(2, 70, 96, dtype=torch.bool)
    mask[0, 30:] = mask[1, :, 50:] = True
    grads = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        model.forward_features(x, mask).square().mean().backward()
        grads.append([p.grad.clone() for name, p in model.named_parameters() if not name.startswith("head")])
    for kept, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-4, atol=1e-6)


def test_the_network_s_ways_in_agree_and_the_mask_counts():
    model, x = randomised(tiny()), torch.randn(2, 3, 70, 96)
    mask = torch.zeros(2, 70, 96, dtype=torch.bool)
    mask[0, 30:] = mask[1, :, 50:] = True
    features = model.forward_features(x, mask)
    last, taps = model.forward_intermediates(x, padding_mask=mask)
    assert torch.equal(features, last)
    assert torch.equal(features, taps[-1])
    assert not torch.allclose(features, model.forward_features(x))
    assert torch.equal(model.forward_features(x), model.forward_features(x, None))
    for found, (h, w) in zip(model.attention_maps(x, mask), [(18, 24), (9, 12), (5, 6), (5, 6), (3, 3)], strict=True):
        assert found["index"].max() < h * w
        assert "surplus" in found
    torch.testing.assert_close(torch.jit.script(model).forward_features(x, mask), features)


@pytest.mark.parametrize(
    "mask", [torch.zeros(2, 64, 60, dtype=torch.bool), torch.zeros(1, 64, 64, dtype=torch.bool), torch.zeros(2, 64, 64)]
)
def test_a_wrong_mask_is_named(mask):
    model = tiny()
    for call in (model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=r"padding_mask of torch.* give torch.bool of shape \(2, 64, 64\)"):
            call(torch.randn(2, 3, 64, 64), padding_mask=mask)


def test_masked_attention_can_be_scripted():
    x, raw = maps(2, 8, 5, 6)
    mask = rectangles(2, 5, 6, 3)
    for options in ({}, {"use_abstract_token": False, "head_mlp": False, "max_foreground": 3, "deterministic": True}):
        attn = partial_attention(**options)
        torch.testing.assert_close(torch.jit.script(attn)(x, raw, mask), attn(x, raw, mask))


def test_masks_in_half_precision_and_in_a_fused_network():
    model, x = randomised(tiny()), torch.randn(2, 3, 70, 96)
    mask = torch.zeros(2, 70, 96, dtype=torch.bool)
    mask[0, 30:] = mask[1, :, 50:] = True
    with torch.autocast("cpu", torch.bfloat16):
        assert model.forward_features(x, mask).isfinite().all()
    fused = fuse(model, x)
    with torch.no_grad():
        expected = model.forward_features(x, mask)
        torch.testing.assert_close(fused.forward_features(x, mask), expected, rtol=1e-3, atol=1e-3)
