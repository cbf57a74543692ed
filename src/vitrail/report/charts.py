"""Charts as inline SVG: lines, points with error bars, bars, heat maps, reliability diagrams.

Colours come from the page's style, so that a chart is right on light and dark pages; every series also has its own dash
pattern and marker, so that none is told by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import printable
from .html import Content, Html, number, short, tag

#: size of a chart in its own units: drawn about as wide on a phone, where letters of 12 stay readable
WIDTH, HEIGHT = 420, 270
#: around the plot: left, top, right, bottom
MARGINS = (54, 10, 12, 40)
#: dash patterns of series, by their number
DASHES = (None, "6 3", "2 3", "8 3 2 3", "10 4", "4 2 1 2", "1 2")
#: most series that differ in colour
SERIES = len(DASHES)
#: most characters of a name beside or in a chart
MOST_LETTERS = 28
#: width of a letter in a chart, at most
LETTER = 7.0
#: lines with more points have no markers
MOST_MARKED = 25
#: most rows and columns of a heat map whose names and numbers are drawn
MOST_NAMED, MOST_NUMBERED = 60, 25


@dataclass
class Series:
    """Points of one name.

    Attributes:
        name: in the legend.
        xs: positions.
        ys: heights; None and NaN are gaps.
        low: lower ends of error bars, None = none.
        high: upper ends of error bars.
        labels: a text at each point, or its tooltip.
        short: texts at the points in the place of `labels`, which are then tooltips only.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    labels: Sequence[str] | None = None
    short: Sequence[str] | None = None

    def points(self) -> list[tuple[int, float, float]]:
        """Number, x and y of the points that can be drawn."""
        return [
            (i, float(x), float(y))
            for i, (x, y) in enumerate(zip(self.xs, self.ys, strict=True))
            if y is not None and math.isfinite(x) and math.isfinite(y)
        ]

    def ends(self, i: int) -> tuple[float, float] | None:
        """The ends of a point's error bar."""
        if self.low is None or self.high is None:
            return None
        low, high = self.low[i], self.high[i]
        return None if low is None or high is None else (float(low), float(high))


@dataclass
class Axis:
    """One axis of a chart.

    Attributes:
        label: with the unit.
        low: end of the axis; None = of the data.
        high: end of the axis; None = of the data.
        log: logarithmic; all values must be positive.
        whole: ticks at whole numbers only.
    """

    label: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False


@dataclass
class _Scale:
    """An axis with its range on the drawing."""

    axis: Axis
    start: float
    stop: float
    low: float = field(init=False)
    high: float = field(init=False)

    def fit(self, values: Sequence[float], margin: float = 0.0) -> _Scale:
        """The scale that shows these values, with `margin` of the range around them, up to round numbers."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if self.axis.log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
        space = margin * (high - low)
        low, high = low - space, high + space
        given = [None if v is None else math.log10(v) if self.axis.log else v for v in (self.axis.low, self.axis.high)]
        self.low = low if given[0] is None else given[0]
        self.high = high if given[1] is None else given[1]
        return self

    def __call__(self, value: float) -> float:
        """The position of a value on the drawing."""
        place = math.log10(value) if self.axis.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range."""
        if not self.axis.log:
            marks = ticks(self.low, self.high)
            return [mark for mark in marks if mark == int(mark)] if self.axis.whole else marks
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1,) if self.high - self.low > 3 else (1, 2, 5) if self.high - self.low > 0.7 else range(1, 10)
        marks = [step * 10.0**decade for decade in decades for step in steps]
        return [mark for mark in marks if self.low - 1e-9 <= math.log10(mark) <= self.high + 1e-9]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values (steps of 1, 2 or 5 times a power of ten) from `low` to `high`, at most `most`."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def line_chart(
    series: Sequence[Series], title: str, *, x: Axis | None = None, y: Axis | None = None, note: Content = None
) -> Html:
    """Lines through points, in the order of their x."""
    return _chart(series, title, (x or Axis(), y or Axis()), _line, note=note)


def scatter_chart(
    series: Sequence[Series], title: str, *, x: Axis | None = None, y: Axis | None = None, note: Content = None
) -> Html:
    """Points with error bars and labels."""
    return _chart(series, title, (x or Axis(), y or Axis()), _marks, note=note, margin=0.08)


def bar_chart(
    bars: Sequence[tuple[str, float]],
    title: str,
    *,
    unit: str = "",
    ends: Sequence[tuple[float, float] | None] | None = None,
    digits: int = 2,
    note: Content = None,
) -> Html:
    """Horizontal bars from zero, each under its name; any number of them, names of any length.

    Args:
        bars: names and values.
        title: of the chart.
        unit: behind the numbers.
        ends: of error bars.
        digits: behind the point.
        note: below the chart.
    """
    around = [end for pair in ends or () if pair for end in pair]
    values = [0.0, *(v for _, v in bars if math.isfinite(v)), *around]
    line, left, right = 38, 6, WIDTH - 6
    scale = _Scale(Axis(low=min(values), high=max(values) or 1.0), left, right).fit(values)
    drawn: list[Content] = []
    for i, (name, value) in enumerate(bars):
        top, end = i * line, scale(value) if math.isfinite(value) else scale(0)
        a, b = sorted((scale(0), end))
        drawn += [
            tag("text", _cut(name, 44), x=left, y=top + 14, class_="ink"),
            tag("text", f"{number(value, digits)}{unit}", x=right, y=top + 14, text_anchor="end", class_="ink"),
            tag("rect", x=_n(a), y=top + 19, width=_n(max(b - a, 1)), height=11, class_="f0"),
        ]
        pair = ends[i] if ends else None
        if pair:
            low, high, middle = scale(pair[0]), scale(pair[1]), top + 24.5
            path = f"M{_n(low)} {middle}H{_n(high)}M{_n(low)} {middle - 4}v8M{_n(high)} {middle - 4}v8"
            drawn.append(tag("path", d=path, class_="axis"))
    return _figure(title, _svg(title, drawn, WIDTH, max(line * len(bars), 1)), note=note)


def heat_map(
    values: Sequence[Sequence[float | None]],
    title: str,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str] = ("", ""),
    texts: Callable[[int, int], str] | None = None,
    link: Callable[[int, int], str | None] | None = None,
    note: Content = None,
) -> Html:
    """Cells coloured by their values: none at zero, strongest at the largest; negative ones in another colour.

    Args:
        values: a row of numbers each; None and zero leave a cell empty.
        title: of the chart.
        rows: names of the rows.
        columns: names of the columns.
        labels: of the axes: what the rows are, what the columns are.
        texts: of a row and a column: what stands in the cell; by default the value.
        link: of a row and a column: the place of the page that a click leads to.
        note: below the chart.
    """
    most = max((abs(v) for row in values for v in row if v is not None), default=0.0) or 1.0
    count = max(len(rows), len(columns), 1)
    cell = max(5.0, min(34.0, 700 / count))
    named = count <= MOST_NAMED
    longest = max((len(_cut(name)) for name in (*rows, *columns)), default=0)
    space = 7.0 * longest + 12 if named else 14.0
    left, top = space + 16, 6.0
    drawn: list[Content] = []
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not value:
                continue
            strength = abs(value) / most
            words = texts(i, j) if texts else f"{value:.3g}".replace("-", "−")
            drawn.append(
                _cell(
                    (left + j * cell, top + i * cell, cell),
                    (f"{labels[0]} {rows[i]}, {labels[1]} {columns[j]}: {words}".strip(), words),
                    ("heat" if value > 0 else "cold", strength, count <= MOST_NUMBERED),
                    link(i, j) if link else None,
                )
            )
    right, bottom = left + len(columns) * cell, top + len(rows) * cell
    frame = tag("rect", x=_n(left), y=top, width=_n(right - left), height=_n(bottom - top), class_="axis")
    if named:
        for i, name in enumerate(rows):
            drawn.append(tag("text", _cut(name), x=_n(left - 5), y=_n(top + (i + 0.5) * cell + 4), text_anchor="end"))
        for j, name in enumerate(columns):
            at = f"{_n(left + (j + 0.5) * cell + 4)} {_n(bottom + 6)}"
            drawn.append(tag("text", _cut(name), transform=f"translate({at}) rotate(-90)", text_anchor="end"))
    middle = f"translate(11 {_n((top + bottom) / 2)}) rotate(-90)"
    drawn += [
        tag("text", labels[0], transform=middle, text_anchor="middle"),
        tag("text", labels[1], x=_n((left + right) / 2), y=_n(bottom + space + 10), text_anchor="middle"),
    ]
    svg = _svg(title, [frame, *drawn], right + 6, bottom + space + 16, fixed=True, group=link is not None)
    return _figure(title, tag("div", svg, class_="box", tabindex="0", role="region", aria_label=title), note=note)


def _cell(
    place: tuple[float, float, float], words: tuple[str, str], look: tuple[str, float, bool], target: str | None
) -> Html:
    """One cell of a heat map: its place and side, its tooltip and text, its colour, strength and whether to write."""
    (x, y, side), (tip, text), (colour, strength, written) = place, words, look
    parts: list[Content] = [
        tag("title", tip),
        tag("rect", x=_n(x), y=_n(y), width=_n(side), height=_n(side), class_=colour, fill_opacity=_n(strength, 3)),
    ]
    if written:
        ink = "over" if strength > 0.55 else "ink"
        parts.append(tag("text", text, x=_n(x + side / 2), y=_n(y + side / 2 + 4), text_anchor="middle", class_=ink))
    return tag("a", parts, href=f"#{target}", aria_label=tip) if target else tag("g", parts)


def reliability_diagram(
    bins: Sequence[tuple[float, float, int]], title: str, *, name: str = "accuracy", note: Content = None
) -> Html:
    """Accuracy over confidence; of a calibrated classifier all points lie on the diagonal.

    Args:
        bins: of each its mean confidence, accuracy, and number of images; empty ones are left out.
        title: of the chart.
        name: of the series.
        note: below the chart.
    """
    return reliability_diagrams([(name, bins)], title, note=note)


def reliability_diagrams(
    classifiers: Sequence[tuple[str, Sequence[tuple[float, float, int]]]], title: str, *, note: Content = None
) -> Html:
    """The reliability diagrams of several classifiers in one: names and bins, see `reliability_diagram`."""
    series = []
    for name, bins in classifiers:
        full = [one for one in bins if one[2]]
        tips = [f"{count:,} images" for _, _, count in full]
        series.append(Series(name, [one[0] for one in full], [one[1] for one in full], labels=tips))
    axes = (Axis("confidence", 0.0, 1.0), Axis("accuracy", 0.0, 1.0))

    def diagonal(across: _Scale, up: _Scale) -> Html:
        path = f"M{_n(across(0))} {_n(up(0))}L{_n(across(1))} {_n(up(1))}"
        return tag("path", d=path, class_="axis", stroke_dasharray="4 4")

    return _chart(series, title, axes, _line, note=note, behind=diagonal, marked=True)


# ---- shared parts -----------------------------------------------------------------------------------------------


def _chart(
    series: Sequence[Series],
    title: str,
    axes: tuple[Axis, Axis],
    draw: Callable[..., list[Content]],
    *,
    note: Content = None,
    margin: float = 0.0,
    behind: Callable[[_Scale, _Scale], Html] | None = None,
    marked: bool = False,
) -> Html:
    """A chart of series on two axes with a legend."""
    known = [(i % SERIES, one) for i, one in enumerate(series) if one.points()]
    if not known:
        return _figure(title, tag("p", "There is nothing to draw.", class_="quiet"), note=note)
    left, top, right, bottom = MARGINS[0], MARGINS[1], WIDTH - MARGINS[2], HEIGHT - MARGINS[3]
    points = [(x, y) for _, one in known for _, x, y in one.points()]
    ends = [end for _, one in known for i, _, _ in one.points() for end in one.ends(i) or ()]
    across = _Scale(axes[0], left, right).fit([x for x, _ in points], margin)
    up = _Scale(axes[1], bottom, top).fit([y for _, y in points] + ends, max(margin, 0.04))
    drawn: list[Content] = [_axes(across, up)]
    if behind:
        drawn.append(behind(across, up))
    for i, one in known:
        drawn.append(tag("g", draw(one, i, (across, up), marked), class_="series"))
    legend = [(short(one.name, 60), _sample(i, draw is _line)) for i, one in known if one.name]
    return _figure(title, _svg(_described(title, axes, known), drawn, WIDTH, HEIGHT), legend, note)


def _described(title: str, axes: tuple[Axis, Axis], known: Sequence[tuple[int, Series]]) -> str:
    """What a chart shows, for readers who cannot see it."""
    parts = []
    for _, one in known:
        ys = [y for _, _, y in one.points()]
        parts.append(f"{one.name or 'values'} from {ys[0]:.4g} to {ys[-1]:.4g}")
    over = f", {axes[1].label or 'values'} over {axes[0].label}" if axes[0].label else ""
    return f"{title}{over}: {'; '.join(parts)}"


def _axes(across: _Scale, up: _Scale) -> Html:
    """Grid, ticks and labels of both axes."""
    parts: list[Content] = []
    for mark in across.ticks():
        x = across(mark)
        parts.append(tag("path", d=f"M{_n(x)} {up.stop}V{up.start}", class_="grid"))
        parts.append(tag("text", _tick(mark), x=_n(x), y=_n(up.start + 15), text_anchor="middle"))
    for mark in up.ticks():
        y = up(mark)
        parts.append(tag("path", d=f"M{across.start} {_n(y)}H{across.stop}", class_="grid"))
        parts.append(tag("text", _tick(mark), x=_n(across.start - 6), y=_n(y + 4), text_anchor="end"))
    middle = f"translate(11 {_n((up.start + up.stop) / 2)}) rotate(-90)"
    parts += [
        tag("path", d=f"M{across.start} {up.stop}V{up.start}H{across.stop}", class_="axis"),
        tag(
            "text", across.axis.label, x=_n((across.start + across.stop) / 2), y=_n(up.start + 33), text_anchor="middle"
        ),
        tag("text", up.axis.label, transform=middle, text_anchor="middle"),
    ]
    return tag("g", parts)


def _line(series: Series, i: int, scales: tuple[_Scale, _Scale], marked: bool) -> list[Content]:
    """A line with gaps where there is no value; markers where the points are few."""
    across, up = scales
    points, path, last = series.points(), "", -2
    for place, x, y in points:
        path += f"{'L' if place == last + 1 else 'M'}{_n(across(x))} {_n(up(y))}"
        last = place
    parts: list[Content] = [tag("path", d=path, class_=f"s{i}", stroke_width=2, stroke_dasharray=DASHES[i])]
    if marked or len(points) <= MOST_MARKED:
        parts += _marks(series, i, scales, marked, written=False)
    return parts


def _marks(
    series: Series, i: int, scales: tuple[_Scale, _Scale], marked: bool, *, written: bool = True
) -> list[Content]:
    """Markers with error bars; labels stand beside them, or are their tooltips."""
    across, up = scales
    parts: list[Content] = []
    points = series.points()
    taken = [_box(across(x) - 5, up(y) + 5, 10) for _, x, y in points]
    for place, x, _ in points:
        if (ends := series.ends(place)) is not None:
            taken.append((across(x) - 4, up(ends[1]), across(x) + 4, up(ends[0])))
    for place, x, y in points:
        at, label = (across(x), up(y)), series.labels[place] if series.labels else ""
        ends = series.ends(place)
        if ends:
            low, high = up(ends[0]), up(ends[1])
            bar = f"M{_n(at[0])} {_n(low)}V{_n(high)}M{_n(at[0] - 4)} {_n(low)}h8M{_n(at[0] - 4)} {_n(high)}h8"
            parts.append(tag("path", d=bar, class_=f"s{i}", stroke_width=1.5))
        tip = ", ".join(filter(None, (series.name, label, f"{_tick(x)}: {y:.4g}")))
        parts.append(tag("path", tag("title", tip), d=_marker(i, *at), class_=f"f{i}"))
        text = _cut(series.short[place] if series.short else label)
        if text and written:
            left, base = _free_place(at, LETTER * len(text), taken)
            parts.append(tag("text", text, x=_n(left), y=_n(base)))
    return parts


#: left, top, right, bottom on the drawing
_Box = tuple[float, float, float, float]


def _box(left: float, bottom: float, width: float, height: float = 10) -> _Box:
    return left, bottom - height, left + width, bottom


def _free_place(at: tuple[float, float], width: float, taken: list[_Box]) -> tuple[float, float]:
    """Left end and base line of a text beside a point, where it covers least of what is drawn; it is then taken."""
    x, y = at
    sides = (x + 8, x - 8 - width, x - width / 2)
    places = [(left, y + down) for down in (-6, 4, 14) for left in sides[:2]] + [(sides[2], y - 9), (sides[2], y + 19)]
    inside = [one for one in places if MARGINS[0] <= one[0] and one[0] + width <= WIDTH and one[1] >= 10]
    best = min(inside or places, key=lambda one: sum(common_area(_box(*one, width), other) for other in taken))
    taken.append(_box(*best, width))
    return best


def common_area(one: Sequence[float], other: Sequence[float]) -> float:
    """Area that two boxes (left, top, right, bottom) have in common."""
    sides = [min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1)]
    return max(sides[0], 0.0) * max(sides[1], 0.0)


def _marker(i: int, x: float, y: float, r: float = 4.5) -> str:
    """The outline of a series' marker: circle, square, triangle, diamond, cross, bar, triangle downwards."""
    shapes = (
        f"M{_n(x - r)} {_n(y)}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"M{_n(x - r)} {_n(y - r)}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{_n(x)} {_n(y - r - 1)}l{r + 1} {2 * r}h{-2 * r - 2}z",
        f"M{_n(x)} {_n(y - r - 1)}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z",
        f"M{_n(x - 1.5)} {_n(y - r)}h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
        f"M{_n(x - r)} {_n(y - 2)}h{2 * r}v4h{-2 * r}z",
        f"M{_n(x)} {_n(y + r + 1)}l{r + 1} {-2 * r}h{-2 * r - 2}z",
    )
    return shapes[i]


def _sample(i: int, line: bool) -> Html:
    """A series' entry in the legend."""
    parts: list[Content] = []
    if line:
        parts.append(tag("path", d="M1 6H27", class_=f"s{i}", stroke_width=2, stroke_dasharray=DASHES[i]))
    parts.append(tag("path", d=_marker(i, 14, 6), class_=f"f{i}"))
    return tag("svg", parts, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")


def _figure(title: str, drawing: Content, legend: Sequence[tuple[Content, Html]] = (), note: Content = None) -> Html:
    """A chart with its title above, legend and note below."""
    entries = [tag("li", sample, tag("span", name)) for name, sample in legend]
    below = [tag("ul", entries, class_="legend") if entries else None, tag("figcaption", note) if note else None]
    return tag("figure", tag("figcaption", title), drawing, below, class_="chart")


def _svg(
    label: str, content: Content, width: float, height: float, *, fixed: bool = False, group: bool = False
) -> Html:
    """A drawing that fills its column, or of `fixed` size; a `group` has links in it."""
    size = {"width": _n(width), "height": _n(height)} if fixed else {}
    role = {"role": "group" if group else "img", "aria_label": label}
    return tag("svg", content, viewBox=f"0 0 {_n(width)} {_n(height)}", **size, **role)


def _cut(name: str, most: int = MOST_LETTERS) -> str:
    """A name as short as a drawing needs it; control characters are escaped before they are counted."""
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _tick(value: float) -> str:
    """A tick's number: short, with k, M and G for thousands, millions and billions."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _n(value: Any, digits: int = 1) -> str:
    """A coordinate, as short as it can be written."""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
