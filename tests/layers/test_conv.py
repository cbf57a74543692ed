import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vitrail.layers import ConvNormAct, ConvPositionEncoding, Mlp, PatchEmbedConv, Pointwise, channels_last


def test_pointwise_is_a_linear_layer_over_channels():
    layer = Pointwise(5, 7)
    linear = nn.Linear(5, 7)
    linear.load_state_dict({"weight": layer.weight.detach()[:, :, 0, 0], "bias": layer.bias.detach()})
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(layer(x), linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(0, 3), height=st.integers(1, 6), width=st.integers(1, 6), bias=st.booleans())
def test_pointwise_and_its_gradients_are_a_convolutions_at_any_size(batch, height, width, bias):
    layer = Pointwise(5, 7, bias=bias).double()
    x = torch.randn(batch, 5, height, width, dtype=torch.float64, requires_grad=True)
    plain = nn.functional.conv2d(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), plain)
    wanted = [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad(out.square().sum(), wanted) for out in (layer(x), plain))
    torch.testing.assert_close(ours, theirs)


def test_graphs_keep_pointwise_a_convolution():
    layer, x = Pointwise(3, 4), torch.randn(2, 3, 2, 2)
    exported = torch.export.export(layer, (x,))
    assert any("conv2d" in str(node.target) for node in exported.graph.nodes)
    assert "convolution" in str(torch.jit.trace(layer, x).inlined_graph)
    assert "conv2d" in str(torch.fx.symbolic_trace(layer).code)


@pytest.mark.parametrize(("order", "names"), [("conv-norm-act", "conv norm act"), ("conv-act-norm", "conv act norm")])
def test_conv_norm_act_keeps_its_order(order, names):
    layer = ConvNormAct(3, 4, order=order, stride=2)
    assert [name for name, _ in layer.named_children()] == names.split()
    assert layer(torch.randn(1, 3, 7, 8)).shape == (1, 4, 4, 4)
    with pytest.raises(ValueError, match="order='norm-conv'"):
        ConvNormAct(3, 4, order="norm-conv")


def test_scripted_orders_are_told_apart():
    x = torch.randn(2, 3, 5, 6)
    for order in ("conv-norm-act", "conv-act-norm"):
        layer = ConvNormAct(3, 4, order=order).eval()
        layer.norm.running_mean += 1
        torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


def test_conv_norm_act_leaves_steps_out():
    layer = ConvNormAct(3, 4, norm=None, act=None, bias=True)
    assert [name for name, _ in layer.named_children()] == ["conv"]
    assert layer.conv.bias is not None


@pytest.mark.parametrize(("kernel", "stride"), [(7, 4), (3, 2)])
@pytest.mark.parametrize("size", [(32, 33), (35, 38)])
def test_patch_embedding_rounds_up_and_normalises_channels(kernel, stride, size):
    out = PatchEmbedConv(3, 16, kernel, stride)(torch.randn(2, 3, *size))
    assert out.shape[2:] == tuple(-(-s // stride) for s in size)
    torch.testing.assert_close(out.mean(1), torch.zeros_like(out[:, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(1, correction=0), torch.ones_like(out[:, 0]), atol=1e-2, rtol=0)


def test_position_encoding_adds_a_depthwise_convolution():
    layer = ConvPositionEncoding(6, 3)
    x = torch.randn(2, 6, 5, 5)
    alone = nn.functional.conv2d(x[:, 2:3], layer.conv.weight[2:3], layer.conv.bias[2:3], padding=1)
    torch.testing.assert_close(layer(x)[:, 2:3], x[:, 2:3] + alone)


def test_patch_embedding_is_a_padded_convolution_and_a_norm_of_its_epsilon():
    layer = PatchEmbedConv(3, 8, 7, 4, norm_eps=1e-2).double()
    x = torch.randn(2, 3, 17, 22, dtype=torch.float64)
    y = F.conv2d(x, layer.conv1.weight, layer.conv1.bias, 4, 3).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x).permute(0, 2, 3, 1), F.layer_norm(y, (8,), eps=1e-2))


@pytest.mark.parametrize("dwconv", [False, True])
def test_mlp_is_two_layers_around_exact_gelu(dwconv):
    mlp = Mlp(4, 2.5, dwconv).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    hidden = F.conv2d(x, mlp.fc1.weight, mlp.fc1.bias)
    if dwconv:
        hidden = F.conv2d(hidden, mlp.dwconv.weight, mlp.dwconv.bias, padding=1, groups=10)
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    torch.testing.assert_close(mlp(x), F.conv2d(hidden, mlp.fc2.weight, mlp.fc2.bias))


@pytest.mark.parametrize("dwconv", [False, True])
def test_mlp_counts_and_layout(dwconv):
    mlp = Mlp(8, 4, dwconv)
    assert sum(p.numel() for p in mlp.parameters()) == 2 * 4 * 64 + 40 + (10 * 32 if dwconv else 0)
    x = channels_last(torch.randn(2, 8, 6, 6))
    assert mlp(x).is_contiguous(memory_format=torch.channels_last)
