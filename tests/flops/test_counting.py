import pytest
import timm
import torch
from timm.layers import LayerNorm2d
from torch import nn
from torch.nn import functional as F

from vitrail.errors import UserError
from vitrail.flops.counting import Counts, count, rule_of
from vitrail.flops.parameters import count_parameters
from vitrail.models.pale import PaleAttention
from vitrail.models.partialformer import PartialAttention


class Function(nn.Module):
    """A function as a module, with a parameter for the device."""

    def __init__(self, function, shape=(1,)):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device="meta"))
        self.function = function

    def forward(self, x):
        return self.function(x, self.weight)


def total(module, *size):
    return sum(count(module.to("meta").eval(), size).values(), Counts())


def test_convolutions_count_one_multiply_add_a_tap_and_output():
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
    out = 8 * 5 * 6
    assert total(conv, 6, 9, 11) == Counts(conv=out * 3 * 9, bias=out)


def test_transposed_convolutions_count_on_their_input():
    assert total(nn.ConvTranspose2d(6, 8, 4, stride=2, bias=False), 6, 5, 7).conv == 6 * 5 * 7 * 8 * 16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [(), (7,), (5, 3)])
def test_linear_layers_count_alike_on_any_number_of_axes(dims, bias):
    linear = nn.Linear(6, 8, bias=bias)
    rows = torch.Size(dims).numel()
    assert total(linear, *dims, 6) == Counts(linear=rows * 48, bias=rows * 8 if bias else 0)


def test_a_learned_matrix_stays_learned_through_views():
    def folded(x, w):  # (1, h, N, d) with a slice of a weight on the other side
        return x @ w.unflatten(0, (3, 2, 5))[1]

    assert total(Function(folded, (30, 4)), 2, 7, 5) == Counts(linear=2 * 7 * 5 * 4)


def test_explicit_and_fused_attention_count_alike():
    def explicit(x, _):
        return (x @ x.transpose(-2, -1)).softmax(-1) @ x

    def fused(x, _):
        return F.scaled_dot_product_attention(x, x, x)

    wanted = Counts(matmul=2 * 3 * 10 * 10 * 4)
    assert total(Function(explicit), 3, 10, 4) == wanted
    assert total(Function(fused), 3, 10, 4) == wanted


def test_fused_attention_counts_alike_where_it_computes():
    fused = Function(lambda x, _: F.scaled_dot_product_attention(x, x, x))
    fused.weight = nn.Parameter(torch.zeros(1))
    assert sum(count(fused.eval(), (3, 10, 4)).values(), Counts()) == Counts(matmul=2 * 3 * 10 * 10 * 4)


def test_norms_samples_and_pools_count_elements():
    elements = 6 * 4 * 5
    assert total(nn.BatchNorm2d(6), 6, 4, 5) == Counts(batch_norm=elements)
    assert total(LayerNorm2d(6), 6, 4, 5) == Counts(layer_norm=elements)
    assert total(nn.GroupNorm(2, 6), 6, 4, 5) == Counts(group_norm=elements)
    assert total(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 1, 1, bias=False)), 6, 4, 5).pooling == elements
    sample = Function(lambda x, _: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False))
    assert total(sample, 6, 4, 5) == Counts(grid_sample=elements)


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        ("executed", (1, 1, 1, 0, 0, 0, 0, 0, 0, 0)),
        ("conv_linear", (1, 1, 0, 0, 0, 0, 0, 0, 0, 0)),
        ("conv_linear+bn2", (1, 1, 0, 2, 0, 0, 0, 0, 0, 0)),
        ("conv_linear+norms+headbias", (1, 1, 0, 2, 5, 0, 0, 0, 0, 0)),
        ("conv_linear+matmul", (1, 1, 1, 0, 0, 0, 0, 0, 0, 0)),
        ("fvcore_default", (1, 1, 1, 2, 5, 5, 4, 1, 0, 0)),
        ("fvcore_backbone", (1, 1, 1, 2, 5, 5, 4, 1, 0, 0)),
        ("fvcore_backbone+bias", (1, 1, 1, 2, 5, 5, 4, 1, 0, 1)),
    ],
)
def test_rules_weigh_the_categories(rule, weights):
    amounts = [10**i for i in range(10)]  # conv, linear, matmul, batch, layer, group norm, samples, pools, two biases
    wanted = sum(weight * amount for weight, amount in zip(weights, amounts, strict=True))
    assert Counts(*amounts).weighted(rule_of(rule).backbone) == wanted
    assert rule_of(rule).as_written == (rule != "executed")


@pytest.mark.parametrize(
    ("name", "rule", "parameters"),
    [
        ("pslt_tiny", "all", 4_298_988),
        ("pslt_tiny", "no_tables", 4_266_540),
        ("lvt", "encoder", 3_429_092),
        ("lvt", "without_aux", 5_264_844),
        ("lvt", "with_aux", 5_521_844),
    ],
)
def test_parameters_are_counted_by_the_papers_rules(name, rule, parameters):
    assert count_parameters(timm.create_model(name, device="meta"), rule) == parameters


def test_counts_belong_to_the_module_that_runs_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    found = count(model.to("meta").eval(), (3, 4, 4))
    assert {name: c for name, c in found.items() if c != Counts()} == {
        "0": Counts(conv=192),
        "1.1": Counts(linear=320, bias=5),
    }


@pytest.mark.parametrize("name", ["resnet18", "pvt_v2_b0", "vit_tiny_patch16_224", "mat_1", "mobilenetv3_small_100"])
def test_counts_are_those_of_fvcore(name):
    """fvcore knows explicit attention only; our networks call the fused one, whose products it is told of."""
    from fvcore.nn import FlopCountAnalysis

    model = timm.create_model(name).eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False

    def products(inputs, outputs):
        q, k = (list(x.type().sizes()) for x in inputs[:2])
        return 2 * torch.Size(q).numel() * k[-2]

    theirs = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224))
    theirs.set_op_handle("aten::scaled_dot_product_attention", products)
    theirs.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    ours = total(timm.create_model(name), 3, 224, 224).weighted(rule_of("fvcore_default").backbone)
    assert ours == theirs.total()


def test_partial_attention_counts_as_the_thesis_writes_it():
    """Section 4 of the specification: 40.1 MFLOPs for d = 64, 8 heads, 56 x 56 tokens, 49 of them foreground."""

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = PartialAttention(64, 8)

        def forward(self, x):
            return self.attn(x, x)

    tokens, dim, heads, m = 56 * 56, 64, 8, 50
    written = 3 * (tokens + 1) * dim**2 + m * dim**2 + 2 * m**2 * dim + 4 * heads**2 * m**2
    written += 2 * (tokens - 49) * dim + 2 * dim * 8 + 5 * 8
    assert written == 40_108_456
    assert total(Alone(), 64, 56, 56).weighted(rule_of("fvcore_default").backbone) == written


@pytest.mark.parametrize("size", [(14, 14), (13, 10), (8, 21), (3, 3)])
@pytest.mark.parametrize("mixer", ["parallel", "sequential", "axial"])
def test_pale_attention_counts_full_groups(size, mixer):
    module = PaleAttention(8, 2, mixer, (7, 7))
    height, width = size

    def group_pairs(length, across, s):
        groups = -(-length // s)
        return groups * (-(-length // groups) * across) ** 2

    s = 1 if mixer == "axial" else 7
    rows, columns = group_pairs(height, width, s), group_pairs(width, height, s)
    wanted = 2 * rows * 8 if mixer == "sequential" else 2 * (rows + columns) * 4
    assert total(module, 8, *size).matmul == wanted


def test_an_unknown_rule_is_named():
    with pytest.raises(UserError, match="fvcore_default"):
        rule_of("fvcore")
