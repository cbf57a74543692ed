"""Names of any script on images of any shape."""

from __future__ import annotations

import itertools
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from vitrail.structures import ClassProbabilities
from vitrail.utils import draw as drawing
from vitrail.utils import lettering
from vitrail.utils.draw import (
    BAND,
    bands,
    draw_boxes,
    draw_classes,
    draw_masks,
    draw_ranking,
    side_by_side,
    with_bars,
    with_legend,
    within,
    wrapped,
)
from vitrail.utils.lettering import fonts, lettered, missing_in

NAMES = [
    "é",
    "ü",
    "ß",
    "e",
    "猫",
    "犬",
    "Ж",
    "Я",
    "ελ",
    "مر",
    "שם",
    "ไทย",
    "हि",
    "😀",
    "🐈",
    "a\x1bb",
    "a\nb",
    "caf\udce9",
    "[b]",
    "$x$",
]


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some names have letters")
        yield


def ways():
    image = Image.new("RGB", (256, 200), "gray")
    box = [[40.0, 60.0, 90.0, 90.0]]
    yield lambda name: ClassProbabilities([name], [0.5]).draw(image)
    yield lambda name: draw_boxes(image, box, [name], [0])
    yield lambda name: with_legend(image, [(name, (1, 2, 3))])
    yield lambda name: draw_classes(image, np.zeros((200, 256), np.uint8), [name])
    yield lambda name: draw_ranking(image, [(image, name, True)])


@pytest.mark.parametrize("way", list(ways()), ids=["bars", "boxes", "legend", "classes", "ranking"])
@pytest.mark.parametrize("no_fonts", [False, True])
def test_different_names_are_drawn_differently(way, no_fonts, monkeypatch):
    if no_fonts:  # a machine without any: letters become their code points
        lettering._best.cache_clear()
        monkeypatch.setattr(lettering, "fonts", lambda: ())
    drawn = {name: np.asarray(way(name)) for name in NAMES}
    for a, b in itertools.combinations(NAMES, 2):
        assert drawn[a].shape != drawn[b].shape or (drawn[a] != drawn[b]).any(), (a, b)
    lettering._best.cache_clear()


def test_a_font_is_said_to_have_the_letters_that_its_table_has():
    tables = pytest.importorskip("fontTools.ttLib")
    path = next(iter(fonts()), None)
    if path is None:
        pytest.skip("this machine has no fonts")
    table = tables.TTFont(path).getBestCmap()
    letters = [
        chr(c) for c in np.random.RandomState(0).permutation(0x3000)[:600] if unicodedata.category(chr(c))[0] in "LNS"
    ]
    letters += ["猫", "字", "é", "A"]
    # a letter may be drawn as another's box only if it is no letter
    lacks = missing_in(path, frozenset(letters))
    assert {c for c in letters if ord(c) not in table} == lacks


def test_what_no_font_has_is_written_as_code_points_and_said(monkeypatch):
    lettering._best.cache_clear()
    monkeypatch.setattr(lettering, "fonts", lambda: ())
    with pytest.warns(UserWarning, match=r"no font of this machine has.*Noto Sans CJK"):
        font, text = lettered("a猫 é", 20)
    assert text == "aU+732B U+00E9"
    assert font.getlength(text) > 0
    lettering._best.cache_clear()


def test_plain_names_keep_their_font():
    assert lettered("dog [side] $1", 20)[0].getname() == lettered("x", 20)[0].getname()
    assert lettered("a\x1b[2J", 20)[1] == "a\\x1b[2J"


SHAPES = [(1, 1), (5000, 1), (1, 5000), (100_000, 3), (3, 100_000), (640, 480), (33, 31), (20_000, 20)]


@pytest.mark.parametrize("size", SHAPES)
def test_bars_of_images_of_any_shape_are_bounded(size):
    image = Image.new("RGB", size, (10, 200, 30))
    drawn = with_bars(image, [("猫 name", 0.7), ("b", 0.2)])
    assert drawn.width * drawn.height <= 4 * max(size[0] * size[1], 2**22)
    assert drawn.width >= 256
    assert max(drawn.size) <= drawing.LONGEST_SIDE + 500
    assert np.asarray(drawn)[0, 0].tolist() == [10, 200, 30]


def test_bars_are_as_long_as_the_shares():
    drawn = np.asarray(with_bars(Image.new("RGB", (1009, 300), "black"), [("", 1.0), ("", 0.25)]))
    line = 1009 // 20
    for row, share in enumerate((1.0, 0.25)):
        middle = drawn[300 + 4 + row * line + line // 2]
        assert abs((middle != 255).any(1).sum() - (1000 * share + 1)) <= 1


@pytest.mark.parametrize("size", SHAPES)
def test_boxes_masks_and_legends_on_images_of_any_shape(size):
    image = Image.new("RGB", size, "gray")
    whole = np.ones(size[::-1], bool)
    assert draw_boxes(image, [[0, 0, *size]], ["name"], [3]).size == size
    assert draw_masks(image, [whole], [2]).size == size
    legend = draw_classes(image, whole.astype(np.uint8), ["a", "b"])
    assert legend.size[0] == size[0]
    assert legend.size[1] <= size[1] + 100 + size[1] // 10


def test_a_legend_of_many_classes_is_bounded():
    image = Image.new("RGB", (40, 30))
    assert with_legend(image, [(f"name {i}", (0, 0, 0)) for i in range(10_000)]).height < 2000


@pytest.mark.parametrize(("width", "height"), [(7, 5), (1, 9), (2000, 3000), (BAND + 5, 3), (3, BAND)])
def test_bands_are_all_rows_once(width, height):
    parts = list(bands(width, height))
    assert np.concatenate([np.arange(height)[rows] for rows in parts]).tolist() == list(range(height))
    assert all(len(range(height)[rows]) * width <= max(BAND, width) for rows in parts)


def test_masks_are_blended_as_in_one_piece(monkeypatch):
    random = np.random.RandomState(1)
    image = Image.fromarray(random.randint(0, 256, (23, 17, 3), np.uint8))
    masks = [random.rand(23, 17) < 0.5 for _ in range(4)]
    expected = np.asarray(image).astype(np.float64)
    for i, mask in enumerate(masks):
        expected[mask] = (expected[mask] + np.array(drawing.colour_of(i))) / 2
    monkeypatch.setattr(drawing, "BAND", 40)
    drawn = np.asarray(draw_masks(image, masks, range(4))).astype(np.float64)
    assert np.abs(drawn - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("size", "longest", "expected"), [((10, 5), 10, (10, 5)), ((1000, 3), 100, (100, 1)), ((30, 90), 45, (15, 45))]
)
def test_within(size, longest, expected):
    assert within(Image.new("RGB", size), longest).size == expected


@pytest.mark.parametrize("bottoms", [False, True])
def test_images_stand_in_rows_aligned_at_the_top_or_the_bottom(bottoms):
    shades, sizes = (10, 20, 30), ((4, 6), (5, 3), (2, 2))
    images = [Image.new("RGB", size, (shade,) * 3) for shade, size in zip(shades, sizes, strict=True)]
    sheet = np.asarray(side_by_side(images, columns=2, bottoms=bottoms))[..., 0]
    expected = np.full((6 + 2, 4 + 5), 255, dtype=np.uint8)
    expected[:6, :4] = 10
    expected[slice(3, 6) if bottoms else slice(3), 4:] = 20
    expected[6:, :2] = 30
    assert (sheet == expected).all()
    assert side_by_side(images).size == (11, 6)


def test_percent_signs_stay_with_their_numbers():
    assert wrapped("pants with 93.1 % here", 150, 16) == ["pants with", "93.1 % here"]
    lines = [line for width in range(60, 400, 7) for line in wrapped("a 93.1 % b 0.4 % c", width, 10)]
    assert not any(line.startswith("%") for line in lines)
    assert wrapped("", 100, 10) == [""]
