"""Sparse R-CNN: matching at the least cost, losses of a set, dynamic products, the first boxes."""

import itertools
import math

import pytest
import torch
from detector_helpers import small
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitrail.heads.set_criterion import match, set_losses
from vitrail.heads.sparse_rcnn import DynamicConv, SparseRCNN


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


def test_boxes_begin_as_the_whole_image_and_stay_where_nothing_moves_them():
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
