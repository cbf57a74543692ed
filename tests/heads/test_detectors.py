"""Detectors: the papers' sizes, where their definition departs from torchvision's, a step of training, odd images."""

import math

import pytest
import torch
from detector_helpers import SMALL, small, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vitrail.heads.mask_rcnn import L1Proposals, MaskRCNN, box_losses
from vitrail.heads.panoptic_fpn import PanopticFPN
from vitrail.heads.retinanet import CoarserLevels, RetinaNet
from vitrail.heads.sparse_rcnn import SparseRCNN
from vitrail.heads.ssdlite import SSDLite

WIDTHS = st.lists(st.integers(1, 40), min_size=4, max_size=4)
#: options that keep every box
EVERY_BOX = {
    RetinaNet: {"score_thresh": 0.0},
    MaskRCNN: {"box_score_thresh": 0.0},
    PanopticFPN: {"box_score_thresh": 0.0},
    SparseRCNN: {"detections_per_img": 21},
    SSDLite: {"score_thresh": 0.0},
}
KINDS = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@settings(deadline=None, max_examples=10)
@given(WIDTHS)
def test_parameters_are_the_reported_formulas(widths):
    c1, c2, c3, c4 = widths
    with torch.device("meta"):
        retinanet = RetinaNet(nn.Identity(), widths)
        assert count(retinanet) == 256 * (c2 + c3) + 2560 * c4 + 8_824_564
        assert count(RetinaNet(nn.Identity(), widths, p6="on_output")) == count(retinanet) + 2304 * (256 - c4)
        assert count(MaskRCNN(nn.Identity(), widths)) == 256 * (c1 + c2 + c3 + c4) + 19_905_264
        assert count(PanopticFPN(nn.Identity(), widths)) == 96 * (c1 + c2 + c3 + c4) + 1_868_454
        assert count(SparseRCNN(nn.Identity(), widths)) == 256 * (c1 + c2 + c3 + c4) + 81_851_816
        assert count(SSDLite(nn.Identity(), widths)) == 532 * (c3 + c4) + 256 * c4 + 1_055_348


@KINDS
def test_every_parameter_learns(kind):
    model = small(kind, **({"min_size": 512, "max_size": 900} if kind is SparseRCNN else {})).train()
    if kind is SparseRCNN:  # regions for every level of the pyramid
        model.proposal_boxes.weight.data[:, 2:] = torch.linspace(0.1, 1, 7)[:, None]
    losses = model(*targets())
    assert all(loss.isfinite() for loss in losses.values())
    total = sum(losses.values())
    if kind is SSDLite:  # few of its default boxes count in a step: beside the loss, every output
        outputs = model.head([*model.backbone(torch.rand(2, 3, 128, 96)).values()])
        total = total + sum(output.square().mean() for output in outputs.values())
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@KINDS
@pytest.mark.parametrize("size", [(33, 200), (7, 5)])
def test_any_image_gets_boxes_inside_it(kind, size):
    model = small(kind, **EVERY_BOX[kind]).eval()
    with torch.no_grad():
        found = model([torch.rand(3, *size), torch.rand(3, 40, 40)])
    for result, (height, width) in zip(found, (size, (40, 40)), strict=True):
        boxes = result["boxes"]
        assert 0 < len(boxes) <= (200 if kind is SSDLite else 100)
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width + 1e-4  # scaled back from the resized image
        assert boxes[:, 3].max() <= height + 1e-4
        assert (result["scores"][:-1] >= result["scores"][1:]).all()
        labels = set(result["labels"].tolist())
        assert labels <= ({0, 1, 2} if kind in (RetinaNet, SparseRCNN) else {1, 2, 3})  # elsewhere 0 is the background
    if kind in (MaskRCNN, PanopticFPN):
        assert found[0]["masks"].shape == (len(found[0]["boxes"]), 1, *size)


@pytest.mark.parametrize("kind", [SparseRCNN, PanopticFPN])
def test_training_needs_targets(kind):
    with pytest.raises(ValueError, match="targets"):
        small(kind).train()([torch.rand(3, 40, 40)])


def test_a_misspelt_option_is_named():
    # torchvision's detectors take any option and forget those they do not know
    for kind in (RetinaNet, MaskRCNN, SSDLite, PanopticFPN):
        with pytest.raises(ValueError, match=r"score_tresh=0\.1 is no option; there are .*score_thresh"):
            small(kind, score_tresh=0.1)
        with pytest.raises(ValueError, match="is no option"):
            small(kind, backbone=None)


# ---- RetinaNet ----------------------------------------------------------------------------------------------------


def test_p6_is_made_from_the_coarsest_map_even_where_widths_are_equal():
    # torchvision takes P5 then, and puts a ReLU before P7
    levels = CoarserLevels(8, 8, on_input=True)
    maps, p5 = [torch.randn(1, 8, 10, 12)], torch.randn(1, 8, 10, 12)
    results, names = levels([p5], maps, ["0"])
    assert names == ["0", "p6", "p7"]
    torch.testing.assert_close(results[1], F.conv2d(maps[0], levels.p6.weight, levels.p6.bias, 2, 1))
    torch.testing.assert_close(results[2], F.conv2d(results[1], levels.p7.weight, levels.p7.bias, 2, 1))
    torch.testing.assert_close(CoarserLevels(8, 8, on_input=False)([p5], maps, ["0"])[0][0], p5)


def test_nine_anchors_of_three_sizes_an_octave_and_three_shapes():
    cells = RetinaNet(nn.Identity(), [8, 8, 8, 8]).anchor_generator.cell_anchors
    for base, anchors in zip((32, 64, 128, 256, 512), cells, strict=True):
        assert len(anchors) == 9
        width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
        areas = {round(math.log2(area) * 3 / 2) for area in (width * height / base**2).tolist()}
        assert areas == {0, 1, 2}
        assert {round(2 * math.log2(r)) / 2 for r in (height / width).tolist()} == {-1.0, 0.0, 1.0}


def test_losses_are_means_over_the_positive_anchors_of_the_batch():
    model = small(RetinaNet)
    head = model.head
    anchors = [torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 12.0, 12.0], [0.0, 0.0, 4.0, 4.0]])] * 2
    matched = [torch.tensor([0, 1, -1]), torch.tensor([0, -2, -1])]  # three positive, one ignored, two background
    targets = [
        {"boxes": torch.tensor([[0.0, 0.0, 9.0, 8.0], [3.0, 4.0, 12.0, 13.0]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.tensor([[1.0, 1.0, 8.0, 8.0]]), "labels": torch.tensor([1])},
    ]
    logits, deltas = torch.randn(2, 3, 3), torch.randn(2, 3, 4)
    losses = head.compute_loss(targets, {"cls_logits": logits, "bbox_regression": deltas}, anchors, matched)

    classes, boxes = torch.tensor(0.0), torch.tensor(0.0)
    for i in range(2):
        for a, index in enumerate(matched[i].tolist()):
            if index == -2:
                continue
            for k in range(3):
                positive = index >= 0 and int(targets[i]["labels"][index]) == k
                p = logits[i, a, k].sigmoid()
                p = p if positive else 1 - p
                classes += -(0.25 if positive else 0.75) * (1 - p) ** 2 * p.log()
            if index >= 0:
                (x0, y0, x1, y1), (u0, v0, u1, v1) = anchors[i][a].tolist(), targets[i]["boxes"][index].tolist()
                w, h = x1 - x0, y1 - y0
                wanted = [
                    (u0 + u1 - x0 - x1) / 2 / w,
                    (v0 + v1 - y0 - y1) / 2 / h,
                    math.log((u1 - u0) / w),
                    math.log((v1 - v0) / h),
                ]
                boxes += (deltas[i, a] - torch.tensor(wanted)).abs().sum()
    torch.testing.assert_close(losses["classification"], classes / 3)
    torch.testing.assert_close(losses["bbox_regression"], boxes / 3)


def test_a_batch_without_objects_teaches_the_background():
    images, found = targets()
    losses = small(RetinaNet).train()([images[1]], [found[1]])
    assert losses["classification"] > 0
    assert losses["bbox_regression"] == 0


def test_a_wrong_option_is_named():
    with pytest.raises(ValueError, match="p6='p5'"):
        RetinaNet(nn.Identity(), [8, 8, 8, 8], p6="p5")
    with pytest.raises(ValueError, match="num_anchors=5"):
        SSDLite(nn.Identity(), [8, 8, 8, 8], num_anchors=5)
    with pytest.raises(ValueError, match="num_heads=0"):
        SparseRCNN(nn.Identity(), [8, 8, 8, 8], num_heads=0)
    with pytest.raises(ValueError, match="width=0"):
        SSDLite(nn.Identity(), [8, 8, 8, 8], image_size=(320, 0))
    with pytest.raises(ValueError, match="extra_channels"):
        SSDLite(nn.Identity(), [8, 8, 8, 8], extra_channels=())
    with pytest.raises(ValueError, match="semantic_channels=50"):
        PanopticFPN(nn.Identity(), [8, 8, 8, 8], semantic_channels=50)
    for kind in SMALL:
        with pytest.raises(ValueError, match="in_chs"):
            kind(nn.Identity(), [8, 8])
        name = "num_things" if kind is PanopticFPN else "num_classes"
        with pytest.raises(ValueError, match=f"{name}=0"):
            kind(nn.Identity(), [8, 8, 8, 8], **{name: 0})


# ---- Mask R-CNN ---------------------------------------------------------------------------------------------------


def test_boxes_of_proposals_learn_by_the_absolute_difference():
    labels, wanted = torch.tensor([0, 2, 1, 0]), torch.randn(4, 4)
    logits, deltas = torch.randn(4, 3), torch.randn(4, 12)
    classes, boxes = box_losses(logits, deltas, labels, wanted, torch.full((4,), 0.25))
    by_hand = (deltas[1, 8:12] - wanted[1]).abs().sum() + (deltas[2, 4:8] - wanted[2]).abs().sum()
    torch.testing.assert_close(boxes, by_hand / 4)  # over all proposals, background too
    torch.testing.assert_close(classes, -logits.log_softmax(1)[torch.arange(4), labels].mean())


def test_proposals_learn_by_the_absolute_difference(monkeypatch):
    rpn = small(MaskRCNN).rpn
    assert type(rpn) is L1Proposals
    labels = [torch.tensor([1.0, 0.0, -1.0, 1.0])]  # -1: between the thresholds, never sampled
    deltas, wanted = torch.randn(4, 4), torch.randn(4, 4)
    logits = torch.randn(4, 1)
    objectness, boxes = rpn.compute_loss(logits, deltas, labels, [wanted])
    torch.testing.assert_close(boxes, (deltas - wanted)[[0, 3]].abs().sum() / 3)
    logits, truth = logits[[0, 3, 1], 0], torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(objectness, F.binary_cross_entropy_with_logits(logits, truth))


def test_the_background_has_neither_a_box_nor_a_mask():
    heads = small(MaskRCNN).roi_heads
    scores, deltas = heads.box_predictor(torch.randn(5, 16))
    assert scores.shape == (5, 4)
    assert deltas.shape == (5, 16)
    assert not deltas[:, :4].any()
    assert deltas[:, 4:].any(0).all()
    masks = heads.mask_predictor(torch.randn(2, 16, 14, 14))
    assert masks.shape == (2, 4, 28, 28)
    assert not masks[:, 0].any()
    assert masks[:, 1:].flatten(2).any(2).all()


def test_a_level_for_every_size_of_region():
    # floor(4 + log2(side / 224)), clipped to the levels 2 to 5
    pool = small(MaskRCNN).roi_heads.box_roi_pool
    features = {str(i): torch.full((1, 1, 512 // s, 512 // s), float(i)) for i, s in enumerate((4, 8, 16, 32))}
    sides = (20.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 500.0)
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in sides])
    pool.featmap_names = list(features)
    levels = pool(features, [boxes], [(512, 512)]).mean((1, 2, 3)).tolist()
    assert [round(level) for level in levels] == [0, 0, 1, 1, 2, 2, 3, 3]


# ---- SSDLite ------------------------------------------------------------------------------------------------------


def test_six_levels_of_an_image_of_320_pixels():
    # 20, 10, 5, 3, 2, 1 places a side
    maps = small(SSDLite).backbone(torch.rand(2, 3, 320, 320))
    assert [tuple(x.shape[2:]) for x in maps.values()] == [(n, n) for n in (20, 10, 5, 3, 2, 1)]
    assert [x.shape[1] for x in maps.values()] == [8, 10, 12, 8, 8, 8]


def test_six_boxes_a_place_from_a_fifth_of_the_image_to_nearly_all():
    model = small(SSDLite)
    shapes = model.anchor_generator._generate_wh_pairs(6)
    assert [len(level) for level in shapes] == [6] * 6
    scales = torch.linspace(0.2, 0.95, 6)
    for level, scale, following in zip(shapes, scales, [*scales[1:], torch.tensor(1.0)], strict=True):
        width, height = level.clamp(max=1).unbind(1)
        torch.testing.assert_close(width[0], scale)
        torch.testing.assert_close(width[1], (scale * following).sqrt())
        if scale * 3**0.5 <= 1:
            torch.testing.assert_close(width[2:] / height[2:], torch.tensor([2.0, 0.5, 3.0, 1 / 3]))
            torch.testing.assert_close(width[2:] * height[2:], torch.full((4,), float(scale) ** 2))


def test_every_image_is_resized_to_the_whole_input():
    images, _ = small(SSDLite).transform([torch.rand(3, 50, 90), torch.rand(3, 200, 30)])
    assert images.tensors.shape == (2, 3, 128, 96)


@pytest.mark.parametrize("kind", [RetinaNet, MaskRCNN])
def test_xavier_is_for_every_new_layer_where_asked(kind):
    torch.manual_seed(0)
    body = nn.Conv2d(3, 3, 1)
    before = body.weight.clone()
    model = kind(body, (32, 64, 96, 128), 80, 64, init="xavier")
    assert torch.equal(body.weight, before)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and module is not body:
            fans = module.weight.shape[0] + module.weight.shape[1]
            limit = (6 / (fans * math.prod(module.weight.shape[2:]))) ** 0.5
            assert 0.9 * limit < module.weight.abs().max() <= limit, name
            prior = -math.log(99) if name.endswith("cls_logits") and kind is RetinaNet else 0.0
            assert torch.allclose(module.bias, torch.tensor(prior)), name
    with pytest.raises(ValueError, match="init"):
        kind(nn.Identity(), (8, 8, 8, 8), init="he")
