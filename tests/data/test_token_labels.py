"""Label maps follow their images through augmentation and are cut where the image is."""

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import AugmentOp
from torchvision.ops import roi_align
from torchvision.transforms import functional as TF

from vitrail.data import AugmentConfig, BadOption, Preprocess, isolated_rng
from vitrail.data.transforms.token_labels import GEOMETRIC_OPS, TokenLabelTransform, crop_labels, warp_label_map

PLAIN = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
SHIFTS = st.sampled_from(sorted(GEOMETRIC_OPS))
LEVELS = {"Shear": 0.3, "TranslateX": 30.0, "TranslateY": 30.0, "Rotate": 30.0}


def level(name, share):
    """A value that timm gives the move, between its extremes."""
    if name.endswith("Rel"):
        return 0.45 * share
    return next(most for start, most in LEVELS.items() if name.startswith(start)) * share


def numbered_map(rows, columns):
    """(2, 1, rows, columns): each place has a class of its own, from 1, with the score 5."""
    classes = torch.arange(1.0, rows * columns + 1).reshape(1, rows, columns)
    return torch.stack((torch.full_like(classes, 5.0), classes))


def random_map(rows, columns, k, num_classes):
    scores = torch.randn(k, rows, columns)
    classes = torch.stack([torch.randperm(num_classes)[:k] for _ in range(rows * columns)], 1).view(k, rows, columns)
    return torch.stack((scores, classes.float()))


# ---- moves ------------------------------------------------------------------------------------------------------


@given(SHIFTS, st.floats(-1, 1), st.integers(2, 7), st.integers(2, 7), st.booleans())
def test_a_map_moves_as_pillow_moves_the_image(name, share, rows, columns, slender):
    value = level(name, share)
    cell_h, cell_w = (24, 16) if slender else (16, 16)
    label_map = numbered_map(rows, columns)
    pixels = label_map[1, 0].byte().numpy().repeat(cell_h, 0).repeat(cell_w, 1)
    image = Image.fromarray(pixels)
    op = AugmentOp(name, prob=1.0, hparams={"interpolation": Image.Resampling.NEAREST, "img_mean": 0})
    moved_image = np.asarray(op.aug_fn(image, value, **op.kwargs))
    moved = warp_label_map(label_map, GEOMETRIC_OPS[name](value, *image.size), image.size)
    assert torch.equal(moved[0, 0] == 5, moved[1, 0] > 0)
    at = [(r, c) for r in range(rows) for c in range(columns)]
    wrong = 0
    for r, c in at:
        y, x = r * cell_h + cell_h // 2, c * cell_w + cell_w // 2
        near = moved_image[y - 1 : y + 1, x - 1 : x + 1]  # the centre lies between these four pixels
        wrong += int(moved[1, 0, r, c]) not in near
    assert wrong == 0


def test_what_comes_into_the_image_has_no_class():
    moved = warp_label_map(numbered_map(2, 4), GEOMETRIC_OPS["TranslateXRel"](0.5, 40, 20), (40, 20))
    assert moved[1, 0].tolist() == [[3, 4, 0, 0], [7, 8, 0, 0]]
    assert moved[0, 0].tolist() == [[5, 5, 0, 0], [5, 5, 0, 0]]


# ---- crops ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.data())
def test_labels_are_those_of_the_dense_map(rows, columns, k, grid_h, grid_w, data):
    classes = 7
    label_map = random_map(rows, columns, k, classes)
    x1, y1 = data.draw(st.floats(0, 0.6)), data.draw(st.floats(0, 0.6))
    box = (x1, y1, x1 + data.draw(st.floats(0.1, 0.4)), y1 + data.draw(st.floats(0.1, 0.4)))
    dense = torch.zeros(classes, rows, columns).scatter_(0, label_map[1].long(), label_map[0])
    left, top, right, bottom = box
    roi = torch.tensor([[0.0, left * columns - 0.5, top * rows - 0.5, right * columns - 0.5, bottom * rows - 0.5]])
    # without aligned=True a region is widened to one cell, which it has here anyway
    wide = min(right * columns - left * columns, bottom * rows - top * rows) >= 1
    ours = crop_labels(label_map, box, (grid_h, grid_w), classes)
    assert ours.shape == (classes, 1 + grid_h * grid_w)
    torch.testing.assert_close(ours.sum(0), torch.ones(1 + grid_h * grid_w))
    if wide:
        tokens = roi_align(dense[None], roi, (grid_h, grid_w))[0].softmax(0).flatten(1)
        whole = roi_align(dense[None], roi, 1)[0].softmax(0).flatten(1)
        torch.testing.assert_close(ours, torch.cat((whole, tokens), 1))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(2, 6))
def test_the_whole_image_on_the_maps_own_grid_is_the_map(rows, columns, classes):
    label_map = random_map(rows, columns, 2, classes)
    tokens = crop_labels(label_map, (0.0, 0.0, 1.0, 1.0), (rows, columns), classes)[:, 1:]
    dense = torch.zeros(classes, rows, columns).scatter_(0, label_map[1].long(), label_map[0])
    torch.testing.assert_close(tokens, dense.softmax(0).flatten(1))


def test_a_quarter_of_the_image_is_a_quarter_of_the_map():
    label_map = numbered_map(4, 6)
    tokens = crop_labels(label_map, (0.5, 0.0, 1.0, 0.5), (2, 3), 25)[:, 1:]
    assert tokens.argmax(0).tolist() == [4, 5, 6, 10, 11, 12]
    assert tokens.amax(0).tolist() == pytest.approx([np.exp(5) / (np.exp(5) + 24)] * 6)


# ---- image and map together -------------------------------------------------------------------------------------


def striped(rows, columns, side=32):
    """An image of patches of random grey, and the map that calls each patch by its number."""
    greys = torch.randperm(rows * columns).reshape(rows, columns)
    pixels = (20 + 200 * greys / (rows * columns)).byte().numpy().repeat(side, 0).repeat(side, 1)
    return Image.fromarray(pixels).convert("RGB"), numbered_map(rows, columns), (20 + 200 * greys / (rows * columns))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_a_token_is_labelled_with_what_it_shows(seed, padded):
    rows, columns, grid = 4, 6, (4, 4)
    augment = AugmentConfig(
        scale=(0.3, 1.0), hflip=0.5, vflip=0.5, interpolation="nearest", crop_padding=8 if padded else 0
    )
    preprocess = Preprocess((32, 32), (0.0,), (1.0,), interpolation="nearest")
    transform = TokenLabelTransform(augment, preprocess, grid, rows * columns + 1)
    image, label_map, greys = striped(rows, columns)
    with isolated_rng(seed):
        name = random.choice(sorted(GEOMETRIC_OPS))
        hparams = {"interpolation": Image.Resampling.NEAREST, "img_mean": 0, "translate_const": 40}
        op = AugmentOp(name, prob=0.7, magnitude=9, hparams=hparams)
        aug_fn = op.aug_fn
        op.aug_fn = lambda image, value, **options: (
            transform.matrices.append(GEOMETRIC_OPS[name](value, *image.size)),
            aug_fn(image, value, **options),
        )[1]
        transform.colour = [op]
        x, target = transform(image, (3, label_map))
    assert target[:, 0].tolist() == [float(i == 3) for i in range(rows * columns + 1)]
    for token in range(16):
        r, c = divmod(token, 4)
        patch = x[0, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] * 255
        label = target[:, 2 + token]
        if label.max() < 0.8 or patch.max() - patch.min() > 1 or patch.mean() < 19:
            continue  # a token on the border of patches, or outside the image
        shown = divmod(int((greys - patch.mean()).abs().argmin()), columns)
        said = divmod(int(label.argmax()) - 1, columns)
        # a map that was moved is right to half a place
        slack = 1 if transform.matrices else 0
        assert max(abs(a - b) for a, b in zip(shown, said, strict=True)) <= slack


def test_smoothing_is_the_authors():
    transform = TokenLabelTransform(PLAIN, Preprocess((8, 8)), (2, 2), 5, smoothing=0.1)
    _, target = transform(Image.new("RGB", (8, 8)), (2, numbered_map(2, 2)))
    assert target[:, 0].tolist() == pytest.approx([0.02, 0.02, 0.92, 0.02, 0.02])
    plain = np.exp([0, 5, 0, 0, 0]) / (np.exp(5) + 4)
    assert target[:, 2].tolist() == pytest.approx((plain * 0.92 + 0.02).tolist())


def test_swapped_axes_exchange_rows_and_columns_of_the_box():
    augment = AugmentConfig(scale=(0.25, 0.25), ratio=(2.0, 2.0), hflip=0.0)
    label_map = random_map(8, 8, 1, 3)
    results = []
    for swap in (False, True):
        transform = TokenLabelTransform(augment, Preprocess((16, 16)), (2, 2), 3, swap_axes=swap)
        with isolated_rng(5):
            results.append(transform(Image.new("RGB", (64, 64)), (0, label_map))[1])
    with isolated_rng(5):
        torch.rand(1)
        top, left, height, width = transform_box(augment)
    box = (left / 64, top / 64, (left + width) / 64, (top + height) / 64)
    swapped = (box[1], box[0], box[3], box[2])
    torch.testing.assert_close(results[0][:, 1:], crop_labels(label_map, box, (2, 2), 3))
    torch.testing.assert_close(results[1][:, 1:], crop_labels(label_map, swapped, (2, 2), 3))


def transform_box(augment):
    from vitrail.data.transforms.classification import CropAndResize

    return CropAndResize.get_params(Image.new("RGB", (64, 64)), augment.scale, augment.ratio)


def test_randaugment_notes_its_moves_and_travels_to_workers():
    augment = AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=1.0)
    transform = pickle.loads(pickle.dumps(TokenLabelTransform(augment, Preprocess((32, 32)), (1, 1), 25)))
    image, label_map, _ = striped(4, 6, 8)
    seen = 0
    for seed in range(60):
        with isolated_rng(seed):
            first = transform(image, (0, label_map))
        seen += len(transform.matrices)
        with isolated_rng(seed):
            again = transform(image, (0, label_map))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert seen > 8
    assert label_map.equal(numbered_map(4, 6))  # what the data set holds is not changed


def test_without_augmentation_the_input_is_the_image():
    image, label_map, _ = striped(2, 2, 8)
    x, target = TokenLabelTransform(PLAIN, Preprocess((16, 16), (0.0,), (1.0,)), (2, 2), 5)(image, (1, label_map))
    assert torch.equal(x, TF.to_tensor(image))
    assert target[:, 2:].argmax(0).tolist() == [1, 2, 3, 4]


def test_augmix_is_refused():
    with pytest.raises(BadOption, match="auto_augment='augmix-m5' is not allowed with label maps"):
        TokenLabelTransform(AugmentConfig(auto_augment="augmix-m5"), Preprocess((8, 8)), (1, 1), 2)
