"""Every kernel of the fused layers against PyTorch's public calls, and when they must not run at all."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vitrail.deploy.fuse.layers import (
    ACTIVATIONS,
    FusedConv2d,
    FusedLinear,
    LRUCache,
    activation_name,
    conv_kernels,
    has_kernels,
    linear_kernels,
    runs_plain,
)

NAMES = sorted(ACTIVATIONS)
PLAIN = {
    "none": nn.Identity(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "sigmoid": nn.Sigmoid(),
}


def fused(layer: nn.Module, activation: str = "none"):
    layer = copy.deepcopy(layer).requires_grad_(False)
    layer.__class__ = FusedConv2d if isinstance(layer, nn.Conv2d) else FusedLinear
    layer.activation, layer.cache = activation, LRUCache()
    return layer


def close(got, expected, tolerance=2e-6):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from(NAMES))
def test_every_linear_kernel_computes_the_layer_and_its_activation(rows, inputs, outputs, bias, activation):
    layer = nn.Linear(inputs, outputs, bias).requires_grad_(False)
    x = torch.randn(rows, inputs)
    expected = PLAIN[activation](F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None))
    for make in linear_kernels(rows, layer.weight, layer.bias, activation).values():
        close(make()(x), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 3, 3), (4, 4, 0, 1), (7, 1, 3, 1)]),
    st.sampled_from(["dense", "grouped", "depthwise"]),
    st.booleans(),
    st.sampled_from(NAMES),
)
def test_every_convolution_kernel_computes_the_layer_and_its_activation(
    batch, height, width, geometry, kind, bias, activation
):
    kernel, stride, padding, dilation = geometry
    height, width = max(height, kernel), max(width, kernel)
    groups = {"dense": 1, "grouped": 2, "depthwise": 6}[kind]
    conv = fused(
        nn.Conv2d(6, 12 if kind != "depthwise" else 6, kernel, stride, padding, dilation, groups, bias), activation
    )
    x = torch.randn(batch, 6, height, width).contiguous(memory_format=torch.channels_last)
    expected = PLAIN[activation](
        F.conv2d(
            x.double(), conv.weight.double(), conv.bias.double() if bias else None, stride, padding, dilation, groups
        )
    )
    for make in conv_kernels(x.shape, conv).values():
        close(make()(x), expected)
    close(conv(x.contiguous()), expected)  # in any memory


def test_one_by_one_convolutions_also_run_as_matrix_products():
    x = torch.randn(2, 6, 5, 5)
    assert "linear" in conv_kernels(x.shape, fused(nn.Conv2d(6, 4, 1)))
    for other in (nn.Conv2d(6, 4, 1, stride=2), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(6, 4, 3, padding=1)):
        assert "linear" not in conv_kernels(x.shape, fused(other))


@pytest.mark.parametrize("layer", [nn.Linear(8, 6), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
class TestLayer:
    def inputs(self, layer, *sizes):
        shape = (*sizes, 5, 8) if isinstance(layer, nn.Linear) else (*sizes, 8, 5, 5)
        return torch.randn(shape)

    def test_weights_that_change_are_used_at_once(self, layer, activation):
        x, changed = self.inputs(layer, 2), copy.deepcopy(layer)
        nn.init.normal_(changed.weight)
        f = fused(layer, activation)
        f(x)
        f.load_state_dict(changed.state_dict())
        close(f(x), PLAIN[activation](changed(x)))

    def test_casting_and_going_back(self, layer, activation):
        x, f = self.inputs(layer, 2), fused(layer, activation)
        first = f(x)
        close(f.double()(x.double()), first.double(), 1e-5)
        close(f.to(torch.bfloat16)(x.bfloat16()).float(), first, 0.05)

    def test_several_shapes(self, layer, activation):
        f = fused(layer, activation)
        for batch in (1, 2, 3, 4, 5, 6, 1):
            x = self.inputs(layer, batch)
            close(f(x), PLAIN[activation](layer(x)))

    def test_copies_and_pickles_compute_the_same(self, layer, activation):
        x, f = self.inputs(layer, 2), fused(layer, activation)
        first = f(x)
        close(copy.deepcopy(f)(x), first)
        close(pickle.loads(pickle.dumps(f))(x), first)

    def test_gradients_of_the_input_are_the_layers_own(self, layer, activation):
        x, f = self.inputs(layer, 2).requires_grad_(), fused(layer, activation)
        (got,) = torch.autograd.grad(f(x).square().sum(), x)
        (expected,) = torch.autograd.grad(PLAIN[activation](layer(x)).square().sum(), x)
        close(got, expected)

    def test_autocast_decides_the_dtype(self, layer, activation):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            x = self.inputs(layer, 2)
            assert fused(layer, activation)(x).dtype == PLAIN[activation](layer(x)).dtype == torch.bfloat16

    def test_graphs_hold_public_operators_only(self, layer, activation):
        x, f = self.inputs(layer, 2), fused(layer, activation)
        exported = torch.export.export(f, (x,))
        assert not [node for node in exported.graph.nodes if "mkl" in str(node.target)]
        close(exported.module()(x), f(x))
        close(torch.jit.trace(f, x)(x), f(x))
        assert f.to("meta")(x.to("meta")).shape == layer(x).shape


def test_plain_calls_where_gradients_graphs_or_counters_need_them():
    x, layer = torch.randn(2, 3), nn.Linear(3, 4).requires_grad_(False)
    assert not runs_plain(x, layer)
    assert runs_plain(x.requires_grad_(), layer)
    assert runs_plain(x.detach(), nn.Linear(3, 4))
    assert runs_plain(x.detach().to("meta"), layer)
    with torch.inference_mode():
        assert not runs_plain(x, nn.Linear(3, 4))
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert runs_plain(x.detach(), layer)


def test_other_kernels_are_for_float32_and_bfloat16():
    assert has_kernels(torch.zeros(1), torch.zeros(1))
    half = torch.zeros(1).bfloat16()
    assert has_kernels(half, half) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for dtype in (torch.float64, torch.float16):
        assert not has_kernels(torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=dtype))
    assert not has_kernels(torch.zeros(1), torch.zeros(1).bfloat16())


def test_padding_named_by_a_word():
    conv = nn.Conv2d(4, 4, 3, padding="same")
    x = torch.randn(1, 4, 5, 5)
    close(fused(conv)(x), conv(x))


def test_activations_are_known_by_their_class():
    for name, module in PLAIN.items():
        assert (activation_name(module) or "none") == name
    assert activation_name(nn.Softplus()) is None


def test_what_was_not_asked_for_longest_is_forgotten():
    made, kept = [], LRUCache(2)
    for key in "aabacab":
        kept.get(key, lambda key=key: made.append(key) or key)
    assert "".join(made) == "abcb"


def test_several_threads_may_call_one_layer():
    layer = nn.Linear(8, 6)
    f = fused(layer)
    inputs = [torch.randn(rows, 8) for rows in range(1, 9)] * 20  # more shapes than are kept
    with ThreadPoolExecutor(4) as pool:
        for x, got in zip(inputs, pool.map(f, inputs), strict=True):
            close(got, layer(x))
