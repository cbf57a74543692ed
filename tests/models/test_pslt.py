"""PSLT against the paper's counts and a dense reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_helpers import ladder_attention_oracle, ladder_block_oracle
from timm import create_model
from torch import nn
from torch.nn import functional as F

from network_helpers import randomise
from vitrail.models import pslt as ladder
from vitrail.models.pslt import (
    PSLT,
    InvertedResidual,
    LadderAttention,
    LadderBlock,
    PatchMerging,
    checkpoint_filter_fn,
    relative_position_index,
    shift_strides,
)

SMALL = {"num_classes": 5, "embed_dims": (12, 24, 48, 96), "depths": (1, 2, 2, 1), "num_heads": (0, 0, 2, 2)}
NAMES = ("pslt_tiny", "pslt", "pslt_large")


def parameters(net: nn.Module, tables: bool = True) -> int:
    return sum(p.numel() for name, p in net.named_parameters() if tables or not name.endswith("_table"))


def macs(net: nn.Module, size: int) -> tuple[int, int]:
    """Multiply-adds of convolutions and linears, and elements of batch norms, for one image."""
    total = {"linear": 0, "bn": 0}

    def count(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        if isinstance(layer, nn.BatchNorm2d):
            total["bn"] += out.numel()
        elif isinstance(layer, nn.Conv2d):
            total["linear"] += out.numel() * layer.weight[0].numel()
        else:
            total["linear"] += out.numel() * layer.in_features

    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return total["linear"], total["bn"]


# ---- counts ---------------------------------------------------------------------------------------------------------

# model, options, parameters, without tables, GMAC of conv + linear + 2 per BatchNorm element at 224 (32 for CIFAR)
CIFAR = {"num_classes": 100, "stem_stride": 1, "stage1_stride": 1, "window_size": 4}
COUNTS = [
    ("pslt_tiny", {}, 4_298_988, 4_266_540, 0.8755),
    ("pslt", {}, 9_257_302, 9_224_854, 1.9344),
    ("pslt_large", {}, 16_099_312, 16_066_864, 3.4074),
    ("pslt", {"num_branches": 2}, None, 10_999_702, 2.1399),
    ("pslt", {"num_branches": 4}, None, 8_375_446, 1.8361),
    ("pslt", {"num_branches": 6}, None, 7_551_382, 1.7407),
    ("pslt", {"shift": False}, 9_257_302, 9_224_854, 1.9344),
    ("pslt", {"feature_delivery": False}, 9_665_878, None, 1.9814),
    ("pslt", {"ffn": "mlp"}, None, 12_814_486, 2.3474),
    ("pslt", {"fusion": "fc"}, None, 7_393_174, 1.7231),
    ("pslt", {"fusion": "aw"}, None, 7_395_478, 1.7231),
    ("pslt", {"fusion": "concat"}, None, 5_563_798, 1.5118),
    ("pslt", {"fusion": "se"}, 9_257_302, 9_224_854, 1.7249),
    ("pslt", {"ffn": "mlp", "fusion": "concat"}, 9_185_878, None, 1.9247),
    ("pslt", {"delivered_shortcut": False}, 9_257_302, 9_224_854, 1.9344),
    ("pslt", CIFAR, None, 8_705_554, 0.5590),
    ("pslt", {**CIFAR, "num_classes": 10}, None, 8_653_624, 0.5590),
    ("pslt", {"num_classes": 100, "stem_stride": 1, "stage1_stride": 1, "pad_mode": "paper"}, 8_738_002, None, 0.717),
]


@pytest.mark.parametrize(("name", "options", "all_parameters", "without_tables", "gmac"), COUNTS)
def test_counts(name, options, all_parameters, without_tables, gmac):
    net = create_model(name, **options)
    if all_parameters:
        assert parameters(net) == all_parameters
    if without_tables:
        assert parameters(net, tables=False) == without_tables
    linear, bn = macs(net, 32 if "stem_stride" in options else 224)
    assert (linear + 2 * bn) / 1e9 == pytest.approx(gmac, abs=6e-5 if gmac != 0.717 else 6e-4)


def test_table3_stage_by_stage():
    net = create_model("pslt", device="meta")
    down3, merging = parameters(net.stages[2].downsample), parameters(net.stages[3].downsample)
    stages = [parameters(stage, tables=False) for stage in net.stages]
    assert parameters(net.stem) == 18_162
    assert stages[0] == 124_164
    assert (stages[1], down3) == (476_424, 340_272)
    assert (stages[2] - down3, merging) == (3_233_880 - 20_280, 665_856)
    assert stages[3] - merging == 3_820_392 - 12_168
    assert parameters(net.head) == 577_000
    assert parameters(net.norm) == 1_152
    block3, block4 = net.stages[2].blocks[0], net.stages[3].blocks[0]
    assert [parameters(branch) for branch in block3.branches] == [58_468, 49_156, 49_156]
    assert parameters(block3.fusion) == 166_608
    assert parameters(block3) == 323_388
    assert parameters(block4) == 1_273_464


@pytest.mark.parametrize(("name", "encoder"), [*zip(NAMES, (3_913_220, 8_679_150, 15_328_776), strict=True)])
def test_dense_mode_is_the_encoder_alone(name, encoder):
    assert parameters(create_model(name, features_only=True, device="meta")) == encoder


@given(d=st.integers(1, 12).map(lambda n: 12 * n), heads=st.sampled_from((1, 2, 3, 4)))
@settings(deadline=None, max_examples=10)
def test_closed_forms(d, heads):
    block = LadderBlock(3 * d, heads, device="meta")
    first, second, _ = (parameters(branch) for branch in block.branches)
    assert first == 6 * d * d + 26 * d + 169 * heads
    assert second == 5 * d * d + 25 * d + 169 * heads
    assert parameters(block.fusion) == 2 * (3 * d) ** 2 + 5 * 3 * d // 2


# ---- a dense reference ----------------------------------------------------------------------------------------------


@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    window=st.sampled_from((2, 4, 7)),
    shift=st.sampled_from((0, 1, -1, 3, -3, 5)),
    delivered=st.booleans(),
    pad_mode=st.sampled_from(("tight", "paper")),
)
@settings(deadline=None, max_examples=40)
def test_attention_is_the_dense_definition(height, width, window, shift, delivered, pad_mode):
    shift = shift if abs(shift) < window else 1
    net = randomise(LadderAttention(4, 2, window, shift, delivered, pad_mode=pad_mode))
    x, value = torch.randn(2, 2, 4, height, width, dtype=torch.float64)
    value = value if delivered else None
    torch.testing.assert_close(net(x, value), ladder_attention_oracle(net, x, value), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(14, 14), (16, 8), (16, 20), (8, 4), (10, 9), (4, 4), (21, 15), (7, 14)])
@pytest.mark.parametrize("shift", [0, 3, -3, 1, -1, 5])
def test_sizes_and_shifts_of_the_spec(size, shift):
    for delivered in (False, True):
        net = randomise(LadderAttention(4, 2, 7, shift, delivered))
        x, value = torch.randn(2, 1, 4, *size, dtype=torch.float64)
        value = value if delivered else None
        torch.testing.assert_close(net(x, value), ladder_attention_oracle(net, x, value), atol=1e-10, rtol=0)


@given(height=st.integers(1, 20), width=st.integers(1, 20), shift=st.sampled_from((0, 3, -3)), delivered=st.booleans())
@settings(deadline=None, max_examples=15)
def test_attended_padding_is_zeros_behind_the_norm(height, width, shift, delivered):
    net = randomise(LadderAttention(4, 2, 7, shift, delivered, mask_padding=False))
    x, value = torch.randn(2, 1, 4, height, width, dtype=torch.float64)
    pad = (0, -width % 7, 0, -height % 7)
    value = value if delivered else None
    padded_value = None if value is None else F.pad(value, pad)
    expected = ladder_attention_oracle(net, F.pad(x, pad), padded_value, padded=(height, width))
    torch.testing.assert_close(net(x, value), expected, atol=1e-10, rtol=0)


@given(height=st.integers(1, 20), width=st.integers(1, 20), branches=st.sampled_from((1, 2, 3, 4, 6)))
@settings(deadline=None, max_examples=15)
def test_block_is_the_ladder_of_the_paper(height, width, branches):
    block = randomise(LadderBlock(12 * branches // math.gcd(branches, 2), 2, shift_strides(branches)))
    x = torch.randn(1, 12 * branches // math.gcd(branches, 2), height, width, dtype=torch.float64)
    torch.testing.assert_close(block(x), ladder_block_oracle(block, x), atol=1e-9, rtol=1e-9)


def test_options_of_the_block_change_what_they_name():
    x = torch.randn(1, 12, 9, 9, dtype=torch.float64)
    outputs = {}
    for options in (
        {},
        {"delivered_shortcut": False},
        {"feature_delivery": False},
        {"shifts": (0, 0, 0)},
        {"shifts": (0, -3, 3)},
        {"shifts": (0, 3, 3)},
        {"fusion": "fc"},
        {"fusion": "aw"},
        {"fusion": "se"},
        {"fusion": "concat"},
        {"ffn": "mlp"},
        {"mask_padding": False},
    ):
        outputs[str(options)] = randomise(LadderBlock(12, 2, **options))(x)
    keys = list(outputs)
    for i, a in enumerate(keys):
        for b in keys[:i]:
            assert (outputs[a] - outputs[b]).abs().max() > 1e-3, (a, b)


@pytest.mark.parametrize("fusion", ["pafm", "fc", "aw", "se", "concat"])
def test_fusions(fusion):
    net = randomise(ladder.Fusion(6, fusion))
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    y = x
    if fusion in ("pafm", "aw", "se"):
        source = x.mean((2, 3), keepdim=True) if fusion == "se" else x
        y = x * torch.sigmoid(net.gate.fc2(F.relu(net.gate.fc1(source))))
    if fusion in ("pafm", "fc", "se"):
        y = y + net.mix(y)
    torch.testing.assert_close(net(x), y)


# ---- windows --------------------------------------------------------------------------------------------------------


def test_shift_table():
    assert [shift_strides(n) for n in (1, 2, 3, 4)] == [[0], [0, 3], [0, 3, -3], [0, 3, -3, 1]]
    assert shift_strides(6) == [0, 3, -3, 1, -1, 5]
    assert [s % 7 for s in shift_strides(6)] == [0, 3, 4, 1, 6, 5]
    assert shift_strides(3, 4) == [0, 1, -1]
    for window in range(2, 15):  # no two branches share their windows while there are enough of them
        assert len({s % window for s in shift_strides(6, window)}) == min(6, window)
        assert all(abs(s) < window for s in shift_strides(6, window))


@pytest.mark.parametrize("m", [2, 3, 7])
def test_relative_position_index_counts_query_minus_key(m):
    index = relative_position_index(m).reshape(m, m, m, m)
    for i, j, k, n in torch.cartesian_prod(*[torch.arange(m)] * 4).tolist():
        assert index[i, j, k, n] == (i - k + m - 1) * (2 * m - 1) + (j - n + m - 1)


@pytest.mark.parametrize(("size", "shift", "lengths"), [(14, 0, [7, 7]), (14, 3, [3, 7, 4]), (14, -3, [4, 7, 3])])
def test_segments_by_reach(size, shift, lengths):
    """A change of one pixel reaches the pixels of its segment and no others."""
    net = randomise(LadderAttention(2, 1, 7, shift))
    x = torch.randn(1, 2, size, size, dtype=torch.float64)
    borders = torch.tensor(lengths).cumsum(0).tolist()
    for pixel in range(size):
        moved = x.clone()
        moved[0, :, pixel, 0] += 1
        reached = (net(moved) - net(x)).abs().amax((0, 1, 3)) > 1e-12
        end = next(b for b in borders if pixel < b)
        start = end - lengths[borders.index(end)]
        assert reached.nonzero().flatten().tolist() == list(range(start, end))


def test_padding_is_never_seen(monkeypatch):
    net = randomise(LadderBlock(12, 2, pad_mode="paper"))
    x = torch.randn(1, 12, 10, 9, dtype=torch.float64)
    expected = net(x)

    def garbage(x, multiple):
        height, width = x.shape[1], x.shape[2]
        return F.pad(x, (0, 0, 0, -width % multiple, 0, -height % multiple), value=1e3)

    monkeypatch.setattr(ladder, "pad_to_multiple", garbage)
    torch.testing.assert_close(net(x), expected, atol=0, rtol=0)


def test_pad_modes_agree_and_no_size_leaves_a_trace():
    tight = randomise(PSLT(**SMALL))
    paper = PSLT(**SMALL, pad_mode="paper").double().eval()
    paper.load_state_dict(tight.state_dict())
    images = [
        torch.randn(1, 3, *size, dtype=torch.float64)
        for size in ((224, 224), (150, 333), (32, 32), (33, 47), (64, 300))
    ]
    first = [tight(image) for image in images]
    for image, expected in zip(images, first, strict=True):
        torch.testing.assert_close(paper(image), expected)
    for image, expected in zip(reversed(images), reversed(first), strict=True):
        torch.testing.assert_close(tight(image), expected, atol=0, rtol=0)


# ---- convolutional parts --------------------------------------------------------------------------------------------


def conv_act_norm(layer, x, act=True, **options):
    x = F.conv2d(x, layer.conv.weight, layer.conv.bias, **options)
    norm = layer.norm
    x = F.gelu(x) if act else x
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


@pytest.mark.parametrize(("out_channels", "stride"), [(6, 1), (6, 2), (8, 1)])
def test_inverted_residual_gates_its_output_channels_inside_the_residual(out_channels, stride):
    net = randomise(InvertedResidual(6, out_channels, stride, 2.0))
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    y = conv_act_norm(net.conv[0], x)
    y = conv_act_norm(net.conv[1], y, stride=stride, padding=1, groups=12)
    y = conv_act_norm(net.conv[2], y, act=False)
    y = y * torch.sigmoid(net.se.fc2(F.relu(net.se.fc1(y.mean((2, 3), keepdim=True)))))
    torch.testing.assert_close(net(x), x + y if (out_channels, stride) == (6, 1) else y)


def test_the_stem_is_three_convolutions_each_before_gelu_and_norm():
    stem = randomise(PSLT(**SMALL).stem)
    x = torch.randn(1, 3, 13, 18, dtype=torch.float64)
    y = conv_act_norm(
        stem[2], conv_act_norm(stem[1], conv_act_norm(stem[0], x, stride=2, padding=1), padding=1), padding=1
    )
    torch.testing.assert_close(stem(x), y)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1), (1, 4)])
def test_patch_merging_order(size):
    net = randomise(PatchMerging(3, 6))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    padded = F.pad(x, (0, size[1] % 2, 0, size[0] % 2))
    out = net(x)
    for i in range((size[0] + 1) // 2):
        for j in range((size[1] + 1) // 2):
            cells = [padded[:, :, 2 * i + a, 2 * j + b] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            normed = F.layer_norm(torch.cat(cells, 1), (12,), net.norm.weight, net.norm.bias, 1e-5)
            torch.testing.assert_close(out[:, :, i, j], normed @ net.reduction.weight.flatten(1).T)


# ---- network --------------------------------------------------------------------------------------------------------


def test_features():
    net = PSLT(**SMALL).eval()
    x = torch.randn(1, 3, 70, 101)
    taps = net.forward_intermediates(x, intermediates_only=True)
    assert [tuple(tap.shape[1:]) for tap in taps] == [(12, 18, 26), (24, 9, 13), (48, 5, 7), (96, 3, 4)]
    assert [info["reduction"] for info in net.feature_info] == [4, 8, 16, 32]
    torch.testing.assert_close(net.norm(taps[3]), net.forward_features(x))
    # LayerNorm of every token first, then the mean
    torch.testing.assert_close(net(x), net.head(net.norm(taps[3]).mean((2, 3))))
    small = PSLT(**SMALL, stem_stride=1, stage1_stride=1, window_size=4)
    assert [info["reduction"] for info in small.feature_info] == [1, 2, 4, 8]
    maps = small.eval().forward_intermediates(x[:, :, :32, :32], intermediates_only=True)
    assert [tap.shape[-1] for tap in maps] == [32, 16, 8, 4]


def test_out_norms():
    net = PSLT(**SMALL, out_norms=True).eval()
    for tap in net.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True):
        torch.testing.assert_close(tap.mean(1), torch.zeros_like(tap.mean(1)), atol=1e-4, rtol=0)


OPTIONS = [
    *({"num_branches": n} for n in (1, 2, 3, 4, 6)),
    *({"fusion": f} for f in ("fc", "aw", "concat", "se")),
    {"shift": False},
    {"feature_delivery": False},
    {"ffn": "mlp"},
    {"delivered_shortcut": False},
    {"mask_padding": False},
    {"pad_mode": "paper"},
    {"window_size": 4, "stage1_stride": 1},
    {"stem_stride": 1},
    {"num_heads": (0, 2, 2, 2), "embed_dims": (24, 48, 48, 96)},
    {"num_heads": (2, 2, 0, 2), "embed_dims": (24, 24, 48, 96)},
    {"mlp_ratios": [2, 4, 8, 4], "drop_path_rate": 0.2, "drop_rate": 0.1, "global_pool": "max"},
    {"in_chans": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains(options):
    torch.manual_seed(0)
    net = PSLT(**{**SMALL, **options}).train()
    x = torch.randn(2, net.in_chans, 64, 64)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    loss = F.cross_entropy(net(x), torch.tensor([1, 3]))
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()
    assert net.eval()(x).isfinite().all()


def test_drop_path_rises_over_the_ladder_blocks_and_branches_draw_alone():
    net = create_model("pslt", drop_path_rate=0.2, device="meta")
    rates = [[b.drop_path.drop_prob for b in block.branches] for s in net.stages[2:] for block in s.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.2, 13)[:, None].expand(13, 3))
    torch.manual_seed(0)
    block = LadderBlock(12, 2, drop_path=0.5, fusion="concat", feature_delivery=False).train()
    x = torch.randn(64, 12, 2, 2)
    dropped = (block(x) == x).flatten(2).all(2).reshape(64, 3, 4).all(2)  # both residuals of a branch
    assert 0 < dropped.sum() < 64
    assert (dropped.sum(1) == 1).any()


def test_initialisation():
    torch.manual_seed(0)
    net = PSLT(num_classes=10, embed_dims=(24, 48, 96, 192), depths=(2, 1, 2, 1), num_heads=(0, 0, 4, 8))

    def check(net):
        linears = [m for m in net.modules() if isinstance(m, (ladder.Pointwise, nn.Linear))]
        weights = torch.cat([m.weight.flatten() for m in linears])
        assert weights.std().item() == pytest.approx(0.02, rel=0.02)
        assert all(m.bias is None or not m.bias.any() for m in linears)
        tables = torch.cat([p.flatten() for n, p in net.named_parameters() if n.endswith("_table")])
        assert tables.std().item() == pytest.approx(0.02, rel=0.05)
        expand = net.stages[2].blocks[0].branches[0].ffn[0].conv.weight  # a convolution: framework default
        assert expand.abs().max() <= 32**-0.5
        assert expand.std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.1)
        for attn in (m for m in net.modules() if isinstance(m, LadderAttention)):
            assert torch.equal(attn.relative_position_index, relative_position_index(7))

    check(net)
    net = PSLT(num_classes=10, embed_dims=(24, 48, 96, 192), num_heads=(0, 0, 4, 8), device="meta")
    net.to_empty(device="cpu")
    net.init_weights()
    check(net)
    assert net.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_weight_decay_spares_the_tables():
    net = PSLT(**SMALL)
    assert len(net.no_weight_decay()) == 3 * 3
    assert all(name.endswith("relative_position_bias_table") for name in net.no_weight_decay())
    assert not any("index" in name or "mask" in name for name in net.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype):
    torch.manual_seed(0)
    net = PSLT(**SMALL).eval()
    x = torch.randn(1, 3, 150, 130)
    with torch.no_grad():
        expected = net(x)
        with torch.autocast("cpu", dtype):
            out = net(x)
            large = net(100 * x)
        assert net.to(dtype)(x.to(dtype)).dtype == dtype
    assert large.isfinite().all()
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)


def test_script_keeps_the_values():
    net = PSLT(**SMALL).eval()
    scripted = torch.jit.script(net)
    for size in ((64, 64), (33, 90)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(scripted(x), net(x))


def test_compiled_attention_serves_free_sizes():
    net = LadderAttention(8, 2, shift=3, delivered=True).eval()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager", dynamic=True)
    for size in ((9, 16), (21, 10), (8, 33)):
        x, value = torch.randn(2, 1, 8, *size)
        torch.testing.assert_close(compiled(x, value), net(x, value))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_branches": 5}, ("num_branches", "5", "1, 2, 3, 4, 6")),
        ({"ffn": "swiglu"}, ("ffn", "swiglu", "'light', 'mlp'")),
        ({"fusion": "sum"}, ("fusion", "sum", "'pafm', 'fc', 'aw', 'concat', 'se'")),
        ({"pad_mode": "loose"}, ("pad_mode", "loose", "'tight', 'paper'")),
        ({"stem_stride": 4}, ("stem_stride", "4", "1, 2")),
        ({"stage1_stride": 3}, ("stage1_stride", "3", "1, 2")),
        ({"window_size": 1}, ("window_size", "1", "2")),
        ({"embed_dims": (10, 24, 48, 96)}, ("embed_dims[0]", "10", "4")),
        ({"embed_dims": (12, 24, 50, 96)}, ("embed_dims[2]", "50", "6")),
        ({"embed_dims": (12, 24, 48)}, ("embed_dims", "3 entries", "4")),
        ({"depths": (1, 0, 1, 1)}, ("depths", "0", "1 block")),
        ({"mlp_ratios": (4, 4, 0, 4)}, ("mlp_ratios", "0")),
        ({"global_pool": "gem"}, ("global_pool", "gem", "avg")),
    ],
)
def test_wrong_values_are_named(options, words):
    with pytest.raises(ValueError) as error:
        PSLT(**{**SMALL, **options}, device="meta")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_option():
    with pytest.raises(TypeError, match="window"):
        create_model("pslt", window=8)


def test_checkpoint_filter_passes_our_own():
    net = PSLT(**SMALL)
    state = net.state_dict()
    for wrapped in (state, {"model": state}, {"state_dict": {f"module.{k}": v for k, v in state.items()}}):
        out = checkpoint_filter_fn(wrapped, net)
        assert list(out) == list(state)
        assert all(out[key] is state[key] for key in state)
