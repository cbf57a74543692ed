import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitrail import create_model
from vitrail.analysis.attention_weights import AttentionWeights
from vitrail.errors import UserError
from vitrail.lab.measures import Measures, _Distances, attention_spans, mean_of, packed, stage_rises


def test_hits_survive_packing():
    rng = np.random.default_rng(0)
    for count in (1, 7, 8, 9, 1000):
        hits = rng.integers(0, 2, count)
        assert np.array_equal(Measures(seed=0, correct=packed(hits), images=count).hits(), hits)


@pytest.mark.parametrize(("correct", "images"), [("ff", 9), ("ff", 0), ("f", 4), ("fg", 8), ("FF", 8), (" ff", 8)])
def test_hits_of_a_damaged_file_are_refused(correct, images):
    with pytest.raises(UserError, match="hexadecimal"):
        Measures(seed=0, correct=correct, images=images)


def span_of(weights: Tensor, places: Tensor, size: tuple[int, int], image: tuple[int, int]) -> tuple[float, float]:
    """Span in pixels, and if even, by the definition: a sum over pairs of tokens."""
    total = mass = even = rows = 0.0
    for w, queries in zip(weights.sum(2)[0], places[0], strict=True):
        for q, query in enumerate(queries.tolist()):
            distances = []
            for k, key in enumerate(queries.tolist()):
                if query < 0 or key < 0:
                    continue
                dy = (query // size[1] - key // size[1]) * image[0] / size[0]
                dx = (query % size[1] - key % size[1]) * image[1] / size[1]
                total, mass = total + float(w[q, k]) * math.hypot(dy, dx), mass + float(w[q, k])
                if w[q, k] > 0:
                    distances.append(math.hypot(dy, dx))
            if distances:
                even, rows = even + sum(distances) / len(distances), rows + 1
    return total / mass, even / rows


def test_spans_are_what_they_are_called():
    generator = torch.Generator().manual_seed(0)
    for size, image in (((4, 4), (32, 32)), ((2, 6), (16, 24))):
        count = size[0] * size[1]
        weights = torch.rand(1, 2, 3, count // 2, count // 2, generator=generator)
        weights[0, 0, :, 0, 1] = 0
        places = torch.randperm(count, generator=generator).reshape(1, 2, count // 2)
        places[0, 1, 0] = -1  # padding
        sums = _Distances()
        sums.add(AttentionWeights(weights, weights, places, places, query_size=size, key_size=size), image)
        pixels, even = span_of(weights, places, size, image)
        assert sums.pixels / sums.mass == pytest.approx(pixels, rel=1e-6)
        assert sums.even / sums.rows == pytest.approx(even, rel=1e-6)
        assert sums.pitch == pytest.approx(math.sqrt(image[0] * image[1] / count))


def test_spans_of_an_even_window_and_of_a_token_alone():
    # four tokens of a 2 x 2 window, 8 pixels apart: 0, 8, 8 and 8 sqrt(2) from each
    places = torch.arange(4).reshape(1, 1, 4)
    one = AttentionWeights(torch.full((1, 1, 1, 4, 4), 0.25), torch.ones(1), places, places, (2, 2), (2, 2))
    sums = _Distances()
    sums.add(one, (16, 16))
    assert sums.pixels / sums.mass == pytest.approx((16 + 8 * math.sqrt(2)) / 4)
    alone = AttentionWeights(torch.eye(4)[None, None, None], torch.ones(1), places, places, (2, 2), (2, 2))
    sums = _Distances()
    sums.add(alone, (16, 16))
    assert sums.pixels == 0


def small(mixer: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"width": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "stem_stride": 2}
    return create_model("lab_plain", num_classes=4, mixer=mixer, **options).eval()


def test_spans_of_networks():
    images = torch.randn(3, 3, 32, 32)
    assert attention_spans(small("depthwise"), images) == []
    spans = attention_spans(small("global"), images)
    assert [span.stage for span in spans] == [0, 1, 2, 3]
    for span, side in zip(spans, (16, 8, 4, 2), strict=True):
        axis = np.abs(np.subtract.outer(np.arange(side), np.arange(side))) * 32 / side
        grid = np.sqrt(axis[:, None, :, None] ** 2 + axis[None, :, None, :] ** 2)
        assert span.even_pixels == pytest.approx(grid.mean(), rel=1e-6)
        assert span.tokens == pytest.approx(span.pixels * side / 32)
        assert span.pixels == pytest.approx(span.even_pixels, rel=0.1)  # fresh weights attend almost evenly
    windows = attention_spans(small("window"), images)
    assert windows[0].pixels < spans[0].pixels


def test_spectra_after_each_stage():
    network = small("identity")
    rises = stage_rises(network, torch.randn(3, 3, 32, 32))
    assert [(one.stage, one.side) for one in rises] == [(0, 16), (1, 8), (2, 4), (3, 2)]
    assert rises[-1].relative is None  # a half diagonal of 2 x 2 has frequency 0 alone
    assert all(one.relative is not None and one.error > 0 for one in rises[:-1])
    assert stage_rises(network, torch.randn(1, 3, 32, 48)) == []
    assert stage_rises(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 8, 8)) == []


def test_means_of_what_is_known():
    assert mean_of([1.0, None, 3.0]) == 2.0
    assert mean_of([None]) is None
    assert mean_of([]) is None
