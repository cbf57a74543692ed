"""Attention maps over the image: closed forms, each family's own maps, refusals."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import vitrail  # noqa: F401  (registers our networks)
from vitrail.analysis.attention import attention, rollout
from vitrail.analysis.captured import captured
from vitrail.errors import BadOption, UserError
from vitrail.models.emsnet import ConvAttention


def built(name, side, **options):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3, **options).eval()
    return network, torch.randn(2, 3, side, side)


def weights_of(module, x):
    network = nn.Sequential(module)
    with captured(network) as maps, torch.inference_mode():
        network(x)
    return maps["0"]


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_key_mass_of_3x3_windows_is_fold_over_fold(size):
    module = ConvAttention(8, 2).eval()
    x = torch.randn(2, 8, *size)
    one = weights_of(module, x)
    with torch.inference_mode():
        maps = module.attention_map(x)  # (B, heads, 9, 9, L)
    share = 9 * maps.mean((1, 2))  # (B, 9 keys, L)
    fold = {"output_size": size, "kernel_size": 3, "stride": 2, "padding": 1}
    expected = F.fold(share, **fold) / F.fold(torch.ones_like(share), **fold)
    assert torch.allclose(one.key_mass(all_queries=True), expected[:, 0], atol=1e-6)


def test_cmhsa_shows_key_mass_and_the_kernels_of_its_windows():
    network, images = built("emsnet_xxtiny", 224)
    found = attention(network, images, layer="stages.0.blocks.0.mixer.dynamic.local.attn")
    assert set(found.arrays) == {"key_mass", "centre_kernels"}
    kernels = found.arrays["centre_kernels"].values.reshape(2, 7, 3, 7, 3)
    assert np.allclose(kernels.sum((2, 4)), 1, atol=1e-5)
    assert found.enlarged["key_mass"].shape == found.enlarged["centre_kernels"].shape == (2, 224, 224)
    # a token covers 4 x 4 pixels of a map of stride 4
    assert (found.enlarged["key_mass"][:, 16:32, 32:48] == found.enlarged["key_mass"][:, 16:17, 32:33]).all()


def test_pale_of_a_chosen_token():
    for mixer in ("parallel", "vanilla"):
        network, images = built("pale_tiny", 48, pale_size=3, mixers=mixer, depths=(1, 1, 1, 1))
        found = attention(network, images, layer="stages.0.blocks.0", at=(4 * 5 + 1, 4 * 9))
        assert found.about["tokens_seen"] == [3 * 12 + 3 * 12 - 3 * 3]
        for array in found.arrays.values():
            assert np.allclose(array.values.sum((1, 2)), 1, atol=1e-5)
        assert "63 tokens" in found.summary()
        assert set(found.arrays) == ({"attn.rows", "attn.columns"} if mixer == "parallel" else {"attn.pales"})


def test_a_ladder_blocks_branches_show_their_windows():
    network, images = built("pslt_tiny", 272)
    found = attention(network, images, layer="stages.2.blocks.1", at=(100, 140))
    assert list(found.arrays) == [f"branches.{i}.attn" for i in range(3)]
    windows = []
    for i in range(3):
        rows, cols = np.nonzero(found.arrays[f"branches.{i}.attn"].values[0])
        windows.append((rows.min(), cols.min()))
        assert rows.min() <= 140 // 16 <= rows.max()
        assert cols.min() <= 100 // 16 <= cols.max()
    assert windows == [(7, 0), (3, 3), (4, 4)]


def test_mats_rollout_is_the_product_of_its_maps():
    network, images = built("mat_1", 208, depths=(1, 1, 1, 1))  # stage 3: 13 x 13, four windows with padding
    layer = "stages.2.blocks.0.mixer"
    kept = {}
    handle = network.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.update(x=i[0]))
    with captured(network, [layer]) as maps, torch.inference_mode():
        network(images)
    handle.remove()
    with torch.inference_mode():
        reference = network.get_submodule(layer).attention_maps(kept["x"])
    parts = {part: maps[f"{layer}.{part}"] for part in ("abstraction", "mixing", "fusion")}
    assert torch.allclose(parts["abstraction"].weights[:, :, :, 0].transpose(1, 2), reference["abstraction"], atol=1e-6)
    assert torch.allclose(parts["mixing"].weights[:, 0], reference["mixing"], atol=1e-6)
    assert torch.allclose(parts["fusion"].weights[:, 0], reference["fusion"], atol=1e-6)
    paths = rollout(parts)
    expected = torch.zeros(2, 4, 14, 14)
    read = reference["abstraction"].mean(1).unflatten(2, (7, 7))
    for window in range(4):
        row, col = 7 * (window // 2), 7 * (window % 2)
        expected[:, window, row : row + 7, col : col + 7] = read[:, window]
    expected = reference["fusion"].mean(1) @ reference["mixing"].mean(1) @ expected[:, :, :13, :13].flatten(2)
    assert torch.allclose(paths, expected, atol=1e-6)
    assert torch.allclose(paths.sum(2), torch.ones(2, 169), atol=1e-5)
    assert torch.allclose(paths.mean(1).sum(1), torch.ones(2), atol=1e-5)

    found = attention(network, images, layer=layer)
    assert set(found.arrays) == {"local", "abstraction", "mixing", "fusion", "rollout", "norm"}
    assert np.allclose(found.arrays["rollout"].values.mean((1, 2)), 1, atol=1e-5)
    assert (found.arrays["norm"].values.max((1, 2)) == 1).all()
    full = found.arrays["abstraction"].values[:, :7, :7]  # the first window has no padding
    assert np.allclose(full, 49 * read[:, 0].numpy(), atol=1e-5)
    asked = attention(network, images, layer=layer, at=(20, 3))
    assert np.allclose(asked.arrays["rollout"].values, paths[:, 1].reshape(2, 13, 13).numpy(), atol=1e-6)
    assert asked.arrays["mixing"].values.shape == (2, 2, 2)


def test_partialformer_shows_selection_and_the_single_query():
    network, images = built("partialformer_b0", 128)
    layer = "stages.1.blocks.0.attn"
    found = attention(network, images, layer=layer)
    assert set(found.arrays) == {"score", "foreground", "query"}
    foreground, score = found.arrays["foreground"].values, found.arrays["score"].values
    assert (foreground.sum((1, 2)) == 16 * 16 // 16).all()
    for one, chosen in zip(score, foreground, strict=True):
        assert one[chosen == 1].min() >= one[chosen == 0].max()
    query = found.arrays["query"].values
    assert np.allclose(query.sum((1, 2)), 1, atol=1e-5)
    assert query[foreground == 1].max() == 0
    row, col = np.argwhere(foreground[0] == 0)[0]
    background = attention(network, images, layer=layer, at=(8 * int(col), 8 * int(row))).arrays["token"].values
    assert np.array_equal(background[0], query[0])
    row, col = np.argwhere(foreground[0] == 1)[0]
    token = attention(network, images, layer=layer, at=(8 * int(col), 8 * int(row))).arrays["token"].values
    assert ((token[0] != 0) <= (foreground[0] == 1)).all()


def test_a_deits_token_drops_the_class_tokens_column():
    network, images = built("deit_tiny_patch16_224", 64, img_size=64)
    found = attention(network, images, layer="blocks.11", at=(40, 20))
    with captured(network) as maps, torch.inference_mode():
        network(images)
    row = maps["blocks.11.attn"].weights[:, 0, :, 1 + 4 * 1 + 2, 1:].mean(1)
    expected = (row / row.sum(1, keepdim=True)).reshape(2, 4, 4)
    assert np.allclose(found.arrays["attn"].values, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("pslt_tiny", {}, 128),
        ("pale_tiny", {"mixers": "axial"}, 64),
        ("emsnet_xxtiny", {}, 128),
        ("mat_1", {}, 128),
        ("lvt", {}, 96),
        ("partialformer_b0", {}, 128),
        ("swin_tiny_patch4_window7_224", {"img_size": 128, "window_size": 4}, 128),
        ("pvt_v2_b1", {}, 96),
        ("mobilevit_s", {}, 128),
        ("twins_svt_small", {"img_size": 96}, 96),
    ],
)
def test_every_family_has_a_default_layer_maps_and_a_plot(name, options, side):
    network, images = built(name, side, **options)
    network.train()
    for at in (None, (side // 2, side // 3)):
        found = attention(network, images, at=at)
        for key, array in found.arrays.items():
            assert array.axes == ("image", "y", "x")
            assert found.enlarged[key].shape == (2, side, side)
            assert 0 <= found.enlarged[key].min() <= found.enlarged[key].max() <= 1
        assert found.plot().mode == "RGB"
        assert found.to_dict()["about"]["layer"] == found.about["layer"]
    assert network.training


def test_rasas_passes_and_csas_windows_have_maps():
    network, images = built("lvt_r3", 96)
    ends = ("", ".dilation_1", ".dilation_3", ".dilation_5")
    found = attention(network, images, layer="stages.1.blocks.0", at=(9, 9))
    assert set(found.arrays) == {f"mixer.pass_{i}{end}" for i in (1, 2, 3) for end in ends}
    csa = attention(network, images, layer="stages.0.blocks.0.mixer", at=(21, 20))
    assert csa.about["tokens_seen"] == [25]
    classes = attention(network, images, layer="post.blocks.1", at=(3, 3))
    assert classes.arrays["attn"].values.shape == (2, 3, 3)


def test_what_has_no_meaning_is_refused():
    network, images = built("emsnet_xxtiny", 64)
    with pytest.raises(UserError, match=r"at=\(64, 0\) is outside"):
        attention(network, images, at=(64, 0))
    with pytest.raises(UserError, match="no attention there"):
        attention(network, images, layer="stem")
    with pytest.raises(UserError, match=r"No attention of .* can be captured"):
        attention(timm.create_model("resnet18"), images)
    network, _ = built("mobilevit_s", 64)
    with pytest.raises(UserError, match="is not known"):
        attention(network, torch.randn(1, 3, 64, 128))


def test_the_default_layer_is_the_last_block_with_more_than_one_window():
    for name, side, expected in (("mat_1", 128, "stages.2.blocks.5"), ("deit_tiny_patch16_224", 128, "blocks.11")):
        network, images = built(name, side, **({"img_size": side} if "deit" in name else {}))
        assert attention(network, images).about["layer"] == expected


def test_several_tokens_beside_each_other():
    network, images = built("pale_tiny", 48, pale_size=3, mixers="parallel", depths=(1, 1, 1, 1))
    points = [(21, 36), (1, 1), (40, 2), (21, 36)]
    layer = "stages.0.blocks.0"
    found = attention(network, images, layer=layer, at=points[:3])
    names = [f"attn.{part} ({x}, {y})" for part in ("rows", "columns") for x, y in points[:3]]
    assert list(found.arrays) == names
    assert list(found.marks) == names
    for name, (x, y) in zip(names, points[:3] * 2, strict=True):
        assert found.marks[name] == (x, y)
        alone = attention(network, images, layer=layer, at=(x, y)).arrays[name.split(" ")[0]].values
        np.testing.assert_array_equal(found.arrays[name].values, alone)
    assert found.about["at"] == [list(point) for point in points[:3]]
    assert found.about["tokens_seen"] == [63, 63, 63]
    assert "the tokens at 3 pixels of the input attend to; they see 63, 63 and 63 tokens" in found.summary()
    assert found.plot().width > attention(network, images, layer=layer, at=(1, 1)).plot().width
    assert found.about["class_names"] is not None
    with pytest.raises(BadOption, match="outside the input"):
        attention(network, images, layer=layer, at=[(1, 1), (48, 1)])


def test_what_no_token_is_asked_for_is_shown_once():
    network, images = built("mat_1", 64, depths=(1, 1, 1, 1))
    found = attention(network, images, layer="stages.2.blocks.0.mixer", at=[(1, 1), (50, 50)])
    assert [name for name in found.arrays if name.startswith("norm")] == ["norm"]
    assert [name for name in found.arrays if name.startswith("rollout")] == ["rollout (1, 1)", "rollout (50, 50)"]
    network, images = built("partialformer_b0", 128)
    found = attention(network, images, layer="stages.1.blocks.0.attn", at=[(1, 1), (50, 50)])
    assert list(found.arrays) == ["score", "foreground", "query", "token (1, 1)", "token (50, 50)"]
    assert list(found.outlines) == ["score"]
    foreground = found.arrays["foreground"].values == 1
    assert np.array_equal(found.outlines["score"][:, ::8, ::8], foreground)
