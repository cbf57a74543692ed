import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_helpers import conv_attention_oracle, slow_depthwise, slow_pointwise
from torch import nn
from torch.nn import functional as F

import vitrail  # noqa: F401 - registers the networks
from vitrail.models.emsnet import (
    ConvAttention,
    EMSNet,
    GlobalAttention,
    PatchTokens,
    Propagate,
    StaticTokens,
    checkpoint_filter_fn,
)

#: narrow, one block a stage; C-MHSA has 1, 1, 2, 2 heads and G-MHSA as many
SMALL = {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "mlp_ratios": 2, "head_dim": 8, "num_classes": 5}
STATIC = ("whiten", "dw", "pe2", "pe4", "gate")


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic random, so that none can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                scale = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
                value.copy_(scale * torch.randn(value.shape, generator=generator))
                if value.ndim == 1 and name.endswith(("weight", "running_var")):
                    value.abs_().add_(0.5)
    return model


# ---- counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("emsnet_xxtiny", 2_569_370),
        ("emsnet_xtiny", 2_958_254),
        ("emsnet_xtiny_c128", 2_311_884),
        ("emsnet_tiny", 5_468_186),
    ],
)
def test_parameters_of_the_variants(name, expected):
    assert params(timm.create_model(name)) == expected


@pytest.mark.parametrize(
    ("name", "stem", "downs", "blocks", "norm", "head"),
    [
        ("emsnet_xxtiny", 10208, [18560, 73984, 221568], [24161, 89201, 216354, 479763], 384, 193000),
        ("emsnet_tiny", 38848, [55488, 110848, 295424], [89201, 195201, 216354, 846660], 512, 257000),
    ],
)
def test_parameters_of_the_parts(name, stem, downs, blocks, norm, head):
    model = timm.create_model(name)
    assert params(model.stem) == stem
    assert [params(stage.downsample) for stage in model.stages] == [0, *downs]
    assert [{params(block) for block in stage.blocks} for stage in model.stages] == [{count} for count in blocks]
    assert (params(model.norm), params(model.head)) == (norm, head)


def test_parameters_inside_a_block():
    block = timm.create_model("emsnet_xxtiny").stages[2].blocks[0]  # C = 128
    static, dynamic = block.mixer.static, block.mixer.dynamic
    assert params(block.norm1) + params(block.norm2) == 512
    assert params(block.proj_in) == params(block.proj_out) == 16384
    assert params(block.mlp) == 131072
    parts = [static.whiten, static.dwconv, static.branch_p2, static.branch_p4, static.value, static.fusion]
    assert [params(part) for part in parts] == [4096, 3136, 1552, 1936, 4096, 4096]
    assert [params(part) for part in (static, dynamic)] == [18912, 33090]
    assert [params(p) for p in (dynamic.local.embed, dynamic.local.attn, dynamic.local.prop)] == [2176, 19362, 1056]
    assert [params(p) for p in (dynamic.glob.embed, dynamic.glob.attn, dynamic.glob.prop)] == [1088, 4128, 1184]
    assert params(dynamic.fusion) == 4096


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"static_ops": (), "dynamic_ops": ()}, 2_099_016),
        ({"static_ops": ("whiten",), "dynamic_ops": ()}, 2_248_520),
        ({"static_ops": STATIC[:3], "dynamic_ops": (), "branch_ratios": (0.5, 0.5, 0.0)}, 2_411_944),
        ({"static_ops": STATIC[:4], "dynamic_ops": ()}, 2_381_096),
        ({"dynamic_ops": ()}, 2_680_104),
        ({"dynamic_ops": ("cmhsa",)}, 3_091_418),
        ({"branch_ratios": (0.5, 0.25, 0.25)}, 2_592_226),
        ({"branch_ratios": (0.25, 0.25, 0.5)}, 2_595_490),
        ({"branch_fusion": False}, 2_494_618),
        ({"channel_split": False}, 4_598_586),
        ({"norm": "ln"}, 2_569_370),
        ({"norm": "gn"}, 2_569_370),
        ({"whiten": "none"}, 2_569_370),
        ({"mask_border": True}, 2_569_370),
        ({"layer_scale_init": 1e-5}, 2_569_370 + 2 * (2 * 32 + 2 * 64 + 4 * 128 + 2 * 192)),
        ({"out_norms": True}, 2_569_370 + 2 * (32 + 64 + 128 + 192)),
    ],
)
def test_parameters_of_the_options(options, expected):
    """Tables 3.5, 3.7 and 3.9: the reported millions are these, cut after two digits, but for the last two rows."""
    assert params(timm.create_model("emsnet_xxtiny", **options)) == expected


@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("emsnet_xxtiny", {}, [1, 1, 2, 3]),
        ("emsnet_xtiny", {}, [1, 1, 1, 3]),
        ("emsnet_tiny", {}, [1, 1, 2, 4]),
        ("emsnet_xxtiny", {"dynamic_ops": ("cmhsa",)}, [1, 2, 4, 6]),
        ("emsnet_xxtiny", {"dynamic_ops": ("gmhsa",)}, [1, 2, 4, 6]),
        ("emsnet_xxtiny", {"channel_split": False}, [1, 1, 2, 3]),
    ],
)
def test_heads(name, options, heads):
    model = timm.create_model(name, **options)
    for kind in (ConvAttention, GlobalAttention):
        found = [[m.num_heads for m in s.modules() if isinstance(m, kind)] for s in model.stages]
        assert all(set(stage) <= {count} for stage, count in zip(found, heads, strict=True))


# ---- an oracle written from the definition: one output position at a time, no pooling, unfold or fold ---------------


def slow_tokens(embed, x, p, kind):
    rows = []
    for i in range(0, x.shape[2], p):
        patches = [x[:, :, i : i + p, j : j + p].flatten(2) for j in range(0, x.shape[3], p)]
        rows.append(torch.stack([q.amax(2) if kind == "max" else q.mean(2) for q in patches], 2))
    x, norm = slow_pointwise(embed.conv, torch.stack(rows, 2)), embed.norm
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]


def slow_prop(prop, x, height, width, p):
    groups = prop.bias.numel()
    e = x.shape[1] // groups
    y = x.new_empty(x.shape[0], groups, height, width)
    for r in range(height):
        for c in range(width):
            products = x[:, :, r // p, c // p] * prop.weight[:, 0, r % p, c % p]
            y[:, :, r, c] = products.reshape(-1, groups, e).sum(2) + prop.bias
    return y


def slow_global_attention(attn, x, heads):
    dim = x.shape[1]
    d = dim // heads
    q, k, v = slow_pointwise(attn.qkv, x).flatten(2).split(dim, 1)
    out = torch.cat(
        [
            ((qh.transpose(1, 2) @ kh * d**-0.5).softmax(-1) @ vh.transpose(1, 2)).transpose(1, 2)
            for qh, kh, vh in zip(q.split(d, 1), k.split(d, 1), v.split(d, 1), strict=True)
        ],
        1,
    )
    return slow_pointwise(attn.proj, out.unflatten(2, x.shape[2:]))


def slow_static(branch, x, options):
    """Eq. 3.1-3.5."""
    height, width = x.shape[2:]
    ops = options.get("static_ops", STATIC)
    r1, _, r3 = options.get("branch_ratios", (0.25, 0.5, 0.25))
    y = x
    if "whiten" in ops:
        y = slow_pointwise(branch.whiten, y)
        mean = {"channel": (1,), "spatial": (2, 3)}.get(options.get("whiten", "channel"))
        y = y - y.mean(mean, keepdim=True) if mean else y
    y = slow_depthwise(branch.dwconv, y) if "dw" in ops else y

    def tokens(part, name, p):
        x = slow_tokens(part.embed, name, p, "max")
        return slow_prop(part.prop, slow_depthwise(part.col, slow_depthwise(part.row, x)), height, width, p)

    p2, p4 = options.get("patch_sizes", (2, 4))[:2]
    if options.get("channel_split", True):
        first, last = round(r1 * x.shape[1]), round(r3 * x.shape[1])
        a, b, c = y[:, :first], y[:, first : x.shape[1] - last], y[:, x.shape[1] - last :]
        a = tokens(branch.branch_p2, a, p2) if "pe2" in ops and first else a
        c = tokens(branch.branch_p4, c, p4) if "pe4" in ops and last else c
        y = torch.cat([a, b, c], 1)
    else:
        a = tokens(branch.branch_p2, y, p2) if "pe2" in ops else 0
        y = y + a + (tokens(branch.branch_p4, y, p4) if "pe4" in ops else 0)
    if "gate" not in ops:
        return y
    y = slow_pointwise(branch.fusion, y) if options.get("branch_fusion", True) else y
    return slow_pointwise(branch.value, x) / (1 + (-y).exp())


def slow_dynamic(branch, x, options):
    """Eq. 3.6-3.10."""
    height, width = x.shape[2:]
    ops = options.get("dynamic_ops", ("cmhsa", "gmhsa"))
    p3, p4 = options.get("patch_sizes", (2, 4, 4, 6))[2:]
    split = options.get("channel_split", True)
    half = x.shape[1] // 2
    d1, d2 = (x[:, :half], x[:, half:]) if split and len(ops) == 2 else (x, x)
    out = []
    if "cmhsa" in ops:
        y = slow_tokens(branch.local.embed, d1, p3, "avg")
        heads = max(1, y.shape[1] // (8 if split else 16))
        y = conv_attention_oracle(branch.local.attn, y, heads, options.get("mask_border", False))
        out.append(slow_prop(branch.local.prop, y, height, width, p3))
    if "gmhsa" in ops:
        y = slow_tokens(branch.glob.embed, d2, p4, "avg")
        y = slow_global_attention(branch.glob.attn, y, max(1, y.shape[1] // (4 if split else 16)))
        out.append(slow_prop(branch.glob.prop, y, height, width, p4))
    y = torch.cat(out, 1) if split else sum(out)
    return slow_pointwise(branch.fusion, y) if options.get("branch_fusion", True) else y


def slow_mixer(mixer, x, options):
    static = options.get("static_ops", STATIC)
    dynamic = options.get("dynamic_ops", ("cmhsa", "gmhsa"))
    if not static and not dynamic:
        return x
    if not dynamic:
        return slow_static(mixer.static, x, options)
    if not static:
        return slow_dynamic(mixer.dynamic, x, options)
    if not options.get("channel_split", True):
        return slow_static(mixer.static, x, options) + slow_dynamic(mixer.dynamic, x, options)
    cut = int(options.get("static_ratio", 0.5) * x.shape[1])
    parts = slow_static(mixer.static, x[:, :cut], options), slow_dynamic(mixer.dynamic, x[:, cut:], options)
    return torch.cat(parts, 1)


OPTIONS = [
    {},
    {"mask_border": True},
    {"whiten": "spatial"},
    {"whiten": "none", "branch_fusion": False},
    {"channel_split": False},
    {"channel_split": False, "dynamic_ops": ("cmhsa",), "static_ops": ("pe4", "gate"), "branch_fusion": False},
    {"dynamic_ops": (), "branch_ratios": (0.5, 0.5, 0.0)},
    {"dynamic_ops": (), "static_ops": ("dw", "pe4")},
    {"static_ops": (), "mask_border": True},
    {"static_ops": ("whiten",), "dynamic_ops": ("gmhsa",)},
    {"static_ops": (), "dynamic_ops": ()},
    {"dynamic_ops": ("cmhsa",), "static_ratio": 0.25, "cmhsa_expand": 1, "static_expand": 3},
    {
        "patch_sizes": (3, 5, 2, 4),
        "local_kernel": 3,
        "coord_kernel": 5,
        "gmhsa_expand": 2,
        "branch_ratios": (0.5, 0, 0.5),
    },
]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(OPTIONS), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_mixer_against_the_definition(options, height, width, seed):
    model = randomise(EMSNet(**{**SMALL, **options}, dtype=torch.float64), seed).eval()
    mixer = model.stages[2].blocks[0].mixer
    x = torch.randn(2, 32, height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), slow_mixer(mixer, x, options), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_mixer_against_the_definition_on_a_larger_map(options):
    model = randomise(EMSNet(**{**SMALL, **options}, dtype=torch.float64)).eval()
    mixer = model.stages[2].blocks[0].mixer
    x = torch.randn(1, 32, 14, 13, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), slow_mixer(mixer, x, options), rtol=1e-10, atol=1e-10)


# ---- around the mixer ---------------------------------------------------------------------------------------------


def slow_batch_norm(norm, x):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


def test_block_normalises_first_and_activates_before_the_mixer():
    block = randomise(EMSNet(**SMALL, dtype=torch.float64)).eval().stages[2].blocks[0]
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    y = F.gelu(slow_pointwise(block.proj_in, slow_batch_norm(block.norm1, x)))
    y = x + slow_pointwise(block.proj_out, block.mixer(y))
    hidden = F.gelu(slow_pointwise(block.mlp.fc1, slow_batch_norm(block.norm2, y)))
    torch.testing.assert_close(block(x), y + slow_pointwise(block.mlp.fc2, hidden))


def test_stochastic_depth_leaves_the_identity():
    block = EMSNet(**SMALL, drop_path_rate=0.9999).train().stages[3].blocks[0]
    x = torch.randn(2, 32, 5, 6)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_the_stem_activates_once_and_down_sampling_never():
    model = randomise(EMSNet(**SMALL, dtype=torch.float64)).eval()
    x = torch.randn(1, 3, 13, 18, dtype=torch.float64)
    y = F.gelu(slow_batch_norm(model.stem.norm1, F.conv2d(x, model.stem.conv1.weight, None, 2, 1)))
    y = slow_batch_norm(model.stem.norm2, F.conv2d(y, model.stem.conv2.weight, None, 2, 1))
    torch.testing.assert_close(model.stem(x), y)
    down = model.stages[1].downsample
    torch.testing.assert_close(down(y), slow_batch_norm(down.norm, F.conv2d(y, down.conv.weight, None, 2, 1)))


# ---- pieces -------------------------------------------------------------------------------------------------------


def test_average_tokens_of_a_ramp_are_means_of_whole_and_cut_patches():
    embed = PatchTokens(1, 1, 6, "avg").eval()
    nn.init.ones_(embed.conv.weight)
    ramp = torch.arange(49.0).reshape(1, 1, 7, 7)
    expected = torch.tensor([[ramp[..., :6, :6].mean(), ramp[..., :6, 6].mean()], [ramp[..., 6, :6].mean(), 48.0]])
    torch.testing.assert_close(embed(ramp)[0, 0] * (1 + 1e-5) ** 0.5, expected)


@pytest.mark.parametrize(
    ("side", "tokens"), [(7, (4, 2, 2)), (14, (7, 4, 3)), (28, (14, 7, 5)), (56, (28, 14, 10)), (1, (1, 1, 1))]
)
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_token_grids_round_up(side, tokens, pool):
    x = torch.randn(1, 2, side, side + 1)
    for p, expected in zip((2, 4, 6), tokens, strict=True):
        assert PatchTokens(2, 3, p, pool).eval()(x).shape == (1, 3, expected, -(-(side + 1) // p))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 13), st.integers(1, 13))
def test_propagation_is_the_transposed_convolution(groups, expand, p, height, width):
    prop = randomise(Propagate(groups * expand, groups, p).double())
    x = torch.randn(2, groups * expand, -(-height // p), -(-width // p), dtype=torch.float64)
    whole = F.conv_transpose2d(x, prop.weight, prop.bias, p, groups=groups)
    torch.testing.assert_close(prop(x, height, width), whole[:, :, :height, :width])


def test_conv_attention_rows_sum_to_one_and_the_mask_silences_the_outside():
    x = torch.randn(2, 16, 5, 3)
    for mask in (False, True):
        attn = ConvAttention(16, 2, mask_border=mask)
        weights = attn.attention_map(x)
        assert weights.shape == (2, 2, 9, 9, 3 * 2)
        torch.testing.assert_close(weights.sum(3), torch.ones(2, 2, 9, 6))
        first = weights[:, :, :, :, 0]  # the top left window: its first row and column lie outside
        assert bool((first[..., [0, 1, 2, 3, 6]] == 0).all()) == mask
        assert (first[..., [4, 5, 7, 8]] > 0).all()


def test_without_the_mask_border_attention_leaks_to_zeros():
    """A constant value passes the masked attention unchanged where one window covers a pixel."""
    x = torch.randn(1, 8, 1, 1)
    attn = ConvAttention(8, 1, mask_border=True)
    torch.testing.assert_close(attn(x), attn.proj(attn.value(x)))
    attn.mask_border = False
    assert (attn(x) - attn.proj(attn.value(x))).abs().max() > 1e-4


def test_conv_attention_is_finite_in_half_precision_at_large_activations():
    for dtype in (torch.float16, torch.bfloat16):
        attn = randomise(ConvAttention(16, 1)).to(dtype)
        assert attn(100 * torch.randn(1, 16, 8, 8, dtype=dtype)).isfinite().all()


# ---- network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(225, 223), (64, 96), (32, 32), (33, 47)])
def test_one_instance_takes_every_size(size):
    model = EMSNet(**SMALL).eval()
    with torch.no_grad():
        x, taps = model.forward_intermediates(torch.randn(1, 3, *size))
        side = size
        side = tuple(-(-s // 2) for s in side)
        for tap in taps:
            side = tuple(-(-s // 2) for s in side)
            assert tap.shape[2:] == side
        assert x.isfinite().all()


TRAINED = [
    *OPTIONS,
    {"norm": "gn"},
    {"norm": "ln"},
    {"layer_scale_init": 1e-5, "drop_path_rate": 0.1, "drop_rate": 0.1},
]


@pytest.mark.parametrize("options", TRAINED, ids=str)
def test_every_option_trains(options):
    model = EMSNet(**{**SMALL, **options}).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_out_norms_stand_on_every_output():
    model = timm.create_model("emsnet_xxtiny", features_only=True, out_norms=True, depths=(1, 1, 1, 1))
    assert params(model) > 0
    assert [f.shape[1] for f in model(torch.randn(2, 3, 64, 64))] == [32, 64, 128, 192]
    plain = EMSNet(**SMALL, out_norms=True).eval()
    for i, norm in enumerate(plain.out_norms):
        nn.init.constant_(norm.bias, float(i + 1))
        nn.init.zeros_(norm.weight)
    taps = plain.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
    assert [tap.unique().tolist() for tap in taps] == [[1.0], [2.0], [3.0], [4.0]]


@pytest.mark.parametrize("emptied", [False, True])
def test_initialisation(emptied):
    model = EMSNet(depths=(1, 1, 2, 1))
    if emptied:
        model = model.to_empty(device="cpu")
        for value in (*model.parameters(), *model.buffers()):
            nn.init.constant_(value, float("nan")) if value.is_floating_point() else value.zero_()
        model.init_weights()
    block = model.stages[2].blocks[0]
    for layer in (block.proj_in, block.mlp.fc1, block.mixer.static.whiten, model.head):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.mixer.static.dwconv.weight.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.1)
    assert block.mixer.static.branch_p4.row.weight.std().item() == pytest.approx((2 / 13) ** 0.5, rel=0.2)
    assert model.stem.conv2.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.1)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif p.ndim == 1:
            assert (p == 1).all(), name
    static = block.mixer.static.branch_p4
    assert isinstance(static, StaticTokens)
    x = torch.randn(1, 32, 2, 2)
    spread = static.prop(x, 7, 8)
    nearest = x.reshape(1, 16, 2, 2, 2).mean(2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(spread, nearest[:, :, :7])


def test_drop_path_grows_linearly_over_the_blocks():
    model = EMSNet(**{**SMALL, "depths": (1, 2, 1, 1)}, drop_path_rate=0.4)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"whiten": "pixels"}, "whiten='pixels'"),
        ({"norm": "rms"}, "norm='rms'"),
        ({"static_ops": ("pe8",)}, "static_ops"),
        ({"static_ops": "gate"}, "static_ops"),
        ({"dynamic_ops": ("sa",)}, "dynamic_ops"),
        ({"static_ratio": 1.0}, "static_ratio"),
        ({"branch_ratios": (0.5, 0.5)}, "branch_ratios"),
        ({"branch_ratios": (0.5, 0.5, 0.5)}, "branch_ratios"),
        ({"branch_ratios": (0.3, 0.4, 0.3)}, "branch_ratios"),
        ({"embed_dims": (12, 16, 32, 32)}, "branch_ratios"),
        ({"patch_sizes": (2, 4, 6)}, "patch_sizes"),
        ({"local_kernel": 4}, "local_kernel"),
        ({"coord_kernel": 12}, "coord_kernel"),
        ({"head_dim": 5}, "C-MHSA"),
        ({"mlp_ratios": (4, 4)}, "mlp_ratios"),
        ({"global_pool": "token"}, "global_pool"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        EMSNet(**{**SMALL, **options})


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="window_size"):
        timm.create_model("emsnet_xxtiny", window_size=7)


def test_checkpoints_of_other_trainers_load():
    model = EMSNet(**SMALL)
    own = model.state_dict()
    assert list(checkpoint_filter_fn(own, model)) == list(own)
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in own.items()}}
    for foreign in (wrapped, {"model": own}):
        assert checkpoint_filter_fn(foreign, model).keys() == own.keys()
    for name in ("state_dict_ema", "model_ema", "ema_state_dict"):  # averaged weights before plain ones
        foreign = {"state_dict": {"plain": torch.zeros(1)}, name: own, "model": {"plain": torch.zeros(1)}}
        assert checkpoint_filter_fn(foreign, model).keys() == own.keys()


def test_one_pixel_gives_no_gradient_to_the_other_places_of_its_kernel():
    """oneDNN's strided bf16 convolution leaves them as they were in memory."""
    attention, x = ConvAttention(16, 2).train(), torch.randn(16, 16, 1, 1)
    assert torch.allclose(attention.reduced(x), attention.reduce(x), atol=1e-6)
    junk = [torch.full((size,), float("nan")) for size in range(16, 4000, 16)]
    del junk
    with torch.autocast("cpu", torch.bfloat16):
        attention(x).float().square().sum().backward()
    grad = attention.reduce.weight.grad.flatten(1)
    assert grad.isfinite().all()
    assert (grad[:, [0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()
    assert (grad[:, 4] != 0).any()
