"""What VOLO does not share with LVT; its outputs are compared with the authors' in tests/parity."""

import pytest
import timm
import torch
from torch.nn import functional as F

from vitrail.models.volo import VOLO, PatchMerging, VoloStem, checkpoint_filter_fn, resized

NARROW = {"embed_dims": (16, 32, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "num_classes": 5}


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "encoder"), [("volo_d0", 2_721_516), ("volo_d0_csa", 2_868_972), ("volo_d0_csa_rasa", 2_879_340)]
)
def test_parameters_of_the_parts(name, encoder):
    model = timm.create_model(name, device="meta")
    positions = model.stages[1].downsample.pos_embed.numel()
    assert positions == 37_632
    assert count(model.stem) + count(model.stages) - positions == encoder


def test_positions_are_resized_and_left_alone_on_their_own_grid():
    positions = torch.randn(1, 4, 14, 14)
    assert resized(positions, 14, 14) is positions
    wide = resized(positions, 14, 28)
    assert wide.shape == (1, 4, 14, 28)

    def cubic(t):  # Keys' kernel with a = -0.75, at distance t
        return 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)

    for column in range(6, 20):  # its centre on the old grid, away from the borders
        at = (column + 0.5) / 2 - 0.5
        near = [int(at) + i for i in range(-1, 3)]
        wanted = sum(cubic(abs(at - x)) * positions[..., x] for x in near)
        torch.testing.assert_close(wide[..., column], wanted, rtol=1e-4, atol=1e-5)


def test_positions_are_added_behind_the_merging():
    merge = PatchMerging(4, 6)
    torch.nn.init.normal_(merge.pos_embed)
    x = torch.randn(2, 4, 28, 28)
    expected = F.conv2d(x, merge.conv1.weight, merge.conv1.bias, stride=2) + merge.pos_embed
    torch.testing.assert_close(merge(x), expected)
    wide = torch.randn(2, 4, 28, 56)
    expected = F.conv2d(wide, merge.conv1.weight, merge.conv1.bias, stride=2) + resized(merge.pos_embed, 14, 28)
    torch.testing.assert_close(merge(wide), expected)


def test_the_stem_is_three_convolutions_and_patches_of_them():
    stem = VoloStem(3, 8).double().eval()
    with torch.no_grad():
        for p in (*stem.parameters(), *stem.buffers()):
            if p.is_floating_point():
                p.uniform_(0.1, 0.5)
    x = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    y = x
    for layer, padding, stride in ((stem.conv1, 3, 2), (stem.conv2, 1, 1), (stem.conv3, 1, 1)):
        norm = layer.norm
        y = F.conv2d(y, layer.conv.weight, None, stride, padding)
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5).relu()
    torch.testing.assert_close(stem(x), F.conv2d(y, stem.proj.weight, stem.proj.bias, 4))


@pytest.mark.parametrize("size", [(33, 47), (64, 50), (32, 32)])
def test_images_are_padded_to_multiples_of_16(size):
    model = VOLO(**NARROW).eval()
    x = torch.randn(2, 3, *size)
    padded = F.pad(x, (0, -size[1] % 16, 0, -size[0] % 16))
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(padded), rtol=0, atol=0)


def test_drop_path_spares_the_first_stage():
    model = timm.create_model("volo_d0", drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.0, *(0.1 * i for i in range(2, 8))])


def test_positions_and_class_token_are_spared_weight_decay():
    spared = timm.create_model("volo_d0").no_weight_decay()
    assert spared == {"stages.1.downsample.pos_embed", "post.cls_token"}


def test_mixed_tokens_come_back_to_their_samples():
    model = VOLO(**NARROW, mix_token=True).train()
    x = torch.randn(2, 3, 64, 64)
    _, tokens, box = model.forward_token_labeling(x, (0, 0, 4, 4))  # the whole grid: the samples change places
    _, plain, _ = model.forward_token_labeling(x.flip(0), (0, 0, 0, 0))
    assert box == (0, 0, 4, 4)
    assert tokens.shape == (2, 16, 5)
    torch.testing.assert_close(tokens, plain.flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dims": (16, 32, 48, 32)}, "embed_dims"),
        ({"mixers": ("rasa", "sa", "sa", "sa")}, r"mixers\[0\]='rasa'"),
        ({"mixers": ("sa", "csa", "sa", "sa")}, r"mixers\[1\]='csa'"),
        ({"rasa_state": "both"}, "rasa_state='both'"),
        ({"num_heads": (3, 2, 2, 2)}, r"num_heads\[0\]"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VOLO(**{**NARROW, **options})


@pytest.mark.parametrize("mixers", [("outlook", "sa", "sa", "sa"), ("csa", "sa", "rasa", "rasa"), "sa"])
def test_every_mixer_trains(mixers):
    model = VOLO(**{**NARROW, "mixers": mixers})
    model(torch.randn(2, 3, 48, 40)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_authors_fused_projection_holds_queries_then_keys_then_values():
    fused = torch.randn(96, 32)
    passed = checkpoint_filter_fn({"network.2.0.attn.qkv.weight": fused}, VOLO(**NARROW))
    assert list(passed) == ["stages.1.blocks.0.mixer.q.weight", "stages.1.blocks.0.mixer.kv.weight"]
    assert torch.equal(torch.cat(list(passed.values())), fused[:, :, None, None])


def test_our_own_checkpoint_passes_unchanged():
    state = VOLO(**NARROW).state_dict()
    passed = checkpoint_filter_fn({"state_dict": {f"module.{k}": v for k, v in state.items()}}, VOLO(**NARROW))
    assert list(passed) == list(state)
