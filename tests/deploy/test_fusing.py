"""`vitrail.fuse` on small networks made for the purpose, and on timm's."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, LayerScale2d
from torch import nn

import vitrail
from dense_helpers import SHORT
from vitrail.deploy.fuse.fold import fold
from vitrail.deploy.fuse.layers import ChannelAffine
from vitrail.factory import assemble


def randomise(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.5)
        if isinstance(module, LayerScale2d):
            nn.init.normal_(module.gamma)
    return model.double().eval()


def folded(model: nn.Module, left: int) -> None:
    """The fused network gives the same, and `left` norms and scales are left."""
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    model = randomise(model)
    fused = vitrail.fuse(model, x)  # compares
    kinds = (nn.BatchNorm2d, ChannelAffine, LayerScale2d)
    assert sum(isinstance(m, kinds) for m in fused.modules()) == left


class Reads(nn.Module):
    """conv, then a norm and something else that reads the convolution too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class Twice(nn.Module):
    """One convolution for two places, with two norms."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)
        self.first, self.second = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x))))


class Branches(nn.Module):
    """Control flow on sizes, which fx cannot follow, around a part that it can."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x):
        return self.part(x) if x.shape[2] > 3 else x


def conv(groups=1, bias=True, kernel=3, padding=1, **options):
    return nn.Conv2d(6, 6, kernel, padding=padding, groups=groups, bias=bias, **options)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_goes_into_the_convolution_before_it(groups, bias, affine):
    folded(nn.Sequential(conv(groups, bias), nn.BatchNorm2d(6, affine=affine), nn.ReLU()), left=0)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_behind_an_activation_goes_into_an_unpadded_convolution_behind_it(groups, bias):
    body = [nn.GELU(), nn.BatchNorm2d(6), nn.Dropout(0.5), conv(groups, bias, padding=0), nn.GELU()]
    folded(nn.Sequential(conv(), *body), left=0)


@pytest.mark.parametrize("padding", [1, "same"])
def test_a_norm_before_a_padded_convolution_stays(padding):
    folded(nn.Sequential(nn.GELU(), nn.BatchNorm2d(6), conv(padding=padding)), left=1)


def test_a_norm_before_a_convolution_with_other_padding_stays():
    folded(nn.Sequential(conv(padding_mode="reflect"), nn.BatchNorm2d(6)), left=1)


@pytest.mark.parametrize(("model", "left"), [(Reads(), 1), (Twice(), 2), (Branches(), 0)])
def test_only_what_one_reader_reads_once_is_folded(model, left):
    folded(model, left)


def test_a_norm_overwrites_its_input_only_if_nobody_else_reads_it():
    alone = nn.Sequential(conv(), nn.GELU(), nn.BatchNorm2d(6), conv())
    fused = vitrail.fuse(alone, torch.randn(1, 6, 4, 4))
    assert fused[2].owned
    for model in (Reads(), nn.Sequential(nn.BatchNorm2d(6), conv())):
        x = torch.randn(1, 6, 4, 4)
        before = x.clone()
        fused = vitrail.fuse(randomise(model).float(), x)
        assert not any(m.owned for m in fused.modules() if isinstance(m, ChannelAffine))
        with torch.inference_mode():
            fused(x)
        assert torch.equal(x, before)


def test_a_convolution_under_two_names_stays():
    shared = conv()
    folded(nn.Sequential(shared, nn.BatchNorm2d(6), shared), left=1)


def test_a_norm_without_statistics_stays():
    folded(nn.Sequential(conv(), nn.BatchNorm2d(6, track_running_stats=False)), left=1)


def test_norm_and_activation_in_one_module():
    folded(nn.Sequential(conv(), BatchNormAct2d(6, act_layer=nn.Hardswish), conv()), left=0)


def test_a_layer_scale_goes_into_the_layer_before_it():
    folded(nn.Sequential(conv(), nn.Dropout(0.1), LayerScale2d(6), conv()), left=0)


def test_a_layer_scale_behind_an_activation_stays():
    folded(nn.Sequential(conv(), nn.GELU(), LayerScale2d(6)), left=1)


def test_a_hooked_layer_is_left_alone():
    model = nn.Sequential(conv(), nn.BatchNorm2d(6))
    model[0].register_forward_hook(lambda module, args, out: 2 * out)
    folded(model, left=1)


def test_the_activation_is_read_by_nobody_else():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = conv(), nn.ReLU()

        def forward(self, x):
            x = self.conv(x)
            return x - self.act(x)

    folded(Model(), left=0)


def test_a_wrong_rewriting_is_an_error():
    class Wrong(nn.Conv2d):
        def inference_form(self):
            return nn.Conv2d(6, 6, 1)

    with pytest.raises(RuntimeError, match=r"changed the outputs of Sequential by .*largest output"):
        vitrail.fuse(nn.Sequential(Wrong(6, 6, 1)), torch.randn(1, 6, 4, 4))


def test_a_fused_network_needs_no_gradients_and_is_in_evaluation_mode():
    fused = vitrail.fuse(nn.Sequential(conv(), nn.Dropout(0.9)).train(), torch.randn(1, 6, 4, 4))
    assert not fused.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())


def test_a_submodule_named_fuse_is_no_method():
    """SegFormer's head has one, which timm's `reparameterize_model` would call."""
    network = randomise(assemble("mat_1", "segformer", SHORT, {"num_classes": 3, "channels": 8})).float().eval()
    x = torch.randn(1, 3, 64, 96)
    fused = vitrail.fuse(network, x)
    assert (fused(x) - network(x)).abs().max() <= 1e-4 * network(x).abs().max()


def test_folding_twice_changes_nothing_more():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(6), nn.GELU()))
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    expected = model(x)
    fold(model)
    weight = model[0].weight.clone()
    fold(model)
    assert torch.equal(model[0].weight, weight)
    assert model[0].activation == "gelu"
    assert torch.allclose(nn.functional.gelu(model[0](x)), expected)


TIMM = {
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (1, 1, 1, 1), "window_size": 7},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "efficientvit_b1": {},
    "mobilenetv3_small_100": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "repvit_m1_0": {},
    "resnet18": {},
}


@pytest.mark.parametrize("name", TIMM)
def test_any_network_of_timm(name):
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=7, **TIMM[name])).float()
    side = TIMM[name].get("img_size", 64)
    x = torch.randn(2, 3, side, side)
    fused = vitrail.fuse(model, x)  # compares
    with torch.inference_mode():
        assert (fused(x) - model(x)).abs().max() <= 1e-4 * model(x).abs().max()
    assert any(getattr(m, "activation", "none") != "none" for m in fused.modules()) or name == "pvt_v2_b0"
