"""Classes of pixels from whole images, windows and several scales, and the maps that are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from semantic_helpers import CLASSES, bilinear, inference, sample_image
from vitrail.data.datasets.index_masks import IGNORE, read_mask
from vitrail.structures import SegmentationMap
from vitrail.tasks import sliding_window
from vitrail.tasks.sliding_window import starts


class Pointwise(nn.Module):
    """Classes of each pixel from its own colour."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(3, len(CLASSES), 1)

    def forward(self, x):
        return self.classifier(x)


class Strided(nn.Module):
    """Classes at stride 4 from patches of 8x8 pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, 4, padding=2)
        self.classifier = nn.Conv2d(6, len(CLASSES), 1)

    def forward(self, x):
        height, width = x.shape[-2:]
        return self.classifier(self.conv(F.pad(x, (0, -width % 4, 0, -height % 4))).relu())


def assert_likeliest(found: torch.Tensor, scores: torch.Tensor) -> None:
    """The classes (H, W) have the greatest of the scores (classes, H, W), but for rounding."""
    assert found.dtype == torch.uint8
    assert found.shape == scores.shape[1:]
    chosen = scores.gather(0, found.long()[None])[0]
    torch.testing.assert_close(chosen, scores.amax(0), rtol=0, atol=1e-4)


# ---- whole images and windows ---------------------------------------------------------------------------------

SIDE = st.integers(1, 90)


@torch.no_grad()
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.integers(1, 100), st.booleans())
def test_windows_see_what_the_whole_image_shows(seed, size, own, window, flip):
    """For a network that looks at single pixels; the views (h, w) and the image itself have any sizes."""
    torch.manual_seed(seed)
    model, x = Pointwise(), torch.randn(3, *size)
    scores = bilinear(model(x[None]), own)[0]
    for options in ({}, {"window": window}):
        [found] = inference(flip=flip, **options).infer(model, [([x], own)])
        assert_likeliest(found, scores.softmax(0) if flip else scores)


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.integers(32, 60))
def test_windows_are_averaged_where_they_overlap(seed, size, own, window):
    torch.manual_seed(seed)
    model, size = Strided(), tuple(side + 31 for side in size)
    x = torch.randn(1, 3, *size)
    if window >= max(size):
        total, times = model(x), 1
    else:
        stride = window * 2 // 3
        total, times = torch.zeros(1, len(CLASSES), *size), torch.zeros(size)
        # as MMSegmentation counts windows
        rows, columns = ((max(side - window, 0) + stride - 1) // stride + 1 for side in size)
        for row in range(rows):
            for column in range(columns):
                bottom, right = min(row * stride + window, size[0]), min(column * stride + window, size[1])
                place = slice(max(bottom - window, 0), bottom), slice(max(right - window, 0), right)
                part = x[..., place[0], place[1]]
                total[..., place[0], place[1]] += bilinear(model(part), part.shape[-2:])
                times[place] += 1
        assert times.min() >= 1
    [found] = inference(window=window).infer(model, [([x[0]], own)])
    assert_likeliest(found, bilinear(total / times, own)[0])


@given(st.integers(1, 300), st.integers(1, 300))
def test_windows_cover_everything(length, side):
    side = min(side, length)
    found = starts(length, side)
    assert found[0] == 0
    assert found[-1] == length - side
    steps = np.diff(found)
    assert (steps > 0).all()
    assert (steps <= max(1, side * 2 // 3)).all()


@torch.no_grad()
def test_a_window_over_everything_is_the_whole_image():
    model, x = Strided(), torch.randn(3, 61, 47)
    whole, windowed = (inference(window=w).infer(model, [([x], (100, 90))])[0] for w in (None, 61))
    assert torch.equal(whole, windowed)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"window": 40}, {"flip": True, "scales": [0.5, 1.0, 1.75]}], ids=str)
def test_strips_change_nothing(monkeypatch, options):
    model, images = Strided(), [sample_image(113, 70)]
    [whole] = inference(**options).predict(model, images, "cpu")
    seen, resize = [], sliding_window.resize
    monkeypatch.setattr(sliding_window, "resize", lambda *a: seen.append(resize(*a)) or seen[-1])
    monkeypatch.setattr(sliding_window, "STRIP", 4 * 70 * 10)
    [found] = inference(**options).predict(model, images, "cpu")
    assert (found.indices == whole.indices).all()
    assert len(seen) >= 12
    assert max(x.numel() for x in seen) <= 4 * 70 * 10  # no more scores at once


@torch.no_grad()
def test_scales_and_mirrors_are_averaged_as_probabilities():
    torch.manual_seed(3)
    image, model = sample_image(75, 120), Strided()
    [found] = inference(scales=[0.5, 1.0, 1.5], flip=True).predict(model, [image], "cpu")
    total = torch.zeros(len(CLASSES), 75, 120)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for size in ((32, 51), (64, 102), (96, 154)):
        resized = image.resize(size[::-1], Image.Resampling.BILINEAR)
        x = ((torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - mean) / std)[None]
        total += bilinear(model(x), (75, 120))[0].softmax(0)
        total += bilinear(model(x.flip(-1)), (75, 120))[0].softmax(0).flip(-1)
    assert_likeliest(torch.from_numpy(found.indices), total / 6)
    assert len(set(found.indices.ravel().tolist())) > 1
    [once] = inference().predict(model, [image], "cpu")
    assert (once.indices != found.indices).any()


@torch.no_grad()
def test_images_of_one_size_go_through_together():
    model, calls = Strided(), []
    model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    alike = [([torch.randn(3, 40, 50)], size) for size in ((40, 50), (20, 31))]
    other = ([torch.randn(3, 44, 50)], (44, 50))
    together = inference().infer(model, alike)
    mixed = inference().infer(model, [*alike, other])
    assert calls == [2, 1, 1, 1]
    assert [tuple(found.shape) for found in mixed] == [(40, 50), (20, 31), (44, 50)]
    for one, same in zip(together, mixed, strict=False):
        assert (one != same).float().mean() < 1e-3  # a batch rounds differently


def test_segformer_looks_at_multiples_of_32():
    sizes = []
    model = Strided()
    model.register_forward_hook(lambda module, args, output: sizes.append(tuple(args[0].shape[-2:])))
    for head in ("segformer", "semantic_fpn"):
        inference(head).predict(model, [sample_image(90, 100)], "cpu")
    assert sizes == [(64, 96), (64, 71)]


# ---- maps -------------------------------------------------------------------------------------------------------


def test_what_is_told_of_a_map(tmp_path):
    indices = np.array([[1, 1, 1, 3], [1, 0, 0, IGNORE]], dtype=np.uint8)
    found = SegmentationMap(CLASSES, indices)
    assert found.to_dict() == {"shares": {"sky": 0.5, "wall": 0.25, "road": 0.125}}
    assert list(found.to_dict()["shares"]) == ["sky", "wall", "road"]
    assert found.summary() == "sky 50 %, wall 25 %, road 12 %"
    assert SegmentationMap(CLASSES, np.arange(4, dtype=np.uint8)[None]).summary().endswith("tree 25 % and 1 more")
    assert SegmentationMap(CLASSES, np.full((2, 2), IGNORE, dtype=np.uint8)).summary() == "nothing"
    drawn = found.draw(Image.new("RGB", (4, 2), "white"))
    assert drawn.width == 4
    assert drawn.height > 2  # the legend
    colours = {drawn.getpixel((x, 0)) for x in range(3)}
    assert len(colours) == 1
    assert drawn.getpixel((3, 0)) not in colours
    assert drawn.getpixel((3, 1)) == (255, 255, 255)
    found.save(tmp_path, "a")
    assert (read_mask(tmp_path / "masks" / "a.png") == indices).all()
