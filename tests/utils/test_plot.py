import warnings

import matplotlib.text
import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.utils.plot import draw_confusion, draw_curves, place_labels, rendered

NAMES = [
    "cash$_$",
    "$\\frac{",
    "\\",
    "{}_^~%#&",
    "a\nb\tc",
    "\x1b[31mred",
    "",
    "naïve café",
    "x" * 5000,
    "$x$",
    "caf\udce9",
    "[bold]",
    "猫",
    "\u202eabc",
]


def confusion(path, names):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")  # a letter that the font has not
        warnings.filterwarnings("ignore", message="Some names have letters that no font")
        draw_confusion(torch.eye(len(names), dtype=torch.int64), names, path)
    return np.asarray(Image.open(path).convert("L"), dtype=np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn(tmp_path, name):
    drawn = confusion(tmp_path / "a.png", [name, "other"])
    assert max(drawn.shape) < 2000


def test_a_name_is_text_and_no_formula(tmp_path, monkeypatch):
    import matplotlib
    from matplotlib.text import Text

    before, drawn, draw = dict(matplotlib.rcParams), {}, Text.draw

    def noted(text, *args, **kwargs):
        drawn[text.get_text()] = text.get_parse_math() or text.get_usetex()
        return draw(text, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", noted)
    with matplotlib.rc_context({"text.usetex": True}):  # as a user's own settings may say
        confusion(tmp_path / "a.png", ["$x$", "a\nb"])
    assert {"$x$", "a\\x0ab", "true class"} <= set(drawn)
    assert not any(drawn.values())
    assert dict(matplotlib.rcParams) == before


def words_of(monkeypatch, draw, *args) -> set[str]:
    """All texts that are drawn."""
    from matplotlib.text import Text

    found, drawn = [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, *a, **k: (found.append(text.get_text()), drawn(text, *a, **k))[1])
    draw(*args)
    monkeypatch.undo()
    return set(found)


def test_curves_say_whose_metrics_they_are(tmp_path, monkeypatch):
    rows = [{"epoch": e, "train_loss": 1.0, "val_loss": 0.5, "val_top1": 50.0, "lr": 0.1} for e in range(3)]
    path = tmp_path / "curves.png"
    usual = words_of(monkeypatch, draw_curves, rows, "top1", path)
    assert {"train", "val"} <= usual
    named = words_of(monkeypatch, draw_curves, rows, "top1", path, "training images")
    assert {"train", "training images"} <= named
    assert "val" not in named
    counts, path = torch.eye(2, dtype=torch.int64), tmp_path / "confusion.png"
    assert "training images" in words_of(monkeypatch, draw_confusion, counts, "ab", path, "training images")


def test_names_of_columns_in_curves(tmp_path):
    rows = [{"epoch": e, "train_loss": 1.0, "val_$m_$": e / 2, "lr": 0.1} for e in range(3)]
    draw_curves(rows, "$m_$", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 1000


def test_a_figure_becomes_an_image():
    drawn = rendered(2, 1, lambda figure: figure.subplots().imshow(np.eye(3)))
    assert (drawn.mode, drawn.size) == ("RGB", (220, 110))
    assert len(drawn.getcolors()) > 3


def test_labels_cover_neither_each_other_nor_points():
    draw, boxes, circles = np.random.default_rng(0), [], []

    def plot(figure):
        axes = figure.subplots()
        places = draw.random((25, 2))
        axes.scatter(*places.T, s=36)
        place_labels(axes, [(f"network_{i}", x, y, 3.0) for i, (x, y) in enumerate(places)])
        renderer = figure.canvas.get_renderer()
        boxes.extend(matplotlib.text.Text.get_window_extent(text, renderer) for text in axes.texts)
        circles.extend(axes.transData.transform(places))

    rendered(8, 6, plot)
    assert len(boxes) == 25
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(25) for j in range(i))
    assert not any(box.contains(x, y) for box in boxes for x, y in circles)


def test_a_label_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no free place for the label x"):
        rendered(1, 1, lambda figure: place_labels(figure.subplots(), [("x" * 80, 0.5, 0.5, 3.0)]))
