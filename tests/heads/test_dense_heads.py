"""Heads with an output for every pixel, keypoint or image: the papers' sizes, odd maps, gradients everywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vitrail.heads.bnneck import BNNeck
from vitrail.heads.segformer import SegFormerHead
from vitrail.heads.semantic_fpn import SemanticFPN
from vitrail.heads.simple_baseline import SimpleBaseline
from vitrail.heads.upernet import FCN, UperNet

WIDTHS = st.lists(st.integers(1, 40), min_size=4, max_size=4)
SMALL = {
    SemanticFPN: {"num_classes": 5, "channels": 8, "fpn_channels": 12},
    UperNet: {"num_classes": 5, "channels": 8, "aux_channels": 6},
    SegFormerHead: {"num_classes": 5, "channels": 8},
    SimpleBaseline: {"num_keypoints": 5, "deconv_channels": 8},
    BNNeck: {"num_ids": 5},
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def maps_of(widths, height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    """Maps as a backbone gives them: each side half of the finer one's, rounded up."""
    sides = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    return [torch.randn(batch, w, *side) for w, side in zip(widths, sides, strict=True)]


@settings(deadline=None, max_examples=10)
@given(WIDTHS)
def test_parameters_are_the_reported_formulas(widths):
    with torch.device("meta"):
        c1, c2, c3, c4 = widths
        assert count(SemanticFPN(widths)) == 256 * sum(widths) + 4_004_502
        assert count(UperNet(widths, aux_channels=0)) == 512 * (c1 + c2 + c3) + 6656 * c4 + 26_041_494
        assert count(FCN(c3, 150)) == 2304 * c3 + 39_062
        assert count(UperNet(widths)) == count(UperNet(widths, aux_channels=0)) + 2304 * c3 + 39_062
        assert count(SegFormerHead(widths)) == 256 * sum(widths) + 302_230
        assert count(SimpleBaseline(widths)) == 4096 * c4 + 2_103_057
        assert count(BNNeck(widths)) == 2 * c4 + 751 * c4


@settings(deadline=None, max_examples=15)
@given(WIDTHS, st.integers(33, 130), st.integers(33, 130))
def test_pixels_get_classes_at_stride_4_of_any_size(widths, height, width):
    maps = maps_of(widths, height, width, batch=1)
    for kind in (SemanticFPN, UperNet, SegFormerHead):
        with torch.no_grad():
            logits = kind(widths, **SMALL[kind]).eval()(maps)
        assert logits.shape == (1, 5, *maps[0].shape[-2:])
        assert logits.isfinite().all()


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_every_parameter_learns(kind):
    widths = [3, 4, 5, 6]
    head = kind(widths, **SMALL[kind]).train()
    outputs = head(maps_of(widths, 70, 101))
    sum(o.square().mean() for o in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    still = [name for name, p in head.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []
    assert [name for name, p in head.named_parameters() if not p.requires_grad] == (
        ["bn.bias"] if kind is BNNeck else []
    )


def randomised(head: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and biases that change the output."""
    for name, value in head.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if name.endswith("var") else 0.0))
    return head.eval()


def bilinear(x, like):
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def test_semantic_fpn_is_its_definition():
    widths = [3, 4, 5, 6]
    head, maps = randomised(SemanticFPN(widths, **SMALL[SemanticFPN])), maps_of(widths, 64, 96)
    inner, layer = head.fpn.inner_blocks, head.fpn.layer_blocks
    tops = [inner[3](maps[3])]
    for i in (2, 1, 0):
        tops.insert(0, inner[i](maps[i]) + F.interpolate(tops[0], scale_factor=2, mode="nearest"))
    p = [layer[i](x) for i, x in enumerate(tops)]

    def twice(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    a, b, c, d = head.pixels.paths
    parts = [a[0](p[0]), twice(b[0](p[1])), twice(c[1](twice(c[0](p[2]))))]
    parts.append(twice(d[2](twice(d[1](twice(d[0](p[3])))))))
    torch.testing.assert_close(head(maps), head.pixels.classifier(sum(parts)))


@torch.no_grad()
def test_upernet_is_its_definition():
    widths = [3, 4, 5, 6]
    head, (c1, c2, c3, c4) = randomised(UperNet(widths, **SMALL[UperNet])), maps_of(widths, 64, 96)
    pooled = [conv(F.adaptive_avg_pool2d(c4, s)) for s, conv in zip((1, 2, 3, 6), head.pools, strict=True)]
    p4 = head.bottleneck(torch.cat([c4, *(bilinear(x, c4) for x in pooled)], 1))
    p3 = head.laterals[2](c3) + bilinear(p4, c3)
    p2 = head.laterals[1](c2) + bilinear(p3, c2)
    p1 = head.laterals[0](c1) + bilinear(p2, c1)
    out = [head.outputs[0](p1), head.outputs[1](p2), head.outputs[2](p3), p4]
    logits = head.classifier(head.fuse(torch.cat([bilinear(x, c1) for x in out], 1)))
    torch.testing.assert_close(head([c1, c2, c3, c4]), logits)


@torch.no_grad()
def test_segformer_joins_the_coarsest_first():
    widths = [3, 4, 5, 6]
    head, maps = randomised(SegFormerHead(widths, **SMALL[SegFormerHead])), maps_of(widths, 64, 96)
    linear = [
        F.linear(x.movedim(1, -1), p.weight[..., 0, 0], p.bias) for x, p in zip(maps, head.projections, strict=True)
    ]
    joined = torch.cat([bilinear(x.movedim(-1, 1), maps[0]) for x in linear[::-1]], 1)
    torch.testing.assert_close(head(maps), head.classifier(head.fuse(joined)))


def test_keypoints_get_maps_of_stride_4():
    maps = maps_of([3, 4, 5, 6], 256, 192)
    assert SimpleBaseline([3, 4, 5, 6])(maps).shape == (2, 17, 64, 48)


def test_the_neck_gives_a_feature_for_each_use():
    maps, neck = maps_of([3, 4, 5, 6], 64, 32, batch=4), BNNeck([3, 4, 5, 6], 7)
    feature, logits = neck.train()(maps)
    torch.testing.assert_close(feature, maps[-1].flatten(2).mean(2))
    assert logits.shape == (4, 7)
    neck.eval()
    torch.testing.assert_close(neck(maps), neck.bn(feature))


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (SemanticFPN, {"num_classes": 0}, "num_classes=0"),
        (UperNet, {"aux_channels": -1}, "aux_channels=-1"),
        (SegFormerHead, {"channels": 0}, "channels=0"),
        (SimpleBaseline, {"num_keypoints": 0}, "num_keypoints=0"),
        (BNNeck, {"num_ids": 0}, "num_ids=0"),
    ],
)
def test_wrong_options_are_named(kind, options, says):
    with pytest.raises(ValueError, match=says):
        kind([3, 4, 5, 6], **options)
    with pytest.raises(ValueError, match="in_chs"):
        kind([3, 4, 5])


def test_xavier_is_for_every_layer_where_asked():
    torch.manual_seed(0)
    head = SemanticFPN((32, 64, 96, 128), 5, channels=64, fpn_channels=48, init="xavier")
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            size = module.kernel_size[0] ** 2
            limit = (6 / (size * (module.in_channels + module.out_channels))) ** 0.5
            assert 0.98 * limit < module.weight.abs().max() <= limit, name
            assert module.bias is None or not module.bias.any(), name
    with pytest.raises(ValueError, match="init"):
        SemanticFPN((8, 8, 8, 8), init="he")
