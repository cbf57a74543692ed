"""Layers by name and their maps, in our networks and timm's."""

from typing import Literal

import numpy as np
import pytest
import timm
import torch
from torch import nn

import vitrail  # noqa: F401  (registers our networks)
from vitrail.analysis.layers import as_maps, block_of, blocks_of, evaluating, layers_of, maps_of, recorded, stage_of
from vitrail.analysis.options import check_choice, check_count
from vitrail.analysis.result import NamedArray
from vitrail.errors import UserError

#: network -> (number of blocks, side of the last block's map at 64 pixels)
COUNTS = {
    "emsnet_xxtiny": (10, 2),
    "mat_1": (16, 2),
    "partialformer_b0": (16, 2),
    "resnet34": (16, 2),
    "convnext_atto": (12, 2),
    "pvt_v2_b1": (8, 2),
    "poolformer_s12": (12, 2),
    "mobilenetv2_050": (17, 2),
}


@pytest.mark.parametrize("name", COUNTS)
def test_blocks_give_maps_whose_last_is_the_networks(name):
    network = timm.create_model(name, num_classes=3).eval()
    blocks, side = COUNTS[name]
    assert len(blocks_of(network)) == blocks
    names = layers_of(network)
    assert [one for one in names if one in blocks_of(network)] == blocks_of(network)
    maps = maps_of(network, torch.randn(2, 3, 64, 64), names)
    assert all(one.ndim == 4 and one.shape[2] == one.shape[3] for one in maps.values())
    assert maps[names[-1]].shape[2] == side


def test_columns_of_tokens_become_maps_without_their_prefix():
    network = timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    maps = maps_of(network, images, layers_of(network))
    assert maps["blocks.11"].shape == (2, 192, 4, 4)
    taken = {}
    handle = network.blocks[11].register_forward_hook(lambda m, i, o: taken.update(tokens=o))
    with torch.inference_mode():
        network(images)
    handle.remove()
    # token 1 + 4 * row + column of the list
    assert torch.equal(maps["blocks.11"][:, :, 2, 1], taken["tokens"][:, 1 + 4 * 2 + 1])


def test_channels_last_maps_are_turned():
    network = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2, num_classes=3).eval()
    maps = maps_of(network, torch.randn(1, 3, 64, 64), blocks_of(network))
    assert maps["layers.0.blocks.0"].shape == (1, 96, 16, 16)
    assert maps["layers.3.blocks.1"].shape == (1, 768, 2, 2)


def test_gradients_flow_through_recorded_maps_and_hooks_go():
    network = timm.create_model("emsnet_xxtiny", num_classes=3).eval()
    with recorded(network, ["stages.3.blocks.1"]) as maps:
        network(torch.randn(1, 3, 64, 64)).sum().backward()
        assert maps["stages.3.blocks.1"].grad_fn is not None
    assert not any(module._forward_hooks for module in network.modules())


def test_evaluation_mode_is_taken_back_module_by_module():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1)).train()
    network[1].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False]


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match="mode='c' is not allowed; choose one of a, b"):
        check_choice("mode", "c", Literal["a", "b"])
    with pytest.raises(UserError, match="pairs=0 is not allowed; give a whole number, 1 or more"):
        check_count("pairs", 0)
    for value in (True, 1.5, "2"):
        with pytest.raises(UserError, match="whole number"):
            check_count("pairs", value)


def test_maps_are_not_overwritten_by_what_follows():
    network = timm.create_model("mobilenetv2_050", num_classes=3).eval()  # its first norm computes in place
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = network.conv_stem(images).clone()
    assert torch.equal(maps_of(network, images, ["conv_stem"])["conv_stem"], wanted)


def test_wrong_layers_are_refused_with_the_nearest():
    network = timm.create_model("emsnet_xxtiny", num_classes=3).eval()
    with pytest.raises(UserError, match=r"stages\.3\.blocks\.1"), recorded(network, ["stages.3.block.1"]):
        pass
    with pytest.raises(UserError, match="no blocks"):
        blocks_of(nn.Linear(2, 2))
    with pytest.raises(UserError, match="gives no map"):
        as_maps(torch.zeros(2, 3), network, "head")


def test_stages_of_names():
    assert [stage_of(n) for n in ("stages.3.blocks.1", "layer4.0", "layers.2.blocks.0", "stem", "blocks.3")] == [
        3,
        4,
        2,
        None,
        None,
    ]


def test_arrays_with_named_axes():
    array = NamedArray(np.arange(6.0).reshape(2, 3), ("layer", "frequency"), {"layer": ["a", "b"]})
    assert array.take(layer="b").values.tolist() == [3, 4, 5]
    assert array.take(layer="a", frequency=2).values == 2
    assert array.to_dict()["values"] == [[0, 1, 2], [3, 4, 5]]
    assert NamedArray(np.array([np.nan, np.inf, 1]), ("x",)).to_dict()["values"] == [None, None, 1]
    for axes, coords in ((("layer",), {}), (("a", "a"), {}), (("a", "b"), {"b": [1]}), (("a", "b"), {"c": [1]})):
        with pytest.raises(ValueError, match=r"axes|coords"):
            NamedArray(np.zeros((2, 3)), axes, coords)


@pytest.mark.parametrize("network", ["mat_1", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_block_of_a_layer_is_one_of_the_blocks(network):
    model = timm.create_model(network)
    for block in blocks_of(model):
        inner = [name for name, _ in model.get_submodule(block).named_modules(prefix=block)]
        assert {block_of(name) for name in inner} == {block}
    assert block_of("head.fc") == "head.fc"
