"""Similarity of attention between queries and heads, its baseline, and the agreement of selections."""

import numpy as np
import pytest
import timm
import torch

import vitrail  # noqa: F401  (registers our networks)
from vitrail.analysis.attention_weights import AttentionWeights
from vitrail.analysis.captured import captured
from vitrail.analysis.similarity import _kinds, compared, mean_cosine, similarity
from vitrail.errors import UserError

PARTS = ("unmixed", "softmax", "mixed", "query")


def built(name, side, **options):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3, **options).eval()
    return network, torch.randn(2, 3, side, side)


def pairs_mean(rows):
    """Mean cosine over pairs of different rows, pair by pair."""
    unit = rows / rows.norm(dim=-1, keepdim=True)
    found = [float(unit[i] @ unit[j]) for i in range(len(unit)) for j in range(len(unit)) if i != j]
    return sum(found) / len(found)


def test_the_closed_form_is_the_mean_cosine_of_pairs():
    rows = torch.randn(3, 7, 11, dtype=torch.float64)
    real = torch.rand(3, 7) < 0.7
    real[:, :2] = True
    assert torch.allclose(mean_cosine(rows), torch.tensor([pairs_mean(one) for one in rows]).double(), atol=1e-12)
    expected = torch.tensor([pairs_mean(one[keep]) for one, keep in zip(rows, real, strict=True)]).double()
    assert torch.allclose(mean_cosine(rows, real), expected, atol=1e-12)
    assert mean_cosine(rows[:, :1]).isnan().all()
    same = torch.rand(1, 5).expand(4, 5)
    assert mean_cosine(same).item() == pytest.approx(1)
    assert mean_cosine(torch.eye(4)).item() == pytest.approx(0)


def test_shuffling_takes_what_rows_have_in_common():
    generator = torch.Generator().manual_seed(0)
    weights = (2 * torch.randn(1, 1, 2, 1, 50, generator=generator)).softmax(-1).expand(-1, -1, -1, 30, -1)
    places = torch.arange(50).reshape(1, 1, -1)
    own, shuffled, _ = compared(AttentionWeights(weights, None, None, places), "queries", generator)
    assert own == pytest.approx(1)
    assert shuffled < 0.5


def test_deit_compares_patches_over_patches():
    network, images = built("deit_tiny_patch16_224", 64, img_size=64)
    found = similarity(network, images)
    assert found.arrays["similarity"].coords["layer"] == [f"blocks.{i}.attn" for i in range(8, 12)]
    assert (found.arrays["keys"].values == 16).all()
    with captured(network, ["blocks.9"]) as maps, torch.inference_mode():
        network(images[1:])
    rows = maps["blocks.9.attn"].weights[0, 0, :, 1:, 1:].double()
    expected = np.mean([pairs_mean(head) for head in rows])
    assert found.arrays["similarity"].take(layer="blocks.9.attn").values[1] == pytest.approx(expected, abs=1e-6)
    heads = similarity(network, images, of="heads", blocks=1)
    with captured(network, ["blocks.11"]) as maps, torch.inference_mode():
        network(images[:1])
    rows = maps["blocks.11.attn"].weights[0, 0, :, 1:, 1:].double().transpose(0, 1)
    expected = np.mean([pairs_mean(query) for query in rows])
    assert heads.arrays["similarity"].values[0, 0] == pytest.approx(expected, abs=1e-6)


def test_partialformer_compares_before_and_after_the_head_mlp():
    network, images = built("partialformer_b0", 128)
    found = similarity(network, images, blocks=1, of="heads")
    layer = "stages.3.blocks.5.attn"
    assert found.arrays["similarity"].coords["layer"] == [f"{layer}.{part}" for part in PARTS]
    assert (found.arrays["keys"].values[:3] == 16 * 2 // 5 + 1).all()  # the abstract token is a key too
    # at the start the head MLP changes nothing: the maps before and after are the same
    before, after = (found.arrays["similarity"].take(layer=f"{layer}.{part}").values for part in ("unmixed", "mixed"))
    assert np.allclose(before, after, atol=1e-5)


def test_windows_are_compared_inside():
    network, images = built("swin_tiny_patch4_window7_224", 72, img_size=72, window_size=4)
    found = similarity(network, images, blocks=12)
    with captured(network, ["layers.0.blocks.0"]) as maps, torch.inference_mode():
        network(images[:1])
    one = maps["layers.0.blocks.0.attn"]
    means = []
    for window in range(one.weights.shape[1]):
        real = one.query_positions[0, window] >= 0
        rows = one.weights[0, window][:, real][:, :, real].double()
        means += [pairs_mean(head) for head in rows]
    assert found.arrays["similarity"].values[0, 0] == pytest.approx(np.mean(means), abs=1e-6)


def test_selections_of_neighbouring_blocks():
    network, images = built("partialformer_b0", 64)
    found = similarity(network, images, of="selection")
    layers = found.arrays["agreement"].coords["layer"]
    assert layers[:2] == ["stages.0.blocks.1.attn", "stages.1.blocks.1.attn"]  # the first of a stage has none before
    assert len(layers) == 16 - 4
    with captured(network, ["stages.2"]) as maps, torch.inference_mode():
        network(images[:1])
    first, second = (set(maps[f"stages.2.blocks.{i}.attn.mixed"].query_positions[0, 0, 1:].tolist()) for i in (0, 1))
    expected = len(first & second) / len(first)
    assert found.arrays["agreement"].take(layer="stages.2.blocks.1.attn").values[0] == pytest.approx(expected)
    assert found.plot().mode == "RGB"


@pytest.mark.parametrize("name", ["pslt_tiny", "pale_tiny", "emsnet_xxtiny", "mat_1", "lvt", "pvt_v2_b1"])
def test_every_family_has_a_result(name):
    network, images = built(name, 128)
    found = similarity(network, images, blocks=4)
    assert ((found.arrays["similarity"].values <= 1 + 1e-9) & (found.arrays["similarity"].values > 0)).all()
    assert len(found.about["standard_error"]) == len(found.arrays["keys"].values)
    again = similarity(network, images, blocks=4)
    assert np.array_equal(again.arrays["shuffled"].values, found.arrays["shuffled"].values)
    assert "keys shuffled" in found.summary()
    assert found.plot().mode == "RGB"
    single = similarity(network, images[:1])
    assert single.about["standard_error"][0] is None
    assert single.to_dict()["about"]["images"] == 1


def test_what_has_no_meaning_is_refused():
    network, images = built("emsnet_xxtiny", 64)
    with pytest.raises(UserError, match="is for PartialFormer"):
        similarity(network, images, of="selection")
    with pytest.raises(UserError, match="choose one of queries, heads, selection"):
        similarity(network, images, of="keys")
    with pytest.raises(UserError, match="whole number"):
        similarity(network, images, blocks=0)
    with pytest.raises(UserError, match=r"No attention of .* can be captured"):
        similarity(timm.create_model("resnet18"), images)
    with pytest.raises(UserError, match="two queries to compare"):
        similarity(network, images[:, :, :32, :32], blocks=1)


def test_a_line_of_the_plot_is_a_kind_of_attention():
    layers = ["stages.3.blocks.0.attn.rows", "stages.3.blocks.0.attn.columns", "stages.3.blocks.1.attn.rows"]
    assert _kinds(layers) == {"attn.rows": [0, 2], "attn.columns": [1]}
    assert _kinds(["blocks.10.attn", "blocks.11.attn"]) == {"attn": [0, 1]}
