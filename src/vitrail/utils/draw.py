"""Drawing predictions on copies of images: boxes, masks, class maps, keypoints and rankings."""

from __future__ import annotations

import colorsys
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from .lettering import lettered

Box = Sequence[float]
Colour = tuple[int, int, int]

#: pairs of COCO's 17 keypoints that are connected by a line
SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip


def colour_of(index: int) -> Colour:
    """The colour of a class or person, distinct from those of nearby numbers."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.55 + 0.45 * (index % 2), 0.95 - 0.25 * (index % 3))
    return round(255 * red), round(255 * green), round(255 * blue)


def _as_colour(colour: int | Colour) -> Colour:
    return colour_of(colour) if isinstance(colour, int) else colour


#: longest side of drawn images, in pixels; larger images are made smaller
LONGEST_SIDE = 16_384
#: number of pixels that are blended at once
BAND = 2**22
#: most entries of a legend or panel
MOST_ENTRIES = 50


def letter_size(image: Image.Image) -> int:
    """Font size for an image, in pixels."""
    return max(10, min(image.size) // 28)


def line_of(image: Image.Image) -> int:
    """Line width for an image, in pixels."""
    return max(2, min(image.size) // 200)


def draw_boxes(
    image: Image.Image, boxes: Sequence[Box], texts: Sequence[str], colours: Sequence[int | Colour]
) -> Image.Image:
    """Boxes (left, top, right, bottom in pixels), each with its text, in these colours or those of these numbers."""
    copy = image.copy()
    draw, width = ImageDraw.Draw(copy), line_of(image)
    for box, text, one in zip(boxes, texts, colours, strict=True):
        colour = _as_colour(one)
        draw.rectangle((box[0], box[1], max(box[2], box[0]), max(box[3], box[1])), outline=colour, width=width)
        font, text = lettered(text, letter_size(image))
        left, top, right, bottom = draw.textbbox((box[0], box[1]), text, font=font, anchor="lb")
        down = max(0, -top)  # labels stay inside the image
        draw.rectangle((left, top + down, right + 2, bottom + down), fill=colour)
        draw.text((box[0], box[1] + down), text, fill=contrast(colour), font=font, anchor="lb")
    return copy


def contrast(colour: Colour) -> str:
    """Black or white, whichever is read better on the colour."""
    return "black" if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 else "white"


class Mask(Protocol):
    """A mask read some rows at a time: an array (H, W) of bool, or an object that computes its rows."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """(rows, W) bool."""
        ...


@dataclass
class ClassMask:
    """The mask of one number in a map (H, W)."""

    numbers: np.ndarray
    number: int

    def __getitem__(self, rows: slice) -> np.ndarray:
        """(rows, W) bool."""
        return self.numbers[rows] == self.number


def draw_masks(image: Image.Image, masks: Sequence[Mask], colours: Sequence[int | Colour]) -> Image.Image:
    """Masks in these colours, or those of these numbers, half transparent."""
    copy = image.copy()
    paints = [0.5 * np.array(_as_colour(one), dtype=np.float32) for one in colours]
    for rows in bands(image.width, image.height):
        band = np.asarray(image.crop((0, rows.start, image.width, min(rows.stop, image.height))), dtype=np.float32)
        for mask, paint in zip(masks, paints, strict=True):
            chosen = mask[rows]
            band[chosen] = 0.5 * band[chosen] + paint
        copy.paste(Image.fromarray(band.round().astype(np.uint8)), (0, rows.start))
    return copy


def bands(width: int, height: int) -> Iterator[slice]:
    """Slices of an image's rows, of at most `BAND` pixels and at least one row each."""
    rows = max(1, BAND // width)
    return (slice(top, top + rows) for top in range(0, height, rows))


def draw_classes(image: Image.Image, classes: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A map (H, W) of class indices over the image, with a legend of the classes that occur, most pixels first."""
    found, counts = np.unique(classes[(classes >= 0) & (classes < len(names))], return_counts=True)
    order = [int(index) for index in found[np.argsort(-counts, kind="stable")]]
    coloured = draw_masks(image, [ClassMask(classes, index) for index in order], order)
    shares = {int(index): count / classes.size for index, count in zip(found, counts, strict=True)}
    return with_legend(coloured, [(f"{names[i]} {100 * shares[i]:.1f} %", colour_of(i)) for i in order])


def with_legend(image: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """The image with a legend below it: coloured fields with a text each, at most `MOST_ENTRIES`."""
    size = letter_size(image)
    line = int(1.5 * lettered("Ag", size)[0].getbbox("Ag")[3])
    fonts = [(*lettered(text, size), colour) for text, colour in entries[:MOST_ENTRIES]]
    widths = [line + int(font.getlength(text)) + line for font, text, _ in fonts]
    positions, left, top = [], 0, 0
    for width in widths:
        if left and left + width > image.width:
            left, top = 0, top + line
        positions.append((left, top))
        left += width
    drawn = Image.new("RGB", (image.width, image.height + top + (line if fonts else 0)), "white")
    drawn.paste(image, (0, 0))
    draw = ImageDraw.Draw(drawn)
    for (font, text, colour), (x, y) in zip(fonts, positions, strict=True):
        y += image.height
        draw.rectangle((x + 3, y + 3, x + line - 4, y + line - 4), fill=colour)
        draw.text((x + line, y + line // 2), text, fill="black", font=font, anchor="lm")
    return drawn


def draw_keypoints(
    image: Image.Image,
    persons: Sequence[np.ndarray],
    least: float = 0.2,
    skeleton: Sequence[tuple[int, int]] = SKELETON,
) -> Image.Image:
    """Draw persons: (keypoints, 3) of x, y in pixels and a score; keypoints below `least` are left out."""
    copy = image.copy()
    draw, width = ImageDraw.Draw(copy), line_of(image)
    for number, keypoints in enumerate(persons):
        seen = keypoints[:, 2] >= least
        for a, b in skeleton:
            if max(a, b) < len(keypoints) and seen[a] and seen[b]:
                draw.line((*keypoints[a, :2], *keypoints[b, :2]), fill=colour_of(number), width=width)
        for x, y, _ in keypoints[seen]:
            draw.ellipse((x - width, y - width, x + width, y + width), fill="white", outline=colour_of(number))
    return copy


def draw_ranking(query: Image.Image, ranked: Sequence[tuple[Image.Image, str, bool | None]]) -> Image.Image:
    """A query and its ranked matches: images with a text each, with a green frame if right, red if wrong."""
    size, gap, line = query.size, 6, 16
    cells = [(query, "query", None), *ranked]
    row = Image.new("RGB", ((size[0] + 2 * gap) * len(cells), size[1] + 2 * gap + line), "white")
    draw = ImageDraw.Draw(row)
    for i, (image, text, right) in enumerate(cells):
        left = i * (size[0] + 2 * gap)
        frame = {True: "#2a9d4a", False: "#d1342f", None: "#8a8f94"}[right]
        draw.rectangle((left + 2, 2, left + size[0] + 2 * gap - 3, size[1] + 2 * gap - 3), fill=frame)
        row.paste(image.resize(size), (left + gap, gap))
        font, text = lettered(text, 12)
        draw.text((left + gap, size[1] + 2 * gap), text, fill="black", font=font)
    return row


def with_title(image: Image.Image, title: str, narrowest: int = 0, size: int | None = None) -> Image.Image:
    """The image below a title of as many lines as it needs.

    Args:
        image: RGB; its pixels stay as they are.
        title: of the image.
        narrowest: width of the result at least.
        size: of the letters in pixels; None = `letter_size`.
    """
    size = letter_size(image) if size is None else size
    width, line = max(image.width, narrowest), math.ceil(1.4 * size)
    lines = wrapped(title, width, size)
    head = line * len(lines) + line // 2
    sheet = Image.new("RGB", (width, head + image.height), "white")
    sheet.paste(image, (0, head))
    draw = ImageDraw.Draw(sheet)
    for number, one in enumerate(lines):
        font, shown = lettered(one, size)
        draw.text((4, line * (number + 0.6)), shown, fill="black", font=font, anchor="lm")
    return sheet


def wrapped(text: str, width: int, size: int) -> list[str]:
    """A text in lines that fit a width in pixels, with letters of a size; no percent sign begins a line."""
    together = "\u00a0%"  # not a break for textwrap
    lines = textwrap.wrap(text.replace(" %", together), max(10, int(width / (0.6 * size))))
    return [line.replace(together, " %") for line in lines] or [""]


def side_by_side(images: Sequence[Image.Image], columns: int | None = None, bottoms: bool = False) -> Image.Image:
    """Images in rows, on white.

    Args:
        images: from left to right, then from top to bottom.
        columns: most images in a row; None = all.
        bottoms: the bottoms of a row are aligned, as of images below titles of unlike heights; else the tops.
    """
    rows = [images[first : first + (columns or len(images))] for first in range(0, len(images), columns or len(images))]
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (max(sum(image.width for image in row) for row in rows), sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            sheet.paste(image, (left, top + (height - image.height if bottoms else 0)))
            left += image.width
        top += height
    return sheet


def with_bars(
    image: Image.Image, entries: Sequence[tuple[str, float]], shortest: int = 256, longest: int = LONGEST_SIDE
) -> Image.Image:
    """A copy of the image above a panel: one bar an entry, its length the entry's share of one.

    Small images are enlarged by a whole factor until their short side has `shortest` pixels, unless the long side would
    then exceed 4 x `shortest`; images with a side above `longest` are made smaller.

    Args:
        image: RGB.
        entries: texts and shares in [0, 1]; at most `MOST_ENTRIES` are drawn.
        shortest: see above, in pixels.
        longest: see above, in pixels.
    """
    image = within(image, longest)
    factor = max(1, min(-(-shortest // min(image.size)), 4 * shortest // max(image.size)))
    resample = Image.Resampling.NEAREST if min(image.size) < 64 else Image.Resampling.LANCZOS
    image = image.resize((image.width * factor, image.height * factor), resample) if factor > 1 else image
    width, line = max(image.width, shortest), max(18, min(image.width // 20, 200))
    entries = entries[:MOST_ENTRIES]
    panel = Image.new("RGB", (width, image.height + line * len(entries) + 8), "white")
    panel.paste(image, (0, 0))
    draw = ImageDraw.Draw(panel)
    for row, (text, share) in enumerate(entries):
        top = image.height + 4 + row * line
        color = "#2f7fb8" if row == 0 else "#b9cfe0"
        draw.rectangle((4, top + 2, 4 + int((width - 9) * share), top + line - 2), fill=color)
        font, text = lettered(text, int(line * 0.62))
        draw.text((8, top + line // 2), text, fill="black", font=font, anchor="lm")
    return panel


def enlarged(image: Image.Image, shortest: int) -> Image.Image:
    """The image, enlarged by the smallest whole factor with which no side has fewer than `shortest` pixels."""
    factor = -(-shortest // min(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def within(image: Image.Image, longest: int) -> Image.Image:
    """The image, made smaller if one of its sides has more than `longest` pixels; at least one pixel a side."""
    if max(image.size) <= longest:
        return image
    share = longest / max(image.size)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.BOX)
