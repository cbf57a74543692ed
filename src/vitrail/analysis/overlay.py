"""Maps of a network's input carried back to the original image: through the inverse of crop and resize.

What the crop cut off stays uncoloured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torchvision.transforms import CenterCrop

from ..config.data import Preprocess
from ..data.transforms.classification import CutSlender, eval_transform
from ..utils.draw import bands, letter_size, with_title, wrapped
from ..utils.extras import require
from ..utils.lettering import lettered

#: narrowest result in pixels: titles need room
NARROWEST = 320
#: weight of the colours over the image
OPACITY = 0.5


@dataclass(frozen=True)
class InputWindow:
    """The part of an original image that becomes a network's input.

    Attributes:
        image: (width, height) of the original image.
        input: (width, height) of the network's input.
        left: of the part, in pixels of the original image, as the others; 0 is the left edge of the first pixel.
        top: of the part.
        width: of the part.
        height: of the part.
    """

    image: tuple[int, int]
    input: tuple[int, int]
    left: float
    top: float
    width: float
    height: float

    def to_input(self, x: float, y: float) -> tuple[int, int] | None:
        """The input's pixel at pixel (x, y) of the original image; None where that was cropped off."""
        column = math.floor((x + 0.5 - self.left) * self.input[0] / self.width)
        row = math.floor((y + 0.5 - self.top) * self.input[1] / self.height)
        return (column, row) if 0 <= column < self.input[0] and 0 <= row < self.input[1] else None

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """The point of the original image at the centre of pixel (x, y) of the input."""
        return (
            self.left + (x + 0.5) * self.width / self.input[0],
            self.top + (y + 0.5) * self.height / self.input[1],
        )


def input_window(size: tuple[int, int], preprocess: Preprocess) -> InputWindow:
    """The part of an original image that `eval_transform` hands to the network.

    Its own steps are run on an empty image, so that no rule of theirs stands here a second time.

    Args:
        size: (width, height) of the original image, upright.
        preprocess: of the weights.
    """
    image = Image.new("L", size)
    left, top, across, down = 0.0, 0.0, 1.0, 1.0  # across, down: pixels of the original to one of the present image
    for step in eval_transform(preprocess).transforms:  # pyright: ignore[reportFunctionMemberAccess]
        before, image = image.size, step(image)
        if not isinstance(image, Image.Image):
            height, width = image.shape[-2:]
            break
        width, height = image.size
        cut = _cut(step, before, image.size)
        if cut is None:
            across, down = across * before[0] / width, down * before[1] / height
        else:
            left, top = left + cut[0] * across, top + cut[1] * down
    return InputWindow(size, (width, height), left=left, top=top, width=width * across, height=height * down)


def _cut(step: object, before: tuple[int, int], after: tuple[int, int]) -> tuple[int, int] | None:
    """Columns and rows that a step cuts off at the left and the top; None of a step that resizes."""
    if isinstance(step, CenterCrop):
        left, top = (round((b - a) / 2) for b, a in zip(before, after, strict=True))
        return left, top
    if isinstance(step, CutSlender):
        return (before[0] - after[0]) // 2, (before[1] - after[1]) // 2
    return None


def carried_back(values: np.ndarray, window: InputWindow, rows: slice = slice(None), smooth: bool = True) -> np.ndarray:
    """A map of the input on the pixels of the original image: (height, width), NaN where they were cropped off.

    Args:
        values: (h, w), which covers the input; of any resolution.
        window: of the original image.
        rows: of the original image; only these are computed.
        smooth: bilinear, corners not aligned; False repeats the nearest value.
    """
    (width, height), (h, w) = window.image, values.shape
    y = (np.arange(height)[rows] + 0.5 - window.top) / window.height
    x = (np.arange(width) + 0.5 - window.left) / window.width
    along = _sampled(_sampled(values.astype(np.float32), y * h, 0, smooth), x * w, 1, smooth)
    outside = ((y < 0) | (y >= 1))[:, None] | ((x < 0) | (x >= 1))[None, :]
    along[outside] = np.nan
    return along


def _sampled(values: np.ndarray, places: np.ndarray, axis: int, smooth: bool) -> np.ndarray:
    """Values at places along an axis, in units of its entries; entry i reaches from i to i + 1."""
    last = values.shape[axis] - 1
    if not smooth:
        return values.take(np.clip(np.floor(places), 0, last).astype(int), axis)
    places = np.clip(places - 0.5, 0, last)
    low = np.floor(places).astype(int)
    share = (places - low).astype(np.float32)
    share = share[:, None] if axis == 0 else share[None, :]
    return values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, last), axis) * share


def overlay(
    image: Image.Image,
    values: np.ndarray,
    window: InputWindow,
    *,
    title: str,
    label: str,
    low: str = "0",
    high: str = "1",
    smooth: bool = True,
    mark: tuple[int, int] | None = None,
    outline: np.ndarray | None = None,
) -> Image.Image:
    """A map over its original image, at that image's size, below a title and beside a colour bar.

    Args:
        image: the original, RGB.
        values: (h, w) from 0 to 1, which covers the network's input.
        window: of the image.
        title: drawn above, on as many lines as it needs.
        label: what the colours mean.
        low: text at the lower end of the colour bar.
        high: text at its upper end.
        smooth: see `carried_back`.
        mark: pixel (x, y) of the image that is marked with a cross.
        outline: (h, w) boolean, parts of the input that are outlined in white.

    Raises:
        UserError: matplotlib is not installed.
    """
    drawing = painted(image, values, window, smooth=smooth)
    if outline is not None:
        _outlined(drawing, carried_back(outline, window, smooth=False) == 1)
    if mark is not None:
        _cross(drawing, mark)
    return _framed(drawing, _colours(), title, (low, label, high))


def painted(image: Image.Image, values: np.ndarray, window: InputWindow, *, smooth: bool = True) -> Image.Image:
    """A map over its original image, without title and colour bar; the arguments are those of `overlay`.

    Raises:
        UserError: matplotlib is not installed.
    """
    colours, drawn = _colours(), np.array(image)
    for band in bands(*image.size):
        back = carried_back(values, window, band, smooth)
        inside = ~np.isnan(back)
        coloured = colours[(np.clip(back[inside], 0, 1) * 255).round().astype(np.uint8)]
        drawn[band][inside] = ((1 - OPACITY) * drawn[band][inside] + OPACITY * coloured).round().astype(np.uint8)
    return Image.fromarray(drawn)


def _colours() -> np.ndarray:
    """Colours of the values 0 to 255, (256, 3) uint8."""
    return (require("matplotlib", "analysis").colormaps["turbo"](np.arange(256))[:, :3] * 255).astype(np.uint8)


def _outlined(drawing: Image.Image, inside: np.ndarray) -> None:
    """Draw the inner edge of parts of the image in white."""
    padded = np.pad(inside, 1)
    width = max(1, min(drawing.size) // 300)
    edge = np.zeros_like(inside)
    for axis in (0, 1):
        for step in (-1, 1):
            edge |= inside & ~np.roll(padded, step, axis)[1:-1, 1:-1]
    for _ in range(width - 1):
        wide = np.pad(edge, 1)
        edge = inside & (wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:])
    drawing.paste("white", mask=Image.fromarray(edge))


def _cross(drawing: Image.Image, place: tuple[int, int]) -> None:
    """Draw a cross around a pixel, white within black."""
    draw, (x, y), arm = ImageDraw.Draw(drawing), place, max(4, min(drawing.size) // 40)
    for colour, width in (("black", 3), ("white", 1)):
        draw.line((x - arm, y, x + arm, y), fill=colour, width=width)
        draw.line((x, y - arm, x, y + arm), fill=colour, width=width)


def _framed(drawing: Image.Image, colours: np.ndarray, title: str, texts: tuple[str, str, str]) -> Image.Image:
    """The drawing, whose pixels stay as they are, below its title and beside a colour bar with three texts."""
    size = letter_size(drawing)
    line, bar = math.ceil(1.4 * size), max(12, size)
    low, label, high = texts
    width = max(drawing.width + bar + 8 * size, NARROWEST)
    foot = wrapped(f"colours: {label}; uncoloured parts were cropped off", width, size)
    height = max(drawing.height, 6 * line)
    sheet = Image.new("RGB", (width, height + line * (len(foot) + 1)), "white")
    sheet.paste(drawing, (0, 0))
    draw = ImageDraw.Draw(sheet)

    def write(x: float, y: float, text: str) -> None:
        font, shown = lettered(text, size)
        draw.text((x, y), shown, fill="black", font=font, anchor="lm")

    left = drawing.width + size // 2
    scale = Image.fromarray(colours[::-1, None, :].repeat(bar, 1)).resize((bar, height - line))
    sheet.paste(scale, (left, line // 2))
    write(left + bar + 4, line // 2, high)
    write(left + bar + 4, height - line // 2, low)
    for number, one in enumerate(foot, 1):
        write(4, height + line * number, one)
    return with_title(sheet, title, size=size)
