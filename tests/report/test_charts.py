"""Charts: positions on the drawing are those of the values."""

import math
import random
import re
from itertools import combinations, pairwise

import pytest

from vitrail.report.charts import (
    HEIGHT,
    MARGINS,
    WIDTH,
    Axis,
    Series,
    bar_chart,
    common_area,
    heat_map,
    line_chart,
    reliability_diagram,
    scatter_chart,
    ticks,
)

LEFT, RIGHT, TOP, BOTTOM = MARGINS[0], WIDTH - MARGINS[2], MARGINS[1], HEIGHT - MARGINS[3]
FIXED = {"x": Axis("x", 0, 10), "y": Axis("y", 0, 1)}


def lines(chart):
    """The points of each line, as (command, x, y)."""
    paths = re.findall(r'<path d="([^"]*)" class="s\d" stroke-width="2"', chart.markup.split("<ul")[0])
    return [[(c, float(x), float(y)) for c, x, y in re.findall(r"([ML])(\S+?) ([\d.-]+)", path)] for path in paths]


def test_line_points():
    chart = line_chart([Series("a", [0, 5, 10], [0, 0.5, 1])], "t", **FIXED)
    assert lines(chart) == [[("M", LEFT, BOTTOM), ("L", (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2), ("L", RIGHT, TOP)]]


def test_gaps_are_not_bridged():
    chart = line_chart([Series("a", range(5), [0, None, 1, math.nan, 0.5])], "t", **FIXED)
    assert [c for c, _, _ in lines(chart)[0]] == ["M", "M", "M"]


def test_nothing_to_draw():
    assert "nothing to draw" in line_chart([Series("a", [1], [None])], "t").markup


def test_logarithmic_axis():
    chart = line_chart([Series("a", [1, 10, 100], [0, 0, 1])], "t", x=Axis("x", log=True), y=Axis("y", 0, 1))
    xs = [x for _, x, _ in lines(chart)[0]]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)


def test_ticks_are_round_and_inside():
    draw = random.Random(0)
    for _ in range(300):
        low = draw.uniform(-1, 1) * 10 ** draw.randint(-4, 6)
        high = low + 10 ** draw.uniform(-5, 6)
        marks = ticks(low, high)
        step = (high - low) / 6
        assert 2 <= len(marks) <= 7
        assert all(low - 1e-6 * step <= m <= high + 1e-6 * step for m in marks)
        gaps = {round((b - a) / 10 ** math.floor(math.log10(b - a) + 1e-9), 3) for a, b in pairwise(marks)}
        assert gaps <= {1.0, 2.0, 5.0, 10.0}


def test_error_bars_reach_their_ends():
    one = Series("a", [5], [0.5], [0.25], [1.0], ["label"])
    bar = re.search(r'd="M\S+ (\S+)V(\S+?)M[^"]*" class="s0"', scatter_chart([one], "t", **FIXED).markup)
    assert float(bar.group(1)) == pytest.approx(BOTTOM - 0.25 * (BOTTOM - TOP))
    assert float(bar.group(2)) == pytest.approx(TOP)
    assert ">label</text>" in scatter_chart([one], "t", **FIXED).markup


def test_texts_beside_points_do_not_cover_each_other():
    draw = random.Random(1)
    xs, ys = [draw.uniform(3, 7) for _ in range(20)], [draw.uniform(0.2, 0.8) for _ in range(20)]
    numbers = [str(i + 1) for i in range(20)]
    one = Series("", xs, ys, labels=[f"name {i}" for i in numbers], short=numbers)
    drawn = scatter_chart([one], "t", **FIXED).markup
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)">(\d+)</text>', drawn)
    assert [number for _, _, number in texts] == numbers
    boxes = [(float(x), float(y) - 10, float(x) + 7 * len(number), float(y)) for x, y, number in texts]
    assert sum(common_area(a, b) > 0 for a, b in combinations(boxes, 2)) == 0
    assert "<title>name 3, " in drawn  # the name is the tooltip


def test_bars_are_as_long_as_their_values():
    widths = re.findall(r'width="([\d.]+)" height="11"', bar_chart([("a", 4), ("b", 1), ("c", 0)], "t").markup)
    assert [float(w) for w in widths] == [pytest.approx(WIDTH - 12), pytest.approx((WIDTH - 12) / 4), 1]


def test_heat_map_cells():
    chart = heat_map([[4, 0], [-2, None]], "t", rows="ab", columns="cd", link=lambda i, j: f"cell-{i}-{j}").markup
    assert re.findall(r'class="(heat|cold)" fill-opacity="([\d.]+)"', chart) == [("heat", "1"), ("cold", "0.5")]
    assert re.findall(r'href="(#[^"]*)"', chart) == ["#cell-0-0", "#cell-1-0"]


def test_reliability_diagram_leaves_out_empty_bins():
    chart = reliability_diagram([(0.0, 0.0, 0), (0.5, 0.25, 4), (1.0, 1.0, 6)], "t")
    assert lines(chart) == [
        [("M", (LEFT + RIGHT) / 2, pytest.approx(BOTTOM - 0.25 * (BOTTOM - TOP), abs=0.06)), ("L", RIGHT, TOP)]
    ]


def test_series_differ_without_colour():
    chart = line_chart([Series(str(i), [0, 1], [i, i]) for i in range(7)], "t").markup
    dashes = re.findall(r'class="s\d" stroke-width="2"(?: stroke-dasharray="([\d ]+)")?', chart.split("<ul")[0])
    assert len(set(dashes)) == 7
