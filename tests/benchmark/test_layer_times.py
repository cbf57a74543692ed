"""Time by kind of layer: multiply-adds of compiled graphs by closed forms, and the ceilings of chains."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ceilings
import layers
from ceilings import LAYERS, Chain, ceiling
from vitrail.benchmark.networks import network_of
from vitrail.benchmark.runtimes import file_in, has_bf16
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.metadata import Metadata
from vitrail.deploy.export.trace import Graph, Shape


class Attends(nn.Module):
    """Attention between a depthwise and a 1x1 convolution; without a softmax, OpenVINO does not fuse it."""

    def __init__(self, dim, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Conv2d(dim, 5, 1)

    def forward(self, x):
        tokens = self.norm(self.depthwise(x).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1)
        out = (logits.softmax(-1) if self.fused else F.relu(logits)) @ v
        return self.proj(out.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, x.shape[2:]))


def written(module, shape, folder):
    backend = BACKENDS["openvino"]
    file, shape = file_in(folder, "openvino"), Shape(shape[0], shape[2:], channels=shape[1])
    metadata = Metadata(network_of("mat_1", (32, 32)).meta, "openvino", shape.axes, ["y"])
    backend.write(backend.trace(Graph(module.eval()), shape), file, metadata, shape)
    return file


def kinds_of(module, shape, folder):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    found = layers.profile(written(module, shape, folder), images, "fp32", threads=1, rounds=2)
    return {kind.name: kind for kind in found}


@pytest.mark.parametrize("tokens", [False, True])
def test_multiply_adds_of_a_chain(tokens, tmp_path):
    found = kinds_of(Chain(16, 48, tokens), (2, 16, 14, 10), tmp_path)
    assert found["products"].layers == LAYERS
    assert found["products"].gmac * 1e9 == LAYERS * 2 * 14 * 10 * 16 * 48
    assert found["products"].ms > 0


def test_multiply_adds_of_attention_and_of_depthwise_convolutions(tmp_path):
    batch, dim, heads, height, width = 2, 32, 4, 6, 10
    tokens = height * width
    found = kinds_of(Attends(dim, heads, fused=False), (batch, dim, height, width), tmp_path)
    assert found["attention"].gmac * 1e9 == pytest.approx(2 * batch * tokens * tokens * dim)
    assert found["depthwise"].gmac * 1e9 == batch * tokens * dim * 9
    assert found["products"].gmac * 1e9 == batch * tokens * dim * (3 * dim + 5)
    assert found["norms"].layers == 1
    fused = kinds_of(Attends(dim, heads, fused=True), (batch, dim, height, width), tmp_path)
    assert (fused["fused attention"].layers, fused["fused attention"].gmac) == (1, 0)


def test_the_table_states_rates_beside_the_ceiling():
    kinds = [layers.Kind("products", 3, 8.0, 0.4), layers.Kind("copies", 2, 2.0, 0.0)]
    assert layers.table(kinds, 0.4, 100.0).splitlines()[2:] == [
        "| products | 3 | 8.00 | 0.80 | 0.400 | 50 | 0.50 |",
        "| copies | 2 | 2.00 | 0.20 | - | - | - |",
        "| all | 5 | 10.00 | 1 | 0.400 | 40 | 0.40 |",
    ]


def test_the_faster_form_of_a_shape_is_its_ceiling(monkeypatch):
    monkeypatch.setattr(ceilings, "SHAPES", ((4, 8, 16),))
    counted = itertools.count()  # every call takes a second: all rates are equal
    found = ceilings.ceilings(1, rounds=1, clock=lambda: float(next(counted)))
    rate = LAYERS * 16 * 8 * 16 / 1e9
    bf16 = {("openvino", "bf16"): [rate]} if has_bf16() else {}
    assert found == {("onnxruntime", "fp32"): [rate], ("openvino", "fp32"): [rate], **bf16}
    assert ceiling([3.0, 1.0, 2.0]) == 2.0
