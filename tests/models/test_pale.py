"""Pale Transformer: groups against their definition, the mixers against dense attention, counts against the paper."""

import itertools
import math
from types import SimpleNamespace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_helpers import pale_oracle
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import vitrail  # noqa: F401 - registers the networks
from vitrail.layers.mix_token import mix_tokens
from vitrail.models import pale
from vitrail.models.pale import MIXERS, PaleAttention, PaleBlock, attend_groups

VARIANTS = {  # Table 1: widths, heads, parameters of the classifier and of the dense backbone
    "pale_tiny": ((64, 128, 256, 512), (2, 4, 8, 16), 21_748_712, 21_236_608),
    "pale_small": ((96, 192, 384, 768), (2, 4, 8, 16), 48_308_200, 47_540_544),
    "pale_base": ((128, 256, 512, 1024), (4, 8, 16, 32), 85_324_776, 84_301_568),
}


def count(module):
    return sum(p.numel() for p in module.parameters())


def narrow(**options):
    """A network with every part of the real one, small enough to run in milliseconds."""
    shape = {"embed_dims": (8, 16, 16, 32), "num_heads": (2, 2, 4, 4), "depths": (1, 1, 2, 1), "num_classes": 5}
    return timm.create_model("pale_tiny", **{**shape, **options})


def on_meta(name="pale_tiny", **options):
    return timm.create_model(name, device="meta", **options)


def randomise(module, seed=0):
    """Weights and running statistics that leave no term at its trivial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
            if name.endswith(("running_var", "norm1.weight", "bn.weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.4, generator=generator)
    return module.eval()


# ---- grouping ----------------------------------------------------------------------------------------------------


def numbered(height, width):
    return torch.arange(height * width, dtype=torch.float64).reshape(1, height, width, 1)


def test_rows_of_a_group_are_spread_over_the_whole_map():
    # the members by the definition "row y is in group y mod N"; stripes of adjacent rows would have the same shapes
    for height, size in [(8, 2), (56, 7), (14, 7), (13, 5), (7, 3), (4, 9), (1, 1)]:
        number = math.ceil(height / size)
        found = [g.tolist() for part in pale.split_interlaced(numbered(height, 1), size) for g in part[0, :, :, 0]]
        assert found == [list(range(i, height, number)) for i in range(number)]


def test_stripes_are_adjacent_rows():
    found = [g.tolist() for part in pale.split_stripes(numbered(8, 1), 3) for g in part[0, :, :, 0]]
    assert found == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_pale_has_each_of_its_tokens_once():
    height, width, number = 6, 9, 3
    pales = pale.split_pales(numbered(height, width), number)
    assert pales.shape[2] == 2 * width + 3 * height - 2 * 3  # s_r * W + s_c * H - s_r * s_c
    for i in range(number):
        members = {y * width + x for y in range(height) for x in range(width) if y % number == i or x % number == i}
        assert sorted(pales[0, i, :, 0].tolist()) == sorted(members)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 13), st.integers(1, 5), st.integers(1, 9))
def test_merging_undoes_splitting(height, width, size):
    x = torch.randn(2, height, width, 3)
    assert torch.equal(pale.merge_interlaced(pale.split_interlaced(x, size), width), x)
    assert torch.equal(pale.merge_stripes(pale.split_stripes(x, size), width), x)
    x = torch.randn(2, height * size, width * size, 3)
    assert torch.equal(pale.merge_pales(pale.split_pales(x, size), height * size, width * size), x)


def group_means(v, size, interlaced=True):
    """With q = k = 0 attention is the mean of v over the group."""
    split, merge = (
        (pale.split_interlaced, pale.merge_interlaced) if interlaced else (pale.split_stripes, pale.merge_stripes)
    )
    means = [attend_groups(torch.zeros_like(part), torch.zeros_like(part), part, 1, None) for part in split(v, size)]
    return merge(means, v.shape[2])[0, :, :, 0].tolist()


def test_means_over_groups_of_a_toy_map():
    v = numbered(3, 4)
    assert group_means(v, 2) == [[5.5] * 4] * 3
    assert group_means(v, 2, interlaced=False) == [[3.5] * 4, [3.5] * 4, [9.5] * 4]
    columns = torch.tensor(group_means(v.transpose(1, 2), 2)).T.tolist()
    assert columns == [[5.0, 6.0, 5.0, 6.0]] * 3
    assert group_means(numbered(5, 1), 2) == [[1.5], [2.5], [2.0], [1.5], [2.5]]  # groups {0, 3}, {1, 4}, {2}


def test_means_over_vanilla_pales_of_a_toy_map():
    v, real = F.pad(numbered(3, 4), (0, 0, 0, 0, 0, 1)), torch.ones(1, 4, 4, 1, dtype=torch.bool)
    real[:, 3] = False
    zeros = torch.zeros_like(pale.split_pales(v, 2))
    out = attend_groups(zeros, zeros, pale.split_pales(v, 2), 1, pale.split_pales(real, 2))
    out = pale.merge_pales(out, 4, 4)[0, :3, :, 0]
    even = [5.4, 5.575, 5.4, 5.575]
    torch.testing.assert_close(out, torch.tensor([even, [5.575, 5.75] * 2, even], dtype=torch.float64))


# ---- mixers against dense attention --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(MIXERS),
    st.integers(1, 13),
    st.integers(1, 13),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 1),
    st.sampled_from(["tight", "paper"]),
)
def test_every_mixer_equals_dense_attention(mixer, height, width, size, block, pad_mode):
    attn = randomise(PaleAttention(8, 4, mixer, size, block, pad_mode=pad_mode, dtype=torch.float64))
    x = torch.randn(2, 8, height, width, dtype=torch.float64)
    expected = pale_oracle(attn, x, mixer, (1, 1) if mixer == "axial" else size, block)
    torch.testing.assert_close(attn(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixer", ["parallel", "vanilla", "sequential", "cross_shaped"])
def test_unmasked_padding_is_attended_as_ordinary_tokens(mixer):
    attn = randomise(PaleAttention(8, 4, mixer, (3, 3), mask_padding=False, dtype=torch.float64))
    x = torch.randn(2, 8, 7, 8, dtype=torch.float64)
    expected = pale_oracle(attn, F.pad(x, (0, 1, 0, 2)), mixer, (3, 3))[:, :, :7, :8]
    torch.testing.assert_close(attn(x), expected, rtol=0, atol=1e-10)
    assert (attn(x) - pale_oracle(attn, x, mixer, (3, 3))).abs().max() > 1e-3


@pytest.mark.parametrize("pad_mode", ["tight", "paper"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_what_lies_in_the_padding_never_matters(mixer, pad_mode, monkeypatch):
    # plain linear q, k, v: a 3x3 convolution would carry the altered padding into real tokens
    attn = randomise(PaleAttention(8, 4, mixer, (3, 2), pad_mode=pad_mode, qkv_kernel=0))
    x = torch.randn(2, 8, 7, 9)
    expected = attn(x)
    monkeypatch.setattr(pale, "F", SimpleNamespace(pad=lambda x, pads: F.pad(x, pads, value=30.0)))
    torch.testing.assert_close(attn(x), expected)


def test_tight_padding_stays_out_of_the_batch_statistics():
    x = torch.randn(2, 8, 8, 10)
    means = []
    for size in (1, 3, 7):
        torch.manual_seed(0)
        attn = PaleAttention(8, 2, "parallel", (size, size))
        attn(x)
        means.append(attn.q.bn.running_mean)
    torch.testing.assert_close(means[1], means[0])
    torch.testing.assert_close(means[2], means[0])


def test_sequential_alternates_inside_each_stage():
    model = narrow(mixers="sequential", depths=(1, 3, 2, 1))
    found = [[block.attn.mixer for block in stage.blocks] for stage in model.stages]
    assert found == [["rows"], ["rows", "columns", "rows"], ["rows", "columns"], ["rows"]]


def test_cross_shaped_ends_with_global_attention_unless_told_otherwise():
    def attns(**options):
        return [stage.blocks[0].attn for stage in narrow(mixers="cross_shaped", **options).stages]

    assert [(a.mixer, a.size_r) for a in attns()][:3] == [("parallel", 1), ("parallel", 2), ("parallel", 7)]
    assert attns()[3].mixer == "global"
    assert not attns(global_last_stage=False)[3].interlaced
    assert [a.size_r for a in attns(split_size=3)] == [3, 3, 3, 3]


# ---- block and network ---------------------------------------------------------------------------------------------


def test_projections_look_around_then_normalise_then_mix_channels():
    phi = randomise(PaleAttention(8, 2, dtype=torch.float64)).q
    x = torch.randn(2, 8, 7, 5, dtype=torch.float64)
    y = F.conv2d(x, phi.dw.weight, padding=1, groups=8)
    y = F.batch_norm(y, phi.bn.running_mean, phi.bn.running_var, phi.bn.weight, phi.bn.bias, eps=1e-5)
    torch.testing.assert_close(phi(x), F.conv2d(y, phi.pw.weight, phi.pw.bias))


def test_block_is_equations_6_to_8():
    block = randomise(PaleBlock(8, 2, 4.0, 3, 0.0, {"pale_size": (3, 3)}))
    x = torch.randn(2, 8, 7, 5)
    x1 = x + F.conv2d(x, block.cpe.conv.weight, block.cpe.conv.bias, padding=1, groups=8)
    x2 = x1 + block.attn(block.norm1(x1))
    hidden = F.gelu(F.conv2d(block.norm2(x2), block.mlp.fc1.weight, block.mlp.fc1.bias))
    x3 = x2 + F.conv2d(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    torch.testing.assert_close(block(x), x3)


def test_every_layer_norm_has_epsilon_1e_5():
    assert {m.eps for m in narrow(out_norms=True).modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_of_every_variant(name):
    dims, heads, parameters, dense_parameters = VARIANTS[name]
    model = on_meta(name)
    assert count(model) == parameters
    assert count(on_meta(name, features_only=True, out_norms=True)) == dense_parameters
    assert [stage.blocks[0].attn.num_heads for stage in model.stages] == list(heads)
    assert [len(stage.blocks) for stage in model.stages] == [2, 2, 16, 2]
    assert count(model.stem) == 147 * dims[0] + 3 * dims[0]
    for i, stage in enumerate(model.stages):
        c = dims[i]
        assert count(stage.blocks[0]) == 12 * c**2 + 56 * c
        assert count(stage.downsample) == (9 * dims[i - 1] * c + 3 * c if i else 0)


@pytest.mark.parametrize(
    ("options", "more"),  # than the default's, by the widths of all blocks summed
    [
        ({"mixers": ["axial", "vanilla", "parallel", "global"], "pale_size": [[1, 2], 3, 5, 9]}, 0),
        ({"mixers": ["sequential", "cross_shaped", "sequential", "cross_shaped"]}, 0),
        ({"pad_mode": "paper", "mask_padding": False}, 0),
        ({"qkv_norm": "none"}, -6),
        ({"qkv_kernel": 0}, -33),
        ({"qkv_kernel": 5}, 48),
        ({"cpe_kernel": 5}, 16),
        ({"qkv_bias": False}, -3),
    ],
    ids=str,
)
def test_parameters_of_every_option(options, more):
    assert count(narrow(**options)) == count(narrow()) + more * (8 + 16 + 2 * 16 + 32)


def test_parameters_reported_for_options_of_the_tiny_network():
    assert count(on_meta(qkv_norm="none")) == 21_715_688
    assert count(on_meta(token_labeling=True, mix_token=True)) == 21_748_712 + 513_000


def multiply_adds(**options):
    model = on_meta(**options).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("options", "giga"),  # convolutions, linear layers and attention products at 224
    [
        ({"token_labeling": True}, 4.2026),  # the auxiliary head rests in evaluation
        ({"mixers": "vanilla"}, 5.353),
        ({"mixers": "cross_shaped"}, 3.877),
        ({"mixers": "global"}, 6.799),
    ],
)
def test_multiply_adds_of_the_tiny_network(options, giga):
    assert multiply_adds(**options) / 1e9 == pytest.approx(giga, abs=6e-4)


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_multiply_adds_by_pale_size(size):
    depths = (1, 1, 2, 1)

    def products(size):  # two products of every group's tokens with each other, on rows and on columns
        total = 0
        for side, width, depth in zip((56, 28, 14, 7), (64, 128, 256, 512), depths, strict=True):
            n = math.ceil(side / size)
            members = [len(range(i, side, n)) * side for i in range(n)]
            total += depth * 2 * 2 * (width // 2) * sum(m * m for m in members)
        return total

    difference = multiply_adds(depths=depths, pale_size=size) - multiply_adds(depths=depths)
    assert difference == products(size) - products(7)


OPTIONS = [
    *({"mixers": mixer} for mixer in MIXERS),
    {"mixers": ["axial", "vanilla", "parallel", "global"], "pale_size": [[1, 2], 3, [5, 4], 9]},
    {"pale_size": 3, "pad_mode": "paper"},
    {"pale_size": 3, "mask_padding": False},
    {"mixers": "cross_shaped", "split_size": [1, 1, 2, 2], "global_last_stage": False},
    {"qkv_kernel": 0},
    {"qkv_norm": "none", "qkv_bias": False, "cpe_kernel": 5},
    {"token_labeling": True},
    {"token_labeling": True, "aux_logit_weight": 0.5},
    {"token_labeling": True, "mix_token": True},
    {"drop_rate": 0.1, "drop_path_rate": 0.2, "mlp_ratios": (4, 4, 2, 2)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains(options):
    torch.manual_seed(0)
    model = narrow(**options).train()
    out = model(torch.randn(2, 3, 64, 64))
    loss = sum(o.square().mean() for o in (out[:2] if options.get("mix_token") else [out]))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (100, 36), (64, 135)])
@pytest.mark.parametrize("mixer", MIXERS)
def test_one_instance_takes_every_size(mixer, size):
    model = narrow(mixers=mixer, pale_size=3).eval()
    with torch.no_grad():
        out, taps = model.forward_intermediates(torch.randn(1, 3, *size))
    assert [tuple(t.shape[2:]) for t in taps] == [tuple(math.ceil(s / r) for s in size) for r in (4, 8, 16, 32)]
    assert out.isfinite().all()


def test_stem_loses_no_pixel():
    stem = narrow().stem
    x = torch.randn(1, 3, 66, 333)
    assert stem(x).shape[2:] == (17, 84)
    torch.testing.assert_close(stem(x), stem(F.pad(x, (0, 3, 0, 2))))


def test_stem_reaches_two_pixels_over_the_border_and_normalises():
    stem = narrow().stem.double()
    x = torch.randn(1, 3, 12, 16, dtype=torch.float64)
    y = F.conv2d(x, stem.conv1.weight, stem.conv1.bias, stride=4, padding=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(stem(x).permute(0, 2, 3, 1), F.layer_norm(y, y.shape[3:], eps=1e-5))


def test_padding_modes_give_the_same_pyramid():
    x = torch.randn(1, 3, 200, 332)
    tight = randomise(narrow(features_only=True, out_norms=True))
    paper = narrow(features_only=True, out_norms=True, pad_mode="paper").eval()
    paper.load_state_dict(tight.state_dict())
    unmasked = narrow(features_only=True, out_norms=True, mask_padding=False).eval()
    unmasked.load_state_dict(tight.state_dict())
    with torch.no_grad():
        for a, b in zip(tight(x), paper(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert any((a - b).abs().max() > 1e-2 for a, b in zip(tight(x), unmasked(x), strict=True))


def test_initial_weights():
    torch.manual_seed(0)
    model = timm.create_model("pale_tiny", depths=(1, 1, 1, 1))
    block = model.stages[3].blocks[0]
    for layer in (block.attn.q.pw, block.attn.proj, block.mlp.fc1, block.mlp.fc2, model.head):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert layer.bias.abs().max() == 0
    for layer in (block.cpe.conv, block.attn.q.dw, block.attn.v.dw):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert block.cpe.conv.bias.abs().max() == 0
    fan_in = 147  # the framework's default: uniform within 1 / sqrt(fan in)
    assert 0.9 / math.sqrt(fan_in) < model.stem.conv1.weight.abs().max() <= 1 / math.sqrt(fan_in)
    assert block.attn.q.bn.weight.eq(1).all()


def test_weights_on_uninitialised_storage_become_whole():
    model = on_meta(embed_dims=(8, 16, 16, 32), num_heads=2, depths=(1, 1, 1, 1), token_labeling=True)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
    model.init_weights()
    assert all(t.isfinite().all() for t in model.state_dict().values())


def test_drop_path_grows_over_all_blocks_and_spares_the_position_encoding():
    model = on_meta(drop_path_rate=0.42)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(22)])
    block = PaleBlock(8, 2, 4.0, 3, 0.9999, {}).train()
    x = torch.randn(4, 8, 6, 6)
    torch.testing.assert_close(block(x), block.cpe(x))


def test_large_activations_stay_finite_in_half_precision():
    model = randomise(narrow(pale_size=3))
    x = 100 * torch.randn(1, 3, 70, 64)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype), torch.no_grad():
            assert model(x).isfinite().all()


# ---- token labelling ----------------------------------------------------------------------------------------------


def test_auxiliary_logits_count_by_their_weight():
    model = randomise(narrow(token_labeling=True))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        tokens = model.forward_features(x)
        plain = model.head(tokens.mean((2, 3)))
        torch.testing.assert_close(model(x), plain)
        model.aux_logit_weight = 0.5
        largest = model.aux_head(tokens.permute(0, 2, 3, 1)).amax((1, 2))
        torch.testing.assert_close(model(x), plain + 0.5 * largest)
    assert model.pretrained_cfg["classifier"] == ("head", "aux_head")


def test_mix_token_mixes_behind_the_stem_and_unmixes_the_tokens():
    model = narrow(token_labeling=True, mix_token=True).train()
    x = torch.randn(4, 3, 64, 96)
    logits, token_logits, box = model(x)
    assert logits.shape == (4, 5)
    assert token_logits.shape == (4, 2 * 3, 5)
    assert len(box) == 4
    model = randomise(model)
    assert model(x).shape == (4, 5)  # evaluation: plain logits
    with torch.no_grad():
        everything = model.forward_token_labeling(x, box=(0, 0, 2, 3))  # each image replaced by its partner
        torch.testing.assert_close(everything[0], model(x).flip(0))
        torch.testing.assert_close(everything[1], model.forward_token_labeling(x, box=(0, 0, 0, 0))[1])
        mixed = model.norm(model.stages(mix_tokens(model.stem(x), (0, 1, 1, 3), 8)))
        torch.testing.assert_close(
            model.forward_token_labeling(x, box=(0, 1, 1, 3))[0], model.head(mixed.mean((2, 3))), rtol=1e-4, atol=1e-4
        )


# ---- options, checkpoints, graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": "window"}, "mixers='window'"),
        ({"mixers": ["parallel"] * 3}, "mixers"),
        ({"pale_size": 0}, "pale_size=0"),
        ({"pale_size": [7, 7]}, "pale_size"),
        ({"pale_size": [7, 7, 7, [7, 7, 7]]}, "pale_size"),
        ({"split_size": 2.5}, "split_size=2.5"),
        ({"qkv_kernel": 2}, "qkv_kernel=2"),
        ({"cpe_kernel": 0}, "cpe_kernel=0"),
        ({"qkv_norm": "ln"}, "qkv_norm='ln'"),
        ({"pad_mode": "loose"}, "pad_mode='loose'"),
        ({"num_heads": (1, 2, 4, 8)}, "num_heads=1"),
        ({"num_heads": (2, 2, 6, 4)}, "embed_dims=16"),
        ({"mix_token": True}, "mix_token=True"),
        ({"global_pool": "median"}, "global_pool='median'"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        narrow(**options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError):
        narrow(pale_sizes=7)


def test_one_head_serves_the_mixers_that_do_not_split():
    for mixer in ("vanilla", "sequential", "global"):
        assert narrow(mixers=mixer, num_heads=1)(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_checkpoints_pass_the_filter_in_and_out_of_wrappers():
    model = narrow()
    state = model.state_dict()
    for wrapped in (state, {"model": state, "epoch": 3}, {"state_dict": {f"module.{k}": v for k, v in state.items()}}):
        filtered = pale.checkpoint_filter_fn(wrapped, model)
        assert filtered.keys() == state.keys()
        model.load_state_dict(filtered)


@pytest.mark.parametrize("mixer", MIXERS)
def test_script_follows_the_size(mixer):
    attn = randomise(PaleAttention(8, 2, mixer, (3, 3)))
    script = torch.jit.script(attn)
    for size in [(6, 6), (7, 5), (2, 3)]:
        x = torch.randn(1, 8, *size)
        torch.testing.assert_close(script(x), attn(x))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_export_with_free_sizes(mixer):
    attn = randomise(PaleAttention(8, 2, mixer, (3, 3)))
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(attn, (torch.randn(2, 8, 13, 17),), dynamic_shapes=({0: free, 2: free, 3: free},))
    for size in [(13, 17), (6, 6), (7, 5), (20, 4)]:
        x = torch.randn(3, 8, *size)
        torch.testing.assert_close(program.module()(x), attn(x))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_compile_follows_the_size(mixer):
    torch._dynamo.reset()
    attn = randomise(PaleAttention(8, 2, mixer, (3, 3)))
    compiled = torch.compile(attn, fullgraph=True, backend="eager")
    for size in [(6, 6), (7, 5), (20, 13)]:
        x = torch.randn(1, 8, *size)
        torch.testing.assert_close(compiled(x), attn(x))
