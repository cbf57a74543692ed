import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_helpers import asa_oracle
from torch import nn
from torch.nn import functional as F

from vitrail.layers.class_attention import ClassAttention, ClassAttentionBlock, ClassAttentionPost
from vitrail.layers.mix_token import draw_box, mix_tokens
from vitrail.models.lvt import CSA, LVT, RASA, Block, SpatialReduction, checkpoint_filter_fn

NARROW = {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 4), "num_classes": 5}


def count(module):
    return sum(p.numel() for p in module.parameters())


def narrow(**options):
    return LVT(**{**NARROW, **options})


# ---- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoder", "total"),
    [(n, 3_429_092, 5_521_844) for n in ("lvt", "lvt_r1", "lvt_r3", "lvt_r4")]
    + [("lvt_scaled", 24_846_118, 32_175_350)],
)
def test_encoder_and_total_parameters(name, encoder, total):
    model = timm.create_model(name, device="meta")
    assert count(model.stem) + count(model.stages) == encoder
    assert count(model) == total


def test_parameters_of_every_part():
    model = timm.create_model("lvt", device="meta")
    stages = [count(stage) for stage in model.stages]
    stages[0] += count(model.stem)
    assert stages == [179_396, 345_536, 931_680, 1_972_480]
    assert count(model.stages[0].blocks[0].mixer) == 51_554
    for i, s in ((1, 4), (2, 2), (3, 1)):
        mixer = model.stages[i].blocks[0].mixer
        c = mixer.q.in_channels
        assert count(mixer) == 4 * c * c + c + 9 * c + (s * s * c * c + c + 2 * c if s > 1 else 0)
    assert count(model.post.blocks) == 1_577_984
    assert count(model.head) == count(model.aux_head) == 257_000
    assert count(model.post.norm) == 512
    assert model.post.cls_token.numel() == 256


# ---- CSA ------------------------------------------------------------------------------------------------------------


def csa_oracle(x, mixer, value_weights):
    """Window by window, tap by tap, from the definition; x is (B, H, W, C), value_weights nine (C, C) matrices."""
    batch, height, width, dim = x.shape
    heads, d = mixer.num_heads, dim // mixer.num_heads
    out = torch.zeros_like(x)

    def inside(r, c):
        return 0 <= r < height and 0 <= c < width

    for b in range(batch):
        for i in range(-(-height // 2)):
            for j in range(-(-width // 2)):
                pooled = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1))
                logits = mixer.logits.weight[:, :, 0, 0] @ pooled + mixer.logits.bias
                attn = (logits.view(heads, 9, 9) * d**-0.5).softmax(-1)
                where = [(2 * i + a - 1, 2 * j + c - 1) for a in range(3) for c in range(3)]
                taps = [x[b, r, c] if inside(r, c) else torch.zeros(dim).to(x) for r, c in where]
                values = torch.stack([w @ tap for w, tap in zip(value_weights, taps, strict=True)]).view(9, heads, d)
                sums = torch.einsum("hoi,ihd->ohd", attn, values).reshape(9, dim)
                for (r, c), total in zip(where, sums, strict=True):
                    if inside(r, c):
                        out[b, r, c] += total
    return out @ mixer.proj.weight[:, :, 0, 0].T + mixer.proj.bias


def random_(module):
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.5)
    return module.double()


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7), heads=st.sampled_from([1, 2, 4]))
def test_csa_is_its_definition(height, width, heads):
    mixer = random_(CSA(8, heads))
    x = torch.randn(2, 8, height, width).double()
    with torch.no_grad():
        expected = csa_oracle(x.permute(0, 2, 3, 1), mixer, mixer.value.weight)
        torch.testing.assert_close(mixer(x).permute(0, 2, 3, 1), expected)


@settings(max_examples=8, deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7))
def test_outlook_is_csa_with_one_value_matrix(height, width):
    outlook, csa = random_(CSA(8, 2, shared_value=True)), random_(CSA(8, 2))
    csa.logits, csa.proj = outlook.logits, outlook.proj
    with torch.no_grad():
        csa.value.weight.copy_(outlook.value.weight[:, :, 0, 0].expand(9, -1, -1))
        x = torch.randn(2, 8, height, width).double()
        torch.testing.assert_close(outlook(x), csa(x))


def test_csa_contains_the_convolution():
    # Table 1: equal weights, and of the nine outputs of a window only the centre's
    mixer = random_(CSA(8, 2))
    with torch.no_grad():
        mixer.logits.weight.zero_()
        mixer.logits.bias.zero_()
        mixer.proj.weight.copy_(torch.eye(8)[:, :, None, None])
        mixer.proj.bias.zero_()
        x = torch.randn(2, 8, 9, 12).double()
        kernel = mixer.value.weight.view(3, 3, 8, 8).permute(2, 3, 0, 1)
        convolution = F.conv2d(x, kernel, stride=2, padding=1)
        # (even, even) pixels receive the centre's output of one window only
        torch.testing.assert_close(9 * mixer(x)[:, :, ::2, ::2], convolution)


# ---- RASA -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    reduction=st.sampled_from([0, 1, 2, 4]),
    pad=st.booleans(),
    rates=st.sampled_from([None, (1,), (1, 3, 5), [2, 3]]),
    bias=st.booleans(),
)
def test_one_pass_of_rasa_is_its_definition(height, width, reduction, pad, rates, bias):
    mixer = random_(RASA(8, 2, reduction, pad, rates, recursions=1, qkv_bias=bias))
    x = torch.randn(2, 8, height, width).double()
    with torch.no_grad():
        expected = asa_oracle(x.permute(0, 2, 3, 1), mixer, rates, reduction, pad)
        torch.testing.assert_close(mixer(x).permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize("output_act", [True, False])
@pytest.mark.parametrize("state", ["accumulate", "previous"])
@pytest.mark.parametrize("recursions", [1, 2, 3, 4])
def test_the_recursion(recursions, state, output_act):
    mixer = random_(RASA(8, 2, 2, recursions=recursions, state=state, output_act=output_act))
    x = torch.randn(2, 8, 5, 6).double()

    def one_pass(u):
        y = asa_oracle(u.permute(0, 2, 3, 1), mixer, (1, 3, 5), 2, False).permute(0, 3, 1, 2)
        return F.silu(y) if output_act and recursions > 1 else y

    with torch.no_grad():
        inputs, outputs = [x], [one_pass(x)]
        while len(outputs) < recursions:
            before = inputs[-1] if state == "accumulate" else [x, *outputs][-2]
            inputs.append(before + outputs[-1])
            outputs.append(one_pass(inputs[-1]))
        torch.testing.assert_close(mixer(x), outputs[-1])


def test_the_two_states_differ_from_three_recursions_on():
    x = torch.randn(1, 8, 4, 4).double()
    for recursions in (1, 2, 3, 4):
        a = random_(RASA(8, 2, recursions=recursions))
        b = RASA(8, 2, recursions=recursions, state="previous").double()
        b.load_state_dict(a.state_dict())
        assert torch.allclose(a(x), b(x)) == (recursions <= 2)


def test_rows_beyond_the_last_full_cell_are_no_keys_unless_padded():
    x = torch.randn(1, 8, 6, 9)
    other = x.clone()
    other[:, :, 4:] += 1
    other[..., 8:] += 1
    floor, pad = SpatialReduction(8, 4), SpatialReduction(8, 4, pad=True)
    assert floor(x).shape == (1, 8, 1, 2)
    assert torch.equal(floor(x), floor(other))
    assert pad(x).shape == (1, 8, 2, 3)
    assert not torch.equal(pad(x), pad(other))
    assert floor(x[..., :3, :3]).shape == pad(x[..., :3, :3]).shape == (1, 8, 1, 1)


# ---- block ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dwconv", [False, True])
def test_block_normalises_before_the_mixer_and_before_the_mlp(dwconv):
    block = random_(Block(nn.Conv2d(8, 8, 1), 8, 2, dwconv))
    x = 0.01 * torch.randn(2, 8, 5, 4).double()  # small, so that the norms' epsilon counts

    def normed(norm, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), (8,), norm.weight, norm.bias, 1e-5).permute(0, 3, 1, 2)

    y = x + block.mixer(normed(block.norm1, x))
    hidden = F.conv2d(normed(block.norm2, y), block.mlp.fc1.weight, block.mlp.fc1.bias)
    if dwconv:
        hidden = F.conv2d(hidden, block.mlp.dwconv.weight, block.mlp.dwconv.bias, padding=1, groups=16)
    y = y + F.conv2d(F.gelu(hidden), block.mlp.fc2.weight, block.mlp.fc2.bias)
    torch.testing.assert_close(block(x), y)


def test_stochastic_depth_leaves_the_identity():
    block = Block(nn.Conv2d(8, 8, 1), 8, 2, False, drop_path=0.9999).train()
    x = torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_reduced_keys_are_normalised():
    reduce = random_(SpatialReduction(8, 2))
    x = 0.01 * torch.randn(1, 8, 4, 6).double()
    tokens = F.conv2d(x, reduce.conv.weight, reduce.conv.bias, stride=2).permute(0, 2, 3, 1)
    tokens = F.layer_norm(tokens, (8,), reduce.norm.weight, reduce.norm.bias, 1e-5)
    torch.testing.assert_close(reduce(x).permute(0, 2, 3, 1), tokens)


# ---- classifier -----------------------------------------------------------------------------------------------------


def test_class_attention_reads_all_tokens_and_asks_with_the_first():
    layer = random_(ClassAttention(8, 2, qkv_bias=True))
    x = torch.randn(2, 6, 8).double()
    full = F.linear(x, torch.cat([layer.q.weight, layer.kv.weight]), torch.cat([layer.q.bias, layer.kv.bias]))
    q, k, v = full.view(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
    everyone = ((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 8)
    torch.testing.assert_close(layer(x), layer.proj(everyone)[:, :1])


def test_class_attention_block_updates_the_first_token_only():
    block = random_(ClassAttentionBlock(8, 2, 3.0))
    x = 0.01 * torch.randn(2, 6, 8).double()  # small, so that the norms' epsilon counts

    def normed(norm, x):
        return F.layer_norm(x, (8,), norm.weight, norm.bias, 1e-5)

    token = x[:, :1] + block.attn(normed(block.norm1, x))
    token = token + block.mlp.fc2(F.gelu(block.mlp.fc1(normed(block.norm2, token))))
    torch.testing.assert_close(block(x), torch.cat([token, x[:, 1:]], 1))


def test_map_tokens_pass_class_attention_unchanged_but_for_the_norm():
    post = random_(ClassAttentionPost(8, 2))
    x = torch.randn(2, 8, 2, 3).double()
    token, tokens = post(x)
    assert token.shape == (2, 8)
    x = x.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, F.layer_norm(x, (8,), post.norm.weight, post.norm.bias, 1e-5))
    x = post.blocks(torch.cat([post.cls_token.expand(2, 1, 8), x], 1))
    torch.testing.assert_close(token, F.layer_norm(x[:, 0], (8,), post.norm.weight, post.norm.bias, 1e-5))


def test_logits_are_the_heads_plus_half_the_largest_auxiliary_ones():
    model = narrow().eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        classes, tokens, _ = model.forward_token_labeling(x, (0, 0, 0, 0))
        assert tokens.shape == (2, 4, 5)
        for mode in (False, True):
            torch.testing.assert_close(model.train(mode)(x), classes + 0.5 * tokens.max(1).values)
        model.aux_logit_weight = 0.0
        torch.testing.assert_close(model(x), classes)


def test_feature_widths_without_classifier():
    x = torch.randn(2, 3, 64, 96)
    model = narrow(num_classes=0).eval()
    token, _ = model.post(model.forward_features(x))
    torch.testing.assert_close(model(x), token)
    assert model.aux_head is None
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert narrow(num_classes=0, global_pool="")(x).shape == (2, 32, 2, 3)


def test_both_heads_are_replaced_together():
    model = narrow()
    assert model.get_classifier() == (model.head, model.aux_head)
    model.reset_classifier(7)
    assert [head.out_features for head in model.get_classifier()] == [7, 7]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert narrow(token_labeling=False).get_classifier().out_features == 5


@pytest.mark.parametrize(("indices", "prune_head"), [([3], True), ([1], True), ([1], False)])
def test_pruning_drops_class_attention(indices, prune_head):
    model = narrow()
    model.prune_intermediate_layers(indices, prune_head=prune_head)
    assert not [name for name, _ in model.named_parameters() if name.startswith(("post", "norm"))]


def test_pruning_may_keep_the_whole_classifier():
    model = narrow().eval()
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    model.prune_intermediate_layers([3], prune_head=False)
    torch.testing.assert_close(model(x), before)


def test_weight_decay_spares_the_class_token():
    assert narrow().no_weight_decay() == {"post.cls_token"}
    assert narrow(class_attention=False).no_weight_decay() == set()


# ---- MixToken -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), lam=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_box_lies_in_the_grid_and_covers_what_was_asked_at_most(height, width, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    top, left, bottom, right = box = draw_box(height, width, lam, generator)
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - lam) * height * width + 1e-6
    assert box == draw_box(height, width, lam, generator.manual_seed(seed))


def test_a_box_away_from_the_border_has_the_sides_asked_for():
    boxes = [draw_box(100, 40, 0.75, torch.Generator().manual_seed(i)) for i in range(50)]
    assert max(b - t for t, _, b, _ in boxes) == 50
    assert max(r - left for _, left, _, r in boxes) == 20
    with pytest.raises(ValueError, match=r"lam=1\.5"):
        draw_box(7, 7, 1.5)


def test_mixing_takes_the_box_from_the_reversed_batch_and_undoes_itself():
    x = torch.randn(3, 2, 14, 14)
    mixed = mix_tokens(x, (1, 2, 4, 6), scale=2)
    expected = x.clone()
    expected[:, :, 2:8, 4:12] = x.flip(0)[:, :, 2:8, 4:12]
    assert torch.equal(mixed, expected)
    assert torch.equal(mix_tokens(mixed, (1, 2, 4, 6), scale=2), x)
    assert torch.equal(mix_tokens(x, (0, 0, 0, 0)), x)


def test_mix_token_changes_training_only():
    model = narrow(mix_token=True)
    x = torch.randn(4, 3, 128, 96)
    classes, tokens, box = model(x)
    assert classes.shape == (4, 5)
    assert tokens.shape == (4, 12, 5)
    again = model.forward_token_labeling(x, box)
    torch.testing.assert_close(again[:2], (classes, tokens))
    (classes.mean() + tokens.mean()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(x).shape == (4, 5)


def test_a_box_of_the_whole_grid_exchanges_the_samples():
    model = narrow().eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        classes, tokens, _ = model.forward_token_labeling(x, (0, 0, 0, 0))
        mixed_classes, mixed_tokens, _ = model.forward_token_labeling(x, (0, 0, 2, 2))
    torch.testing.assert_close(mixed_classes, classes.flip(0))
    torch.testing.assert_close(mixed_tokens, tokens)


def test_samples_are_mixed_behind_the_stem_in_boxes_of_the_last_grid():
    model = narrow().eval()
    x, box = torch.randn(2, 3, 100, 132), (1, 2, 4, 5)  # 25 x 33 positions behind the stem, 4 x 5 on the last map
    with torch.no_grad():
        mixed = model.stem(x)
        mixed[:, :, 8:32, 16:40] = mixed.flip(0)[:, :, 8:32, 16:40]
        pooled, tokens = model.read_out(model.stages(mixed))
        tokens = model.aux_head(tokens).unflatten(1, (4, 5))
        tokens[:, 1:4, 2:5] = tokens.flip(0)[:, 1:4, 2:5]
        classes, found, _ = model.forward_token_labeling(x, box)
    torch.testing.assert_close(classes, model.head(pooled))
    torch.testing.assert_close(found, tokens.flatten(1, 2))


def test_token_labelling_needs_its_head():
    with pytest.raises(ValueError, match="token_labeling=True"):
        narrow(token_labeling=False).forward_token_labeling(torch.randn(1, 3, 32, 32))


# ---- options --------------------------------------------------------------------------------------------------------

#: option, parameters beside the default's, of the full network
OPTIONS = [
    ({"rasa_state": "previous", "rasa_recursions": 3}, 0),
    ({"rasa_output_act": False}, 0),
    ({"atrous_rates": ()}, -2 * 9 * (64 + 160 + 256)),
    ({"atrous_rates": [1, 2]}, 0),
    ({"mixers": ("outlook", "sa", "sa", "sa")}, -2 * (8 * 64 * 64 + 9 * (64 + 160 + 256))),
    ({"mixers": ("csa", "sa", "sa", "sa")}, -2 * 9 * (64 + 160 + 256)),
    ({"mixers": "sa", "sr_ratios": (8, 4, 2, 1)}, None),
    ({"sr_ratios": (0, 1, 1, 1)}, -2 * (16 * 64**2 + 3 * 64 + 4 * 160**2 + 3 * 160)),
    ({"sr_pad": True}, 0),
    ({"mlp_dwconv": False}, -2 * 10 * (512 + 640 + 1024)),
    ({"mlp_dwconv": True}, 2 * 10 * 256),
    ({"qkv_bias": True}, 2 * 3 * (64 + 160 + 256) + 2 * 3 * 256),
    ({"qkv_bias": True, "mixers": ("outlook", "rasa", "rasa", "rasa")}, None),
    ({"class_attention": False, "token_labeling": False}, 3_686_604 - 5_521_844),
    ({"class_attention": False}, -1_577_984 - 256),
    ({"class_attention": False, "global_pool": "avgmax"}, -1_577_984 - 256),
    ({"token_labeling": False}, -257_000),
    ({"aux_logit_weight": 0.0}, 0),
    ({"drop_rate": 0.1, "drop_path_rate": 0.1}, 0),
]


@pytest.mark.parametrize(("options", "extra"), OPTIONS, ids=lambda o: str(o)[:60])
def test_every_option_has_its_parameters_and_trains(options, extra):
    if extra is not None:
        assert count(timm.create_model("lvt", device="meta", **options)) == 5_521_844 + extra
    model = narrow(**options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    logits = model(torch.randn(2, 3, 64, 64))
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert model.eval()(torch.randn(1, 3, 47, 61)).isfinite().all()


def test_no_atrous_query_may_be_written_as_none():
    assert count(narrow(atrous_rates=None)) == count(narrow(atrous_rates=()))


def test_output_norms_are_on_the_pyramid():
    model = timm.create_model("lvt", features_only=True, out_norms=True, **{**NARROW, "num_classes": 0})
    assert count(model) == count(timm.create_model("lvt", features_only=True, **NARROW)) + 2 * (16 + 16 + 32 + 32)
    for fmap in model(torch.randn(1, 3, 64, 64)):
        torch.testing.assert_close(fmap.mean(1), torch.zeros_like(fmap.mean(1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": ("rasa", "rasa", "rasa", "rasa")}, r"mixers\[0\]='rasa'.*'outlook'"),
        ({"mixers": ("csa", "csa", "rasa", "rasa")}, r"mixers\[1\]='csa'.*'sa'"),
        ({"mixers": ("csa", "rasa")}, "mixers.*2 entries"),
        ({"rasa_state": "sum"}, "rasa_state='sum'.*'previous'"),
        ({"rasa_recursions": 0}, "rasa_recursions=0"),
        ({"atrous_rates": (0, 1)}, r"atrous_rates=\(0, 1\)"),
        ({"sr_ratios": (0, -1, 2, 1)}, "sr_ratios"),
        ({"num_heads": (2, 2, 3, 4)}, r"embed_dims\[2\]=32.*num_heads\[2\]"),
        ({"mix_token": True, "token_labeling": False}, "mix_token=True"),
        ({"global_pool": "max"}, "global_pool.*'max'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        narrow(**options)


def test_drop_path_rises_linearly_over_all_blocks_and_spares_class_attention():
    model = timm.create_model("lvt", drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_initialisation():
    model = timm.create_model("lvt")
    csa, rasa = model.stages[0].blocks[0], model.stages[3].blocks[0]

    def std(tensor):
        return tensor.detach().std().item()

    for layer in (
        csa.mixer.logits,
        csa.mixer.proj,
        csa.mlp.fc1,
        rasa.mixer.q,
        rasa.mixer.kv,
        model.head,
        model.aux_head,
    ):
        assert std(layer.weight) == pytest.approx(0.02, rel=0.05)
        assert layer.bias is None or not layer.bias.any()
    for layer in (model.post.blocks[1].attn.kv, model.post.blocks[0].mlp.fc2):
        assert std(layer.weight) == pytest.approx(0.02, rel=0.05)
    assert std(model.post.cls_token) == pytest.approx(0.02, rel=0.2)
    assert std(csa.mixer.value.weight) == pytest.approx(0.0589, rel=0.02)
    assert std(model.stem.conv1.weight) == pytest.approx((2 / (49 * 64)) ** 0.5, rel=0.05)
    assert std(model.stages[3].downsample.conv1.weight) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert std(model.stages[1].blocks[0].mixer.sr.conv.weight) == pytest.approx((2 / (16 * 64)) ** 0.5, rel=0.02)
    kernel = rasa.mixer.atrous.weight.detach()
    assert 0.79 < kernel.abs().max() <= 0.8165
    assert std(kernel) == pytest.approx(0.8165 / 3**0.5, rel=0.05)
    # the MLPs with a depthwise convolution keep the framework's uniform initialisation, biases too
    for layer, fan_in in ((rasa.mlp.fc1, 256), (rasa.mlp.fc2, 1024), (rasa.mlp.dwconv, 9)):
        assert std(layer.weight) == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)
        assert layer.bias.any()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert all(m.eps == 1e-5 and (m.weight == 1).all() and not m.bias.any() for m in norms)


def test_our_own_checkpoint_passes_unchanged():
    model = narrow()
    state = model.state_dict()
    for wrapped in (state, {"state_dict": state}, {"model": {f"module.{k}": v for k, v in state.items()}}):
        passed = checkpoint_filter_fn(wrapped, model)
        assert list(passed) == list(state)
        assert all(passed[k] is state[k] for k in state)
