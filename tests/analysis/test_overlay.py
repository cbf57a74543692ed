"""Maps carried back to the original image."""

import numpy as np
import pytest
from PIL import Image

from vitrail.analysis.overlay import carried_back, input_window, overlay
from vitrail.config.data import Preprocess
from vitrail.data.transforms.classification import eval_transform

SIZES = [(64, 64), (301, 97), (97, 301), (33, 500), (1001, 13), (640, 427), (20, 31)]


@pytest.mark.parametrize("preprocess", [((64, 64), 0.875), ((64, 64), 1.0), ((48, 80), 0.9)])
@pytest.mark.parametrize("size", SIZES)
def test_a_marked_place_lands_where_it_was(size, preprocess):
    """A bright blot of the original is found at its place after the transform and its inverse."""
    preprocess = Preprocess(preprocess[0], mean=(0.0,), std=(1.0,), crop_pct=preprocess[1], interpolation="bilinear")
    window = input_window(size, preprocess)
    assert window.input == preprocess.image_size[::-1]
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.uniform(window.left + 0.2 * window.width, window.left + 0.8 * window.width)
        y = rng.uniform(window.top + 0.2 * window.height, window.top + 0.8 * window.height)
        # wide enough to survive being made smaller
        wide, high = 4 * max(1, window.width / window.input[0]), 4 * max(1, window.height / window.input[1])
        columns, rows = np.arange(size[0]) + 0.5, np.arange(size[1])[:, None] + 0.5
        blot = 255 * np.exp(-(((columns - x) / wide) ** 2) - ((rows - y) / high) ** 2)
        image = Image.fromarray(blot.round().astype(np.uint8)).convert("RGB")
        seen = eval_transform(preprocess)(image).numpy()[0]
        back = carried_back(seen, window)
        assert back.shape == (size[1], size[0])
        inside = ~np.isnan(back)
        assert np.abs(back[inside] * 255 - blot[inside]).max() < 32
        row, column = np.unravel_index(np.nanargmax(back), back.shape)
        assert abs(column + 0.5 - x) <= max(1.5, window.width / window.input[0])
        assert abs(row + 0.5 - y) <= max(1.5, window.height / window.input[1])
        place = window.to_input(column, row)
        again = window.to_image(*place)
        assert abs(again[0] - column - 0.5) <= window.width / window.input[0]
        assert abs(again[1] - row - 0.5) <= window.height / window.input[1]


def test_without_a_crop_all_of_the_image_is_coloured_and_nothing_moves():
    window = input_window((32, 32), Preprocess((32, 32), crop_pct=1.0))
    values = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    np.testing.assert_allclose(carried_back(values, window), values, atol=1e-6)
    np.testing.assert_array_equal(carried_back(values, window, smooth=False), values)
    np.testing.assert_array_equal(carried_back(values, window, slice(3, 7), smooth=False), values[3:7])


def test_what_was_cropped_off_stays_as_it_was():
    window = input_window((100, 50), Preprocess((32, 32), crop_pct=1.0))
    assert (window.left, window.top, window.width, window.height) == (25, 0, 50, 50)
    assert window.to_input(24, 10) is None
    assert window.to_input(25, 0) == (0, 0)
    assert window.to_input(74, 49) == (31, 31)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8))
    drawn = overlay(image, np.ones((4, 4)), window, title="a title of a few words", label="share", mark=(30, 40))
    assert drawn.width >= 100
    at = next(
        top
        for top in range(drawn.height - 49)
        if np.array_equal(np.asarray(drawn)[top : top + 50, :25], np.asarray(image)[:, :25])
    )
    picture = np.asarray(drawn)[at : at + 50, :100]
    np.testing.assert_array_equal(picture[:, 75:], np.asarray(image)[:, 75:])
    assert (picture[:, 26:74] != np.asarray(image)[:, 26:74]).any(2).mean() > 0.9
    assert picture[40, 30].tolist() == [255, 255, 255]
