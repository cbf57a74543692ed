"""Detectors: the papers' sizes, where their definition departs from torchvision's, a step of training, odd images."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vitrail.heads.mask_rcnn import L1Proposals, MaskRCNN, box_losses
from vitrail.heads.panoptic_fpn import PanopticFPN, full_size, merge, quarter_maps
from vitrail.heads.retinanet import CoarserLevels, RetinaNet
from vitrail.heads.set_loss import match, set_losses
from vitrail.heads.sparse_rcnn import DynamicConv, SparseRCNN
from vitrail.heads.ssdlite import SSDLite

WIDTHS = st.lists(st.integers(1, 40), min_size=4, max_size=4)
SMALL = {
    RetinaNet: {"channels": 16, "min_size": 64, "max_size": 128},
    MaskRCNN: {"channels": 16, "fc_channels": 16, "min_size": 64, "max_size": 128},
    PanopticFPN: {"channels": 16, "fc_channels": 16, "semantic_channels": 12, "min_size": 64, "max_size": 128},
    SparseRCNN: {
        "num_proposals": 7,
        "num_stages": 2,
        "channels": 16,
        "dynamic_channels": 4,
        "mlp_channels": 8,
        "min_size": 64,
        "max_size": 128,
    },
    SSDLite: {"extra_channels": (12, 8, 8, 8), "image_size": (128, 96)},
}
#: options that keep every box
EVERY_BOX = {
    RetinaNet: {"score_thresh": 0.0},
    MaskRCNN: {"box_score_thresh": 0.0},
    PanopticFPN: {"box_score_thresh": 0.0},
    SparseRCNN: {"detections_per_img": 21},
    SSDLite: {"score_thresh": 0.0},
}
KINDS = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)


class Body(nn.Module):
    """Four maps at strides 4 to 32 from one convolution each."""

    def __init__(self, widths):
        super().__init__()
        pairs = zip([3, *widths[:-1]], widths, (4, 2, 2, 2), strict=True)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in pairs)

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps


def small(kind, **options) -> nn.Module:
    torch.manual_seed(0)
    widths = [4, 6, 8, 10]
    classes = {"num_things": 3, "num_stuff": 2} if kind is PanopticFPN else {"num_classes": 3}
    return kind(Body(widths), widths, **{**classes, **SMALL[kind], **options})


def targets() -> tuple[list, list]:
    """Two pictures of different sizes, one of them without anything in it."""
    images = [torch.rand(3, 61, 90), torch.rand(3, 75, 50)]
    boxes = torch.tensor([[4.0, 5.0, 40.0, 50.0], [20.0, 2.0, 80.0, 58.0]])
    masks = torch.zeros(2, 61, 90, dtype=torch.uint8)
    masks[0, 5:50, 4:40] = masks[1, 2:58, 20:80] = 1
    semantic = torch.full((61, 90), 255)
    semantic[:30], semantic[30:40], semantic[50:] = 0, 1, 2
    found = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "semantic": semantic}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    none |= {"masks": torch.zeros(0, 75, 50, dtype=torch.uint8), "semantic": torch.full((75, 50), 255)}
    return images, [found, none]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@settings(deadline=None, max_examples=10)
@given(WIDTHS)
def test_parameters_are_the_printed_formulas(widths):
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
def test_any_picture_gets_boxes_inside_it(kind, size):
    model = small(kind, **EVERY_BOX[kind]).eval()
    with torch.no_grad():
        found = model([torch.rand(3, *size), torch.rand(3, 40, 40)])
    for result, (height, width) in zip(found, (size, (40, 40)), strict=True):
        boxes = result["boxes"]
        assert 0 < len(boxes) <= (200 if kind is SSDLite else 100)
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width + 1e-4  # scaled back from the resized picture
        assert boxes[:, 3].max() <= height + 1e-4
        assert (result["scores"][:-1] >= result["scores"][1:]).all()
        labels = set(result["labels"].tolist())
        assert labels <= ({0, 1, 2} if kind in (RetinaNet, SparseRCNN) else {1, 2, 3})  # elsewhere 0 is the background
    if kind in (MaskRCNN, PanopticFPN):
        assert found[0]["masks"].shape == (len(found[0]["boxes"]), 1, *size)


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
    classes, boxes = box_losses(logits, deltas, labels, wanted)
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


def test_six_levels_of_a_picture_of_320_pixels():
    # 20, 10, 5, 3, 2, 1 places a side
    maps = small(SSDLite).backbone(torch.rand(2, 3, 320, 320))
    assert [tuple(x.shape[2:]) for x in maps.values()] == [(n, n) for n in (20, 10, 5, 3, 2, 1)]
    assert [x.shape[1] for x in maps.values()] == [8, 10, 12, 8, 8, 8]


def test_six_boxes_a_place_from_a_fifth_of_the_picture_to_nearly_all():
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


def test_every_picture_is_resized_to_the_whole_input():
    images, _ = small(SSDLite).transform([torch.rand(3, 50, 90), torch.rand(3, 200, 30)])
    assert images.tensors.shape == (2, 3, 128, 96)


# ---- Sparse R-CNN -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**16), st.integers(1, 3))
def test_objects_are_matched_at_the_least_cost(seed, objects):
    torch.manual_seed(seed)
    corners = torch.rand(4 + objects, 2) * 40
    boxes = torch.cat([corners, corners + 1 + torch.rand(4 + objects, 2) * 20], 1)
    logits, labels = torch.randn(4, 3), torch.randint(3, (objects,))
    target, scale = {"boxes": boxes[4:], "labels": labels}, torch.tensor([60.0, 50.0, 60.0, 50.0])

    def cost(row: int, column: int) -> float:
        p = logits[row, labels[column]].sigmoid().item()
        focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
        ours, theirs = boxes[row].tolist(), boxes[4 + column].tolist()
        x = max(0.0, min(ours[2], theirs[2]) - max(ours[0], theirs[0]))
        y = max(0.0, min(ours[3], theirs[3]) - max(ours[1], theirs[1]))
        area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (ours, theirs)]
        union = sum(area) - x * y
        hull = (max(ours[2], theirs[2]) - min(ours[0], theirs[0])) * (max(ours[3], theirs[3]) - min(ours[1], theirs[1]))
        giou = x * y / union - (hull - union) / hull
        distance = sum(abs(a - b) / s for a, b, s in zip(ours, theirs, scale.tolist(), strict=True))
        return 2 * focal + 5 * distance - 2 * giou

    ways = itertools.permutations(range(4), objects)
    least = min(sum(cost(row, column) for column, row in enumerate(way)) for way in ways)
    rows, columns = match(logits, boxes[:4], target, scale)
    assert sorted(columns.tolist()) == list(range(objects))
    assert len(set(rows.tolist())) == objects
    found = sum(cost(r, c) for r, c in zip(rows.tolist(), columns.tolist(), strict=True))
    assert found == pytest.approx(least, abs=1e-4)


def test_losses_of_a_set_are_means_over_the_objects_of_the_batch():
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 40.0]], [[0.0, 0.0, 5.0, 5.0]] * 2])
    targets = [
        {"boxes": torch.tensor([[20.0, 20.0, 30.0, 40.0], [0.0, 0.0, 10.0, 5.0]]), "labels": torch.tensor([1, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    logits = torch.zeros(2, 2, 3)
    losses = set_losses([(logits, boxes)], targets, [(50, 100), (40, 40)])
    assert losses["stage0_bbox"] == pytest.approx(5 * (5 / 50) / 2)  # one box is right, the other's lower edge is 5 low
    assert losses["stage0_giou"] == pytest.approx(2 * (1 - 0.5) / 2)
    cell = 0.25 * math.log(2)  # (1 - p) ** 2 * -log(p) at p = 1/2
    assert losses["stage0_classification"] == pytest.approx(2 * (2 * 0.25 + 10 * 0.75) * cell / 2)
    nothing = set_losses([(logits[1:], boxes[1:])], targets[1:], [(40, 40)])
    assert nothing["stage0_bbox"] == nothing["stage0_giou"] == 0


def test_a_box_looks_into_its_region_by_weights_of_its_own():
    torch.manual_seed(0)
    layer, features, regions = DynamicConv(6, 2), torch.randn(3, 6), torch.randn(3, 6, 7, 7)
    found = layer(features, regions)
    for k in range(3):
        weights = layer.weights(features[k])
        first, second = weights[:12].view(6, 2), weights[12:].view(2, 6)
        places = []
        for i, j in itertools.product(range(7), range(7)):
            x = layer.norm1(first.T @ regions[k, :, i, j]).relu()
            places.append(layer.norm2(second.T @ x).relu())
        torch.testing.assert_close(found[k], layer.norm3(layer.out(torch.cat(places))).relu())


def test_boxes_begin_as_the_whole_picture_and_stay_where_nothing_moves_them():
    model = small(SparseRCNN).eval()
    for stage in model.stages:
        nn.init.zeros_(stage.move[-1].weight)
        nn.init.zeros_(stage.move[-1].bias)
    sizes = [(40, 60), (64, 32)]
    with torch.no_grad():
        predictions = model.refine(model.backbone(torch.rand(2, 3, 64, 64)), sizes)
    for _, boxes in predictions:
        whole = torch.tensor([[0.0, 0.0, 60.0, 40.0], [0.0, 0.0, 32.0, 64.0]])
        torch.testing.assert_close(boxes, whole[:, None].expand(-1, 7, -1))


@pytest.mark.parametrize("kind", [SparseRCNN, PanopticFPN])
def test_training_needs_targets(kind):
    with pytest.raises(ValueError, match="targets"):
        small(kind).train()([torch.rand(3, 40, 40)])


# ---- Panoptic FPN -------------------------------------------------------------------------------------------------


def test_pixels_learn_at_a_quarter_of_the_size():
    truth = torch.arange(4).repeat_interleave(8)[None].expand(16, 32)  # 8 columns a class
    made = quarter_maps([truth, torch.zeros(8, 8, dtype=torch.long)], [(16, 32), (8, 8)], (6, 9))
    assert made[0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 255]
    assert made[1].tolist() == [[0, 0, *[255] * 7]] * 2 + [[255] * 9] * 4


def test_logits_come_back_to_the_size_of_the_picture():
    logits = torch.linspace(0, 1, 10)[None, None].expand(3, 4, 10)
    made = full_size(logits, (14, 30), (28, 60))
    assert made.shape == (3, 28, 60)
    assert made[0, 0, -1] == pytest.approx(29.5 / 4 / 9 - 0.5 / 9, abs=0.01)  # the padding behind is cut off


def test_pixels_with_no_label_teach_nothing():
    images, found = targets()
    losses = small(PanopticFPN).train()([images[1]], [found[1]])
    assert losses["loss_semantic"] == 0


def scene(**options) -> dict:
    """Two things that overlap by half and a third below the threshold, on two kinds of stuff."""
    masks = torch.zeros(3, 1, 100, 100)
    masks[0, 0, :40, :40] = masks[1, 0, :40, 20:80] = masks[2, 0, 60:, 60:] = 0.9
    semantic = torch.zeros(3, 100, 100)
    semantic[0, :50] = semantic[1, 50:] = semantic[2, :, 80:] = 1.0
    semantic[2, :, 80:] = 2.0
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [20.0, 0.0, 80.0, 40.0], [60.0, 60.0, 100.0, 100.0]])
    scores = torch.tensor([0.7, 0.9, 0.5])
    return {"boxes": boxes, "labels": torch.tensor([2, 1, 3]), "scores": scores, "masks": masks, "semantic": semantic}


def test_every_pixel_belongs_to_one_segment():
    segments, known = merge(scene(), least_stuff=1000)
    # the better thing is whole, the other keeps the half that is left, the third one's score is too low
    assert [(s["thing"], s["label"], s["area"]) for s in known] == [
        (True, 1, 40 * 60),
        (True, 2, 40 * 20),
        (False, 1, 50 * 80),
    ]
    assert known[0]["score"] == pytest.approx(0.9)
    assert known[2]["score"] is None
    for segment in known:
        assert int((segments == segment["id"]).sum()) == segment["area"]
    # the first stuff has 10 x 80 pixels left, and nobody knows where "a thing" is said and none was found
    assert int((segments == 0).sum()) == 10_000 - sum(segment["area"] for segment in known)


def test_things_and_stuff_that_are_too_little_are_left_out():
    labels = [s["label"] for s in merge(scene(), covered=0.4, least_stuff=1000)[1] if s["thing"]]
    assert labels == [1]  # half of the other is covered
    labels = [s["label"] for s in merge(scene(), nms_thresh=0.1, least_stuff=1000)[1] if s["thing"]]
    assert labels == [1]  # of two boxes that overlap the better stays, whatever their classes
    assert [s["label"] for s in merge(scene(), least_stuff=4001)[1] if not s["thing"]] == []
    assert [s["label"] for s in merge(scene(), least_stuff=800)[1] if not s["thing"]] == [0, 1]
    assert len([s for s in merge(scene(), score_thresh=0.5)[1] if s["thing"]]) == 3


def test_nothing_found_is_no_segment():
    nothing = {name: value[:0] if name != "semantic" else value for name, value in scene().items()}
    segments, known = merge(nothing, least_stuff=10_000)
    assert known == []
    assert not segments.any()
