"""MAT against its definition: ragged windows one by one, dense attention, bilinear reading pixel by pixel."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle_helpers import mat_oracle
from timm.models import create_model
from torch import nn
from torch.nn import functional as F

from vitrail.layers import HiddenHead, Pointwise
from vitrail.models import mat as _mat_attention
from vitrail.models.mat import (
    TOKEN_MERGES,
    BilinearPatchEmbed,
    Block,
    ConvPatchEmbed,
    Mat,
    MatAttention,
    PatchMerging,
    WindowAttention,
    checkpoint_filter_fn,
    sample_halved,
)

# stem, embeddings 2-4, stages 1-4 without embedding and norm, stage norms, head, total (specification of the counts)
HEADS = {"mat_1": (12, 24), "mat_2": (8, 16), "mat_3": (8, 16), "mat_4": (12, 24), "mat_5": (16, 32)}  # stages 3, 4
PARTS = {
    "mat_1": (3168, (1800, 5904, 21024), (11472, 41376, 1035648, 4061952), 720, 1530600, 6713664),
    "mat_2": (5376, (2912, 9920, 36224), (19392, 71552, 1823232, 7185408), 960, 1612520, 10767496),
    "mat_3": (6696, (3564, 12312, 45360), (24120, 89712, 3066624, 12105216), 1080, 1653480, 17008164),
    "mat_4": (11520, (5904, 21024, 78912), (62064, 234720, 5415936, 21448704), 1440, 1776360, 29056584),
    "mat_5": (19968, (9920, 36224, 137984), (71552, 274176, 9580544, 38035456), 1920, 1940200, 50107944),
}
# rows of Tables 4.2 and 4.9, all on mat_2
ABLATIONS = [
    ({"mixers": "mat"}, 10874312),
    ({"mixers": ("none", "mat", "mat", "mat")}, 10852360),
    ({"mixers": ("none", "none", "mat", "mat")}, 10767496),
    ({"mixers": ("none", "none", "none", "mat")}, 9766792),
    ({"mixers": "none", "mlp_dwconv": False}, 5699464),
    ({"mixers": ("none", "none", "window", "window")}, 7802248),
    ({"patch_embed": "conv3x3"}, 11106856),
    ({"patch_embed": "merging"}, 10891816),
    ({"token_merge": "qkv"}, 10767496),
    ({"token_merge": "project"}, 10767496),
    ({"stage_norms": False}, 10767496 - 960),
    ({"out_norms": True}, 10767496 + 960),
    ({"head_hidden_size": 640}, 10767496 - 640 * (256 + 3 + 1000)),
]
TINY = {"embed_dims": (8, 12, 16, 32), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
TINY |= {"head_hidden_size": 24, "num_classes": 5}


def tiny(**options):
    return Mat(**{**TINY, **options})


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def randomised(module):
    """Every parameter far enough from zero to matter."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module.eval()


# ---- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTS)
def test_parameter_counts(name):
    stem, embeds, stages, norms, head, total = PARTS[name]
    model = create_model(name, device="meta")
    assert count(model.stem) == stem
    assert tuple(count(stage.downsample) for stage in model.stages)[1:] == embeds
    assert tuple(count(stage.blocks) for stage in model.stages) == stages
    assert count(*(stage.norm for stage in model.stages)) == norms
    assert count(model.head) == head
    assert count(model) == total
    assert tuple(stage.blocks[0].mixer.num_heads for stage in model.stages[2:]) == HEADS[name]
    for stage, dim in list(zip(model.stages, (info["num_chs"] for info in model.feature_info), strict=True))[2:]:
        assert count(stage.blocks[0].mixer) == 10 * dim**2 + 11 * dim
        assert count(stage.blocks[0]) == 8 * dim**2 + 47 * dim + 10 * dim**2 + 23 * dim
    model.prune_intermediate_layers([3])
    assert count(model) == total - head


@pytest.mark.parametrize(("options", "total"), ABLATIONS, ids=str)
def test_ablation_counts(options, total):
    assert count(create_model("mat_2", device="meta", **options)) == total


def test_embedding_counts():
    assert count(BilinearPatchEmbed(16, 32)) == 2 * 16**2 + 27 * 16
    assert count(WindowAttention(16, 2)) == 4 * 16**2 + 4 * 16


# ---- token mixers against ragged windows ---------------------------------------------------------


sides = st.integers(1, 12)


@settings(deadline=None, max_examples=15)
@given(
    height=sides,
    width=sides,
    heads=st.sampled_from([1, 2, 4]),
    m=st.integers(2, 7),
    seed=st.integers(0, 99),
    mixer=st.sampled_from(["window", *TOKEN_MERGES]),
    pad_mode=st.sampled_from(["tight", "paper"]),
)
@example(height=10, width=12, heads=2, m=7, seed=0, mixer="query", pad_mode="tight")
@example(height=10, width=12, heads=2, m=7, seed=0, mixer="qkv", pad_mode="tight")
@example(height=7, width=7, heads=2, m=7, seed=0, mixer="query", pad_mode="tight")
@example(height=3, width=5, heads=2, m=7, seed=0, mixer="project", pad_mode="tight")
@example(height=8, width=4, heads=2, m=4, seed=0, mixer="query", pad_mode="paper")
def test_mixers_equal_unpadded_ragged_windows(height, width, heads, m, seed, mixer, pad_mode):
    torch.manual_seed(seed)
    if mixer == "window":
        attn = WindowAttention(8, heads, m, pad_mode)
    else:
        attn = MatAttention(8, heads, m, pad_mode, token_merge=mixer)
    attn = randomised(attn.double())
    x = torch.randn(2, 8, height, width, dtype=torch.float64)
    with torch.no_grad():
        y = attn(x)
        for i in range(2):
            torch.testing.assert_close(y[i], mat_oracle(attn, x[i])[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("merge", TOKEN_MERGES)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (3, 4)])
def test_attention_maps_are_those_of_the_definition(merge, size):
    attn = randomised(MatAttention(8, 2, 4, token_merge=merge).double())
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    maps = attn.attention_maps(x)
    windows = math.ceil(size[0] / 4) * math.ceil(size[1] / 4)
    keys = 16 if merge == "query" else 17
    assert maps["abstraction"].shape == (2, 2, windows, keys)
    assert maps["mixing"].shape == (2, 2, windows, windows)
    assert maps["fusion"].shape == (2, 2, size[0] * size[1], windows)
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    for i in range(2):
        _, wanted = mat_oracle(attn, x[i])
        torch.testing.assert_close(maps["mixing"][i], wanted["mixing"])
        torch.testing.assert_close(maps["fusion"][i], wanted["fusion"])
        for j, row in enumerate(wanted["abstraction"]):  # without padding the window has fewer keys, in the same order
            got = maps["abstraction"][i, :, j]
            torch.testing.assert_close(got[got > 0].reshape(row.shape), row)


def test_by_default_the_token_is_a_query_only():
    model = tiny().double().eval()
    queries_only = tiny(token_merge="query").double().eval()
    queries_only.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 300, 280, dtype=torch.float64)
    torch.testing.assert_close(model(x), queries_only(x), rtol=0, atol=0)


@pytest.mark.parametrize("merge", ["window", *TOKEN_MERGES])
def test_padding_is_never_attended(monkeypatch, merge):
    x = torch.randn(2, 8, 5, 7)

    def build(**options):
        torch.manual_seed(1)
        if merge == "window":
            return randomised(WindowAttention(8, 2, 4, **options))
        return randomised(MatAttention(8, 2, 4, token_merge=merge, **options))

    def loud_padding(t, multiple):
        height, width = t.shape[1], t.shape[2]
        return F.pad(t, (0, 0, 0, -width % multiple, 0, -height % multiple), value=50.0)

    quiet, open_quiet = build()(x), build(mask_padding=False)(x)
    assert (quiet - open_quiet).abs().max() > 1e-3
    monkeypatch.setattr(_mat_attention, "pad_to_multiple", loud_padding)
    torch.testing.assert_close(build()(x), quiet)
    torch.testing.assert_close(build(pad_mode="paper")(x), quiet, rtol=1e-4, atol=1e-5)
    assert (build(mask_padding=False)(x) - open_quiet).abs().max() > 1e-3


def test_unmasked_padding_is_an_ordinary_token():
    """With pad_mode="paper" the padded map is computed like any other and cropped."""
    attn = randomised(MatAttention(8, 2, 4, "paper", mask_padding=False))
    x = torch.randn(1, 8, 5, 7)
    torch.testing.assert_close(attn(x), attn(F.pad(x, (0, 1, 0, 3)))[:, :, :5, :7])


def test_no_mask_is_built_when_the_windows_divide(monkeypatch):
    def refuse(*_):
        raise AssertionError("a mask was built")

    monkeypatch.setattr(_mat_attention, "window_key_mask", refuse)
    attn = MatAttention(8, 2, 4)
    attn(torch.randn(1, 8, 8, 4))
    with pytest.raises(AssertionError, match="a mask"):
        attn(torch.randn(1, 8, 8, 5))


def test_only_abstract_tokens_cross_windows():
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    for attn, crosses in ((WindowAttention(8, 2, 4), False), (MatAttention(8, 2, 4), True)):
        (grad,) = torch.autograd.grad(randomised(attn)(x)[:, :, :4, :4].square().sum(), x)
        assert grad[:, :, :4, :4].abs().max() > 0
        assert bool(grad[:, :, 4:, 4:].abs().max() > 0) is crosses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_at_large_activations(dtype):
    model = randomised(tiny())
    x = 100 * torch.randn(1, 3, 70, 90)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert model(x).isfinite().all()


# ---- patch embeddings ----------------------------------------------------------------------------


def test_zero_offsets_average_and_constant_offsets_shift():
    x = torch.randn(2, 3, 8, 10)
    offset = torch.zeros(2, 2, 4, 5)
    torch.testing.assert_close(sample_halved(x, offset), F.avg_pool2d(x, 2), rtol=1e-5, atol=2e-6)
    offset[:, 0] = 2.0  # dx: two pixels to the right = one cell
    shifted = F.avg_pool2d(x, 2)[..., 1:]
    torch.testing.assert_close(sample_halved(x, offset)[..., :-1], shifted, rtol=1e-5, atol=2e-6)


@settings(deadline=None, max_examples=15)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_sampling_equals_pixel_by_pixel_reading(height, width, seed):
    torch.manual_seed(seed)
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    offset = 2 * torch.randn(1, 2, (height + 1) // 2, (width + 1) // 2, dtype=torch.float64)
    y = sample_halved(x, offset)
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            px = min(max(2 * j + 0.5 + offset[0, 0, i, j].item(), 0), width - 1)
            py = min(max(2 * i + 0.5 + offset[0, 1, i, j].item(), 0), height - 1)
            x0, y0 = int(px), int(py)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            fx, fy = px - x0, py - y0
            top = x[0, :, y0, x0] * (1 - fx) + x[0, :, y0, x1] * fx
            bottom = x[0, :, y1, x0] * (1 - fx) + x[0, :, y1, x1] * fx
            torch.testing.assert_close(y[0, :, i, j], top * (1 - fy) + bottom * fy, rtol=1e-9, atol=1e-9)


def test_sampling_positions_are_float32_in_half_precision():
    x = torch.arange(1400.0).div(1400).expand(1, 1, 2, 1400)
    y = sample_halved(x.bfloat16(), torch.zeros(1, 2, 1, 700, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.avg_pool2d(x.bfloat16().float(), 2).bfloat16().float(), rtol=0, atol=2**-8)


def test_offset_range_bounds_the_offsets():
    embed = randomised(BilinearPatchEmbed(4, 8, offset_range=0.5))
    x = 10 * torch.randn(1, 4, 6, 6)
    raw = embed.offset_conv(embed.offset_act(embed.offset_dwconv(x)))
    sampled = sample_halved(x, 0.5 * torch.tanh(raw))
    torch.testing.assert_close(embed(x), embed.bn(embed.conv(embed.dwconv(sampled))))


def batch_norm(norm, x):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


def with_statistics(module):
    """Random weights and running statistics."""
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return randomised(module)


def test_embedding_samples_by_its_offsets_and_then_convolves():
    embed = with_statistics(BilinearPatchEmbed(4, 6))
    x = torch.randn(2, 4, 6, 9)
    offset = F.conv2d(x, embed.offset_dwconv.weight, embed.offset_dwconv.bias, stride=2, padding=1, groups=4)
    y = sample_halved(x, F.conv2d(F.gelu(offset), embed.offset_conv.weight))
    y = F.conv2d(y, embed.dwconv.weight, padding=1, groups=4)
    torch.testing.assert_close(embed(x), batch_norm(embed.bn, F.conv2d(y, embed.conv.weight, embed.conv.bias)))


@pytest.mark.parametrize("embed", [BilinearPatchEmbed, ConvPatchEmbed, PatchMerging])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 10)])
def test_embeddings_round_up(embed, size):
    y = embed(4, 8)(torch.randn(2, 4, *size))
    assert y.shape == (2, 8, (size[0] + 1) // 2, (size[1] + 1) // 2)


def test_merging_reads_cells_and_pads_with_zeros():
    embed = PatchMerging(2, 3).eval()
    x = torch.randn(1, 2, 3, 5)
    padded = F.pad(x, (0, 1, 0, 1))
    cells = F.unfold(padded, 2, stride=2).reshape(1, 8, 2, 3)  # channel-major, then rows, then columns
    torch.testing.assert_close(embed(x), embed.bn(embed.conv(cells)))


# ---- network -------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"mixers": "mat"},
    {"mixers": "window", "window_size": 3},
    {"mixers": "none", "mlp_dwconv": False, "num_heads": 0},
    {"mixers": ("none", "window", "mat", "none"), "num_heads": (0, 2, 2, 0), "window_size": 2},
    {"patch_embed": "conv3x3"},
    {"patch_embed": "merging"},
    {"offset_range": 1.5},
    {"token_merge": "qkv", "window_size": 3},
    {"token_merge": "project", "window_size": 3},
    {"stage_norms": False},
    {"pad_mode": "paper"},
    {"mask_padding": False},
    {"mask_padding": False, "pad_mode": "paper"},
    {"head_hidden_size": 40},
    {"mlp_ratios": (2, 2.5, 3, 4), "mlp_dwconv": (True, False, True, False)},
    {"drop_path_rate": 0.3, "drop_rate": 0.2},
    {"in_chans": 1, "global_pool": "max"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains(options):
    model = tiny(**options).train()
    x = torch.randn(4, model.in_chans, 64, 64)
    F.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    before = model.head.fc.weight.clone()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(before, model.head.fc.weight)


def test_all_parameters_matter_with_several_windows():
    model = randomised(tiny(window_size=2))
    model(torch.randn(2, 3, 96, 96)).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not dead


def test_maps_of_awkward_sizes():
    model = tiny().eval()
    maps = model.forward_intermediates(torch.randn(1, 3, 200, 333), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [(50, 84), (25, 42), (13, 21), (7, 11)]
    for size in ((33, 47), (32, 32), (225, 31)):
        assert model(torch.randn(1, 3, *size)).isfinite().all()


def layer_norm(norm, x):
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)


@pytest.mark.parametrize("mixer", [True, False])
def test_block_adds_positions_then_normalises_before_mixer_and_mlp(mixer):
    block = randomised(Block(8, nn.Conv2d(8, 8, 1) if mixer else None, 2)).double()
    x = 1e-3 * torch.randn(2, 8, 5, 4, dtype=torch.float64)  # small, so that the norms' epsilon counts
    y = x
    if mixer:
        block.cpe.conv.bias.data.mul_(1e-3)
        y = x + F.conv2d(x, block.cpe.conv.weight, block.cpe.conv.bias, padding=1, groups=8)
        y = y + block.mixer(layer_norm(block.norm1, y))
    hidden = F.conv2d(layer_norm(block.norm2, y), block.mlp.fc1.weight, block.mlp.fc1.bias)
    hidden = F.gelu(F.conv2d(hidden, block.mlp.dwconv.weight, block.mlp.dwconv.bias, padding=1, groups=16))
    y = y + F.conv2d(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    torch.testing.assert_close(block(x), y, rtol=1e-6, atol=1e-9)


def test_stochastic_depth_leaves_the_identity():
    block = Block(8, None, drop_path=0.9999).train()
    x = torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    block = Block(8, nn.Conv2d(8, 8, 1), drop_path=0.9999).train()
    torch.testing.assert_close(block(x), block.cpe(x), rtol=0, atol=0)


def test_the_stem_is_three_convolutions_each_behind_a_norm():
    stem = with_statistics(tiny().stem)
    x = torch.randn(1, 3, 13, 18)
    y = F.gelu(batch_norm(stem.bn1, F.conv2d(x, stem.conv1.weight, stem.conv1.bias, 2, 1)))
    y = F.gelu(batch_norm(stem.bn2, F.conv2d(y, stem.conv2.weight, stem.conv2.bias, padding=1, groups=4)))
    y = batch_norm(stem.bn3, F.conv2d(y, stem.conv3.weight, stem.conv3.bias, 2, 1))
    torch.testing.assert_close(stem(x), y)


def test_every_layer_norm_has_epsilon_1e_6():
    assert {m.eps for m in tiny(out_norms=True).modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_stage_norms_are_on_the_main_path():
    model = tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    y = model.stages[0](model.stem(x))
    torch.testing.assert_close(y.mean(1), torch.zeros_like(y[:, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.stages[1:](y), model.forward_features(x))
    stage = randomised(model.stages[1])  # the norm is the last step and the only one
    torch.testing.assert_close(stage(y), layer_norm(stage.norm, stage.blocks(stage.downsample(y))))


def test_drop_path_grows_over_all_blocks():
    model = tiny(drop_path_rate=0.4, depths=(2, 1, 1, 1))
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_initialisation():
    model = Mat(num_classes=100, mixers=("none", "none", "window", "mat"))
    for name, module in model.named_modules():
        if name.endswith("offset_conv"):
            assert not module.weight.any()
        elif name.endswith("offset_dwconv"):  # were it zero, too, neither would get a gradient
            assert module.weight.std() > 0.1
        elif isinstance(module, (nn.Linear, Pointwise)):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    tokens = torch.cat([b.mixer.token.flatten() for b in model.stages[3].blocks])
    assert tokens.std().item() == pytest.approx(0.02, rel=0.15)
    assert model.no_weight_decay() == {f"stages.3.blocks.{i}.mixer.token" for i in range(6)}


def test_initialisation_from_empty_storage():
    model = tiny(device="meta").to_empty(device="cpu")
    for p in [*model.parameters(), *model.buffers()]:
        p.data.fill_(torch.nan if p.is_floating_point() else 0)
    model.init_weights()
    assert model.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixers": ("none", "none", "mat", "swin")}, ("mixers", "'swin'", "'window'")),
        ({"mixers": ("none", "mat")}, ("mixers", "4")),
        ({"patch_embed": "conv"}, ("patch_embed", "'conv'", "'conv3x3'")),
        ({"token_merge": "key"}, ("token_merge", "'key'", "'project'")),
        ({"pad_mode": "same"}, ("pad_mode", "'same'", "'paper'")),
        ({"global_pool": "mean"}, ("global_pool", "'mean'", "'avg'")),
        ({"num_heads": (1, 2, 3, 4)}, ("embed_dims[2]", "16", "num_heads[2]", "3")),
        ({"num_heads": 0}, ("num_heads[2]", "0")),
        ({"embed_dims": (7, 12, 16, 32)}, ("embed_dims[0]", "7", "2")),
        ({"embed_dims": (8, 16)}, ("embed_dims", "4")),
        ({"window_size": 0}, ("window_size", "0")),
        ({"mlp_ratios": (4, 4, 0, 4)}, ("mlp_ratios", "0")),
        ({"offset_range": -1}, ("offset_range", "-1")),
        ({"head_hidden_size": 0}, ("head_hidden_size", "0")),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError) as caught:
        tiny(**options)
    assert all(word in str(caught.value) for word in words)


def test_unknown_option():
    with pytest.raises(TypeError):
        tiny(pos="cpe")


# ---- head ----------------------------------------------------------------------------------------


def test_head_convolves_before_pooling():
    head = randomised(HiddenHead(6, 10, 3))
    x = torch.randn(2, 6, 4, 5)
    hidden = F.gelu(head.bn(head.conv(x)))
    torch.testing.assert_close(head(x), head.fc(hidden.mean((2, 3))))
    torch.testing.assert_close(head(x, pre_logits=True), hidden.mean((2, 3)))
    head.reset(0, "")
    torch.testing.assert_close(head(x), hidden)


def test_new_classifier_keeps_the_hidden_layer():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 64)
    hidden, conv = model.forward_head(model.forward_features(x), pre_logits=True), model.head.conv
    model.head.conv.weight.requires_grad_(False)
    model.reset_classifier(11)
    assert model.head.conv is conv
    assert not conv.weight.requires_grad
    assert model(x).shape == (2, 11)
    assert model.get_classifier().out_features == 11
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), hidden)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), hidden)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 24, 2, 2)
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
    assert not any(module.training for module in model.modules())
    assert tiny(num_classes=0)(x).shape == (2, 24)
    assert tiny(num_classes=0, global_pool="")(x).shape == (2, 24, 2, 2)


def test_pruning_takes_the_hidden_layer_out():
    model = tiny()
    model.prune_intermediate_layers([1])
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 12, 8, 8)
    assert not list(model.head.parameters())


# ---- checkpoints ---------------------------------------------------------------------------------


def token_layout(state_dict):
    """The layout of an implementation on token sequences."""
    linear_layers = ("mixer.qkv.weight", "mixer.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    return {
        name.replace(".cpe.conv.", ".cpe."): value[:, :, 0, 0] if name.endswith(linear_layers) else value
        for name, value in state_dict.items()
    }


def test_own_checkpoints_pass_unchanged():
    model = tiny()
    own = model.state_dict()
    back = checkpoint_filter_fn(dict(reversed(own.items())), model)
    assert back.keys() == own.keys()
    assert all(back[name] is own[name] for name in own)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    ],
    ids=["bare", "model", "state_dict+module"],
)
def test_token_layout_loads(wrap):
    source, target = randomised(tiny()), tiny().eval()
    state_dict = token_layout(source.state_dict())
    assert state_dict["stages.2.blocks.0.mixer.qkv.weight"].ndim == 2
    target.load_state_dict(checkpoint_filter_fn(wrap(state_dict), target))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(target(x), source(x))
