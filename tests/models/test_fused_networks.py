"""`vitrail.fuse` on the networks of this library: the same outputs from every method, at every size."""

import copy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_helpers import NARROW, image_sides, network, quick, seeds
from torch import nn

import vitrail
from vitrail.deploy.fuse.layers import ChannelAffine

FAMILIES = sorted(NARROW)
#: options whose modules are not in the default networks
VARIANTS = [
    ("pslt", {"pad_mode": "paper"}),
    ("pslt", {"mask_padding": False}),
    ("pslt", {"ffn": "mlp", "fusion": "se", "feature_delivery": False}),
    ("lvt", {"rasa_recursions": 1, "class_attention": False}),
    ("lvt", {"atrous_rates": (), "rasa_recursions": 3}),
    ("pale", {"mixers": "vanilla"}),
    ("pale", {"qkv_norm": "none", "mixers": "sequential"}),
    ("emsnet", {"whiten": "spatial", "layer_scale_init": 0.5}),
    ("emsnet", {"norm": "gn", "channel_split": False}),
    ("mat", {"patch_embed": "conv3x3", "token_merge": "qkv"}),
    ("partialformer", {"layer_scale_init": 0.5, "mlp_dwconv": True}),
    ("partialformer", {"mixers": "full", "head_mlp": False}),
]


def close(got, expected, tolerance):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_is_exact(family):
    model = network(family)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    close(vitrail.fuse(model, check=False)(x), model(x), 1e-11)


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_folding_is_exact_with_other_options(family, options):
    model = network(family, **options)
    x = torch.randn(2, 3, 70, 45, dtype=torch.float64)
    close(vitrail.fuse(model, check=False)(x), model(x), 1e-11)


@pytest.mark.parametrize("family", FAMILIES)
@quick
@given(st.integers(1, 3), image_sides, image_sides, seeds)
def test_one_fused_network_serves_every_size_and_batch(family, batch, height, width, seed):
    model, fused = in_float32(family)
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        close(fused(x), model(x), 1e-4)


_pairs: dict[str, tuple[nn.Module, nn.Module]] = {}


def in_float32(family):
    if family not in _pairs:
        options = {"deterministic": True} if family == "partialformer" else {}
        model = copy.deepcopy(network(family, **options)).float()
        _pairs[family] = model, vitrail.fuse(model)
    return _pairs[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_gives_what_it_gave(family):
    model = network(family)
    fused = vitrail.fuse(model, check=False)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    close(fused.forward_features(x), model.forward_features(x), 1e-11)
    for got, expected in zip(
        fused.forward_intermediates(x, intermediates_only=True),
        model.forward_intermediates(x, intermediates_only=True),
        strict=True,
    ):
        close(got, expected, 1e-11)
    close(
        fused.forward_head(fused.forward_features(x), True), model.forward_head(model.forward_features(x), True), 1e-11
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_itself_stays_as_it_was(family):
    model = copy.deepcopy(network(family)).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    vitrail.fuse(model, torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_no_norm_is_left_that_could_be_folded(family):
    fused = vitrail.fuse(network(family), check=False)
    left = [name for name, module in fused.named_modules() if isinstance(module, (nn.BatchNorm2d, ChannelAffine))]
    if family == "pslt":  # each stands before a zero-padded convolution
        assert left
        assert all(name.endswith(("conv.0.norm", "ffn.0.norm")) or name.startswith("stem") for name in left)
    else:
        assert left == (["norm"] if family == "emsnet" else [])  # that one is read by the pooling


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_run_inside_the_layers_before_them(family):
    fused = vitrail.fuse(network(family), check=False)
    assert not [name for name, module in fused.named_modules() if isinstance(module, (nn.GELU, nn.SiLU))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_network_exports_and_compiles(family):
    model = network(family)
    fused = vitrail.fuse(model, check=False)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    close(torch.export.export(fused, (x,)).module()(x), model(x), 1e-11)
    close(torch.compile(fused, backend="eager", fullgraph=True)(x), model(x), 1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_image(family):
    model = network(family)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    (got,) = torch.autograd.grad(vitrail.fuse(model, check=False)(x).square().sum(), x)
    close(got, expected, 1e-9)


def test_the_pyramid_of_a_features_only_network():
    options = {"features_only": True, "depths": (1, 1, 1, 1)}
    features = timm.create_model("mat_1", **options).eval()
    x = torch.randn(1, 3, 64, 64)
    for got, expected in zip(vitrail.fuse(features)(x), features(x), strict=True):
        close(got, expected, 1e-4)


def test_multiply_adds_are_counted_as_before():
    model = timm.create_model("mat_1")
    assert (
        vitrail.profile(vitrail.fuse(model, check=False), (3, 64, 64)).macs == vitrail.profile(model, (3, 64, 64)).macs
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_timms_own_reparameterisation_takes_every_network(family):
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    close(timm.models.reparameterize_model(network(family))(x), network(family)(x), 1e-12)
