"""PartialFormer against its definition: the thesis's sort, gather and project-everything path, written out below."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partialformer_helpers import TINY, maps, partial_attention, randomised, tiny
from timm.models import create_model
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reference.partialformer import naive
from vitrail.layers import Pointwise
from vitrail.models.partialformer import (
    Block,
    FullAttention,
    PartialAttention,
    PartialFormer,
    checkpoint_filter_fn,
    foreground_count,
)

TOTAL = {"b0": 5_298_672, "b1": 8_238_348, "b2": 21_081_134, "b3": 36_105_008, "b4": 64_465_748}
DENSE = {"b0": 3_770_248, "b1": 6_627_876, "b2": 19_306_566, "b3": 34_166_344, "b4": 62_198_892}
STEM = {"b0": 4_308, "b1": 7_472, "b2": 16_392, "b3": 28_768, "b4": 63_888}
BLOCKS = {"b1": (14_926, 54_436, 207_280, 808_264), "b3": (54_436, 207_280, 808_264, 3_199_632)}


def count(module):
    return sum(p.numel() for p in module.parameters())


# ---- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", TOTAL)
def test_parameter_counts(variant):
    model = create_model(f"partialformer_{variant}", device="meta")
    assert count(model) == TOTAL[variant]
    assert count(model.stem) == STEM[variant]
    assert count(model) - count(model.head) == DENSE[variant]
    dims = [info["num_chs"] for info in model.feature_info]
    for stage, width in zip(list(model.stages)[1:], dims[:-1], strict=True):
        assert count(stage.downsample) == 18 * width**2 + 6 * width
    for stage, d, h in zip(model.stages, dims, [s.blocks[0].attn.num_heads for s in model.stages], strict=True):
        m = max(8, d // 32)
        assert count(stage.blocks[0]) == 12 * d**2 + 65 * d + 2 * d * m + 3 * m + 4 * h**2 + 3 * h
    if variant in BLOCKS:
        assert tuple(count(stage.blocks[0]) for stage in model.stages) == BLOCKS[variant]


def test_dense_mode_has_no_head():
    model = create_model("partialformer_b0", features_only=True)
    assert count(model) == DENSE["b0"]
    normed = create_model("partialformer_b0", features_only=True, out_norms=True)
    assert count(normed) == DENSE["b0"] + 30 * 24  # a LayerNorm per output: 2 (C + 2C + 4C + 8C)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"use_abstract_token": False}, lambda d, h, m: -d),
        ({"use_sqa": False}, lambda d, h, m: -(2 * d * m + d + 3 * m)),
        ({"head_mlp": False}, lambda d, h, m: -(4 * h * h + 3 * h)),
        ({"head_expansion": 4}, lambda d, h, m: 4 * h * h + 2 * h),
        ({"channel_reduction_min": 4}, lambda d, h, m: (max(4, d // 32) - m) * (2 * d + 3)),
        ({"channel_reduction": 4, "channel_reduction_min": 1}, lambda d, h, m: (d // 4 - m) * (2 * d + 3)),
        ({"qkv_bias": False}, lambda d, h, m: -3 * d),
        ({"cpe_kernel": 3}, lambda d, h, m: -40 * d),
        ({"cpe_kernel": 3, "mlp_dwconv": True}, lambda d, h, m: 0),
        ({"layer_scale_init": 1e-5}, lambda d, h, m: 2 * d),
        ({"mixers": "full"}, lambda d, h, m: -(d + 2 * d * m + d + 3 * m + 4 * h * h + 3 * h)),
        ({"num_heads": (0, 0, 0, 0)}, lambda d, h, m: -(4 * d * d + 8 * d + 2 * d * m + 3 * m + 4 * h * h + 3 * h)),
        ({"proj_scope": "all"}, lambda d, h, m: 0),
        ({"proj_scope": "all", "use_sqa": False}, lambda d, h, m: -(2 * d * m + d + 3 * m)),
        ({"background_residual": False}, lambda d, h, m: 0),
        ({"use_sqa": False, "background_residual": False}, lambda d, h, m: -(2 * d * m + d + 3 * m)),
        ({"score": "l2"}, lambda d, h, m: 0),
        ({"score": "random"}, lambda d, h, m: 0),
        ({"score_source": "norm"}, lambda d, h, m: 0),
        ({"foreground_ratios": ((1, 4), (1, 4), (1, 2), (1, 1))}, lambda d, h, m: 0),
        ({"max_foreground": 2}, lambda d, h, m: 0),
        ({"deterministic": True}, lambda d, h, m: 0),
        ({"head_mlp_init": "normal"}, lambda d, h, m: 0),
        ({"drop_path_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1}, lambda d, h, m: 0),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_change_the_counts_as_they_should_and_train(options, difference):
    torch.manual_seed(0)
    model = tiny(**options).train()
    expected = sum(
        n * difference(d, h, 8) for d, n, h in zip(TINY["embed_dims"], TINY["depths"], TINY["num_heads"], strict=True)
    )
    assert count(model) - count(tiny()) == expected
    F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([0, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = tiny().train()
    F.cross_entropy(model(torch.randn(2, 3, 128, 128)), torch.tensor([0, 1])).backward()
    for name, parameter in model.named_parameters():
        # a bias that is the same for all keys cannot pass the softmax
        assert parameter.grad.any() or name.endswith("head_mlp.fc1.bias"), name


def test_other_numbers_of_classes_pools_and_hidden_widths():
    assert count(tiny(head_hidden_size=48).head) - count(tiny().head) == 24 * (32 + 1 + 5)
    x = torch.randn(2, 3, 64, 96)
    assert tiny(num_classes=0)(x).shape == (2, 24)
    assert tiny(num_classes=0, global_pool="")(x).shape == (2, 24, 2, 3)
    model = tiny().eval()
    hidden = model.head.pre_logits.fc.weight
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(9)
    assert model.head.pre_logits.fc.weight is hidden
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), before)
    assert model(x).shape == (2, 9)
    # pooling moved behind the network: the head then works on pixels, with the same hidden layer
    model.reset_classifier(9, "")
    assert model(x).shape == (2, 9, 2, 3)
    torch.testing.assert_close(model.head.pre_logits.fc.weight.flatten(1), hidden)


def test_the_head_pools_before_its_norm():
    model, x = randomised(tiny()), torch.randn(2, 3, 64, 64)
    head, pooled = model.head, model.forward_features(x).mean((2, 3))
    hidden = F.gelu(head.pre_logits.fc(F.layer_norm(pooled, (32,), head.norm.weight, head.norm.bias, 1e-6)))
    torch.testing.assert_close(model(x), head.fc(hidden))


# ---- the mixer against its definition -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    batch=st.integers(1, 3),
    ratio=st.sampled_from([(1, 64), (1, 8), (2, 5), (1, 2), (1, 1)]),
    use_sqa=st.booleans(),
    use_abstract_token=st.booleans(),
    head_mlp=st.booleans(),
    head_expansion=st.integers(1, 3),
    score=st.sampled_from(["mean", "l2"]),
    score_source=st.sampled_from(["raw", "norm"]),
    proj_scope=st.sampled_from(["foreground", "all"]),
    background_residual=st.booleans(),
    qkv_bias=st.booleans(),
    deterministic=st.booleans(),
    max_foreground=st.sampled_from([None, 1, 3]),
)
def test_folded_path_is_the_naive_path(height, width, batch, ratio, **options):
    attn = partial_attention(foreground_ratio=ratio, **options).double()
    x, raw = maps(batch, 8, height, width, seed=height * 31 + width)
    if options["score_source"] == "norm":
        x = raw  # the gaps must be where the choice is made
    with torch.no_grad():
        torch.testing.assert_close(
            attn(x.double(), raw.double()), naive(attn, x.double(), raw.double()), rtol=1e-9, atol=1e-9
        )


def test_folded_path_has_the_naive_path_s_gradients():
    attn = partial_attention().double()
    x, raw = (t.double() for t in maps(2, 8, 5, 6))
    weight = torch.randn(2, 8, 5, 6, dtype=torch.double)
    grads = []
    for function in (attn, lambda *inputs: naive(attn, *inputs)):
        x.requires_grad_().grad = None
        attn.zero_grad()
        (function(x, raw) * weight).sum().backward()
        grads.append([x.grad.clone()] + [p.grad.clone() for p in attn.parameters()])
    for fast, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-10)


def test_memory_format_of_the_map_does_not_matter():
    attn, (x, raw) = partial_attention(), maps(2, 8, 4, 6)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, raw)]
    torch.testing.assert_close(attn(x, raw), attn(*last))


def test_reported_cost_of_one_module():
    # "40.1 MFLOPs" for 56 x 56 tokens, d = 64, h = 8; queries, keys and values of every token counted
    attn = PartialAttention(64, 8).eval()
    x, raw = maps(1, 64, 56, 56)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        naive(attn, x, raw)
    macs = counter.get_total_flops() // 2
    assert macs + 5 * 8 == 40_108_456  # 5 per element of the channel MLP's LayerNorm
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        attn(x, raw)
    assert counter.get_total_flops() // 2 < 0.15 * macs


def test_foreground_counts():
    ratios = ((1, 64), (1, 16), (1, 8), (2, 5))
    assert [foreground_count(n, *r) for n, r in zip((3136, 784, 196, 49), ratios, strict=True)] == [49, 49, 24, 19]
    wide = [foreground_count(n, *r) for n, r in zip((65536, 16384, 4096, 1024), ratios, strict=True)]
    assert wide == [1024, 1024, 512, 409]
    assert [foreground_count(n, 1, 1) for n in (1, 2, 3)] == [1, 1, 2]
    assert foreground_count(1, 1, 64) == 1
    assert foreground_count(1000, 1, 2, 7) == 7
    attn = partial_attention(foreground_ratio=(1, 64))  # counted on the map at hand, not on one of 224 pixels
    assert attn.select(torch.randn(1, 8, 64, 80)).shape == (1, 80)


# ---- what the definition implies ------------------------------------------------------------------------------------


def split(attn, x, raw):
    """Output rows and a boolean mask of the foreground, both by token."""
    chosen = torch.zeros(len(x), x.shape[2] * x.shape[3], dtype=torch.bool).scatter(1, attn.select(raw), True)
    return attn(x, raw).flatten(2).transpose(1, 2), chosen


def test_every_background_token_gets_the_same():
    attn, (x, raw) = partial_attention(), maps(2, 8, 6, 5)
    out, chosen = split(attn, x, raw)
    tokens = x.flatten(2).transpose(1, 2)
    for image in range(2):
        shift = (out - tokens)[image][~chosen[image]]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift))


def test_a_background_token_reaches_the_background_only():
    attn, (x, raw) = partial_attention(), maps(1, 8, 6, 5)
    before, chosen = split(attn, x, raw)
    changed = x.clone()
    position = int((~chosen[0]).nonzero()[3])
    changed.flatten(2)[0, :, position] += 1.0
    after, _ = split(attn, changed, raw)
    assert torch.equal(before[chosen], after[chosen])
    others = ~chosen[0]
    others[position] = False
    assert (after - before)[0][others].abs().amax(1).min() > 1e-6


def test_a_foreground_token_is_no_key_of_the_single_query():
    attn, (x, raw) = partial_attention(), maps(3, 8, 6, 5)
    found = attn.attention_maps(x, raw)
    assert torch.equal(found["query"].gather(2, found["index"][:, None].expand(-1, 2, -1)), torch.zeros(3, 2, 7))
    torch.testing.assert_close(found["query"].sum(-1), torch.ones(3, 2))
    assert found["softmax"].shape == (3, 4, 8, 8)  # e * h maps over the abstract token and 7 others
    torch.testing.assert_close(found["mixed"], attn.head_mlp.fc2(found["softmax"]))


def test_identity_head_mlp_is_plain_attention():
    torch.manual_seed(0)
    model = tiny(head_expansion=3)
    attn = model.stages[2].blocks[0].attn
    attn.qkv.weight.data.normal_(std=0.5)
    plain = partial_attention(16, 4, foreground_ratio=(1, 8), head_mlp=False)
    plain.load_state_dict({k: v for k, v in attn.state_dict().items() if "head_mlp" not in k})
    x, raw = maps(2, 16, 6, 6)
    torch.testing.assert_close(attn.eval()(x, raw), plain(x, raw), rtol=1e-5, atol=1e-6)


def test_tokens_may_be_permuted():
    attn, (x, raw) = partial_attention(), maps(2, 8, 4, 7)
    order = torch.randperm(28)

    def move(t):
        return t.flatten(2)[:, :, order].unflatten(2, (4, 7))

    torch.testing.assert_close(move(attn(x, raw)), attn(move(x), move(raw)), rtol=1e-4, atol=1e-5)


def test_selection_is_per_image():
    model, x = randomised(tiny()), torch.randn(4, 3, 64, 64)
    alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(model(x), alone, rtol=1e-3, atol=1e-4)


def test_ties_go_to_the_first_token():
    attn = partial_attention(deterministic=True)
    raw = torch.zeros(1, 8, 4, 4)
    raw[0, :, 2, 1] = 1.0
    assert attn.select(raw).tolist() == [[9, 0, 1, 2]]


def test_scores_are_taken_before_the_norm():
    # pitfall: behind a fresh LayerNorm every channel mean is zero and the order is noise
    model, x = tiny().eval(), torch.randn(2, 3, 128, 128)
    block = model.stages[0].blocks[0]
    raw = block.cpe(model.stem(x))
    assert block.norm1(raw).mean(1).abs().max() < 1e-5
    wanted = raw.mean(1).flatten(1).topk(16)[1].sort()[0]
    assert torch.equal(model.attention_maps(x)[0]["index"].sort()[0], wanted)


def test_random_scores_survive_recomputation():
    model = tiny(score="random").train()
    x = torch.randn(2, 3, 64, 64)
    grads = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        torch.manual_seed(3)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for kept, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-4, atol=1e-6)


def test_random_scores_are_drawn_for_every_image():
    attn = partial_attention(score="random")
    index = attn.select(torch.zeros(8, 8, 8, 8)).sort()[0]
    assert len({tuple(row) for row in index.tolist()}) == 8


def test_block_adds_positions_then_normalises_before_mixer_and_mlp():
    class Mixer(nn.Module):
        def forward(self, x, raw):
            return 2 * x + 3 * raw

    block = randomised(Block(8, Mixer(), 2, cpe_kernel=5)).double()
    block.cpe.conv.bias.data.mul_(1e-3)
    x = 1e-3 * torch.randn(2, 8, 6, 5, dtype=torch.float64)  # small, so that the norms' epsilon counts

    def normed(norm, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), (8,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)

    y = x + F.conv2d(x, block.cpe.conv.weight, block.cpe.conv.bias, padding=2, groups=8)
    y = y + 2 * normed(block.norm1, y) + 3 * y
    hidden = F.gelu(F.conv2d(normed(block.norm2, y), block.mlp.fc1.weight, block.mlp.fc1.bias))
    y = y + F.conv2d(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    torch.testing.assert_close(block(x), y, rtol=1e-6, atol=1e-9)


def test_stochastic_depth_leaves_the_identity():
    block = Block(8, None, drop_path=0.9999).train()
    x = torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(block(x), block.cpe(x), rtol=0, atol=0)


def test_every_layer_norm_has_epsilon_1e_6():
    assert {m.eps for m in tiny(out_norms=True).modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_the_stem_activates_twice():
    stem = tiny().stem.double().eval()
    for p in (*stem.parameters(), *stem.buffers()):
        if p.is_floating_point():
            nn.init.uniform_(p, 0.1, 0.5)
    x = torch.randn(1, 3, 13, 18, dtype=torch.float64)
    y = x
    for layer, stride in ((stem.conv1, 2), (stem.conv2, 1), (stem.conv3, 2)):
        norm = layer.norm
        y = F.conv2d(y, layer.conv.weight, None, stride, 1)
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
        y = y if layer is stem.conv3 else F.gelu(y)
    torch.testing.assert_close(stem(x), y)


def test_full_mixer_is_multi_head_attention():
    full = randomised(FullAttention(8, 2))
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = full.qkv.weight.data[:, :, 0, 0], full.qkv.bias.data
    reference.out_proj.weight.data, reference.out_proj.bias.data = (
        full.proj.weight.data[:, :, 0, 0],
        full.proj.bias.data,
    )
    x = torch.randn(2, 8, 3, 5)
    tokens = x.flatten(2).transpose(1, 2)
    expected = reference(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(full(x, x), expected)
    mixed = tiny(mixers=("full", "full", "partial", "full"))
    assert [type(s.blocks[0].attn).__name__ for s in mixed.stages].count("FullAttention") == 3
    assert len(mixed.attention_maps(torch.randn(1, 3, 64, 64))) == 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_sqa": False, "use_abstract_token": False, "head_mlp": False, "score": "l2", "max_foreground": 3},
        {"qkv_bias": False, "proj_scope": "all", "background_residual": False, "deterministic": True},
    ],
    ids=str,
)
def test_branches_of_the_mixer_can_be_scripted(options):
    attn, (x, raw) = partial_attention(**options), maps(2, 8, 5, 6)
    torch.testing.assert_close(torch.jit.script(attn)(x, raw), attn(x, raw))
    one = torch.randn(2, 8, 1, 1)
    torch.testing.assert_close(torch.jit.script(attn)(one, one), attn(one, one))


# ---- sizes and precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 100), (75, 64)])
def test_any_size_in_one_instance(size):
    model = tiny().eval()
    last, taps = model.forward_intermediates(torch.randn(2, 3, *size))
    for tap, reduction in zip(taps, (4, 8, 16, 32), strict=True):
        assert tap.shape[2:] == tuple(math.ceil(side / reduction) for side in size)
        assert tap.isfinite().all()
    assert last is taps[-1] or torch.equal(last, taps[-1])  # no norm outside the head


def test_one_token_keeps_every_parameter_in_the_graph():
    # at 32 pixels the last map is one token: no background, and still nothing is unused or infinite
    model = tiny().train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype):
    model = randomised(tiny())
    x = 100 * torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert model(x).isfinite().all()
    with torch.no_grad():
        out = model.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


# ---- initialisation, options, checkpoints ---------------------------------------------------------------------------


def test_initialisation():
    torch.manual_seed(0)
    model = PartialFormer(embed_dims=(32, 64, 128, 256), depths=(1, 1, 1, 1)).requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            assert module.bias is None or not module.bias.any(), name
        if "head_mlp.fc1" in name:
            eye = torch.eye(module.in_channels)
            assert torch.equal(module.weight[:, :, 0, 0], torch.cat([eye, eye]))
        elif "head_mlp.fc2" in name:
            eye = torch.eye(module.out_channels)
            assert torch.equal(module.weight[:, :, 0, 0], torch.cat([eye, eye], dim=1) / 2)
        elif isinstance(module, (nn.Linear, Pointwise)) and module.weight.numel() > 4000:
            assert module.weight.std() == pytest.approx(0.02, rel=0.1), name
        elif isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            assert module.weight.std() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
        elif isinstance(module, PartialAttention):
            assert 0.01 < module.abstract_token.std() < 0.03
    normal = tiny(head_mlp_init="normal").stages[3].blocks[0].attn.head_mlp.fc1.weight.detach()
    assert 0.005 < normal.std() < 0.04


def test_initialisation_is_complete_on_empty_storage():
    model = tiny(layer_scale_init=0.1, out_norms=True, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    model.init_weights()
    assert model.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()
    assert all(p.isfinite().all() for p in model.parameters())


def test_weight_decay_spares_the_abstract_tokens():
    assert tiny().no_weight_decay() == {
        f"stages.{s}.blocks.{b}.attn.abstract_token" for s, b in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mixers", "partially"),
        ("mixers", ("partial", "full")),
        ("score", "max"),
        ("score_source", "input"),
        ("proj_scope", "background"),
        ("head_mlp_init", "zero"),
        ("head_expansion", 0),
        ("channel_reduction", 0),
        ("channel_reduction_min", -1),
        ("max_foreground", 0),
        ("foreground_ratios", (1, 4)),
        ("foreground_ratios", ((1, 4), (1, 4), (1, 4), (5, 4))),
        ("foreground_ratios", ((1, 4), (1, 4), (1, 4), 0.25)),
        ("cpe_kernel", 4),
        ("num_heads", (3, 2, 4, 4)),
        ("embed_dims", (8, 16, 32)),
        ("head_hidden_size", 0),
        ("global_pool", "token"),
    ],
)
def test_wrong_values_are_named(option, value):
    with pytest.raises(ValueError) as error:
        tiny(**{option: value})
    named = "embed_dims" if option == "num_heads" else option
    assert named in str(error.value)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError):
        tiny(foreground_ratio=(1, 4))


def test_plain_values_from_json_are_enough():
    model = tiny(mixers=["partial"] * 4, foreground_ratios=[[1, 2], [1, 4], [1, 8], [2, 5]], embed_dims=[8, 16, 16, 32])
    assert count(model) == count(tiny())


def test_checkpoints_pass_unchanged_or_unwrapped():
    model = tiny()
    own = model.state_dict()
    for wrapped in (own, {"model": own, "epoch": 3}, {"state_dict": {f"module.{k}": v for k, v in own.items()}}):
        filtered = checkpoint_filter_fn(wrapped, model)
        assert filtered.keys() == own.keys()
        assert all(filtered[name] is own[name] for name in own)
