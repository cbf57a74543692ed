"""Pictures with more than a class: boxes, masks, maps, joints or identities."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from .images import MAX_PIXELS, head_of, open_image
from .levels import Levels


class AnnotatedSet(Dataset[tuple[Image.Image, dict[str, Any]]]):
    """Pictures with what is known of them, reachable by number.

    Attributes:
        classes: names, in the order of a network's outputs.
        max_pixels: larger pictures are refused.
        skipped: what was left out when the set was opened: how many, by reason.
        remarks: what else the user should know of the data before they are used.
        levels: black and white of samples of more than 8 bits; None = of each image by itself.
        streaming: False.
    """

    streaming = False

    def __init__(self, classes: list[str], max_pixels: int = MAX_PIXELS) -> None:
        self.classes = classes
        self.max_pixels = max_pixels
        self.skipped: dict[str, int] = {}
        self.remarks: list[str] = []
        self.levels: Levels | None = None

    def notes(self) -> list[str]:
        """What is left out, how often, and what else the user should know; a sentence each."""
        return [*self.remarks, *(f"skipped: {count} {what}" for what, count in self.skipped.items() if count)]

    def take_order(self, classes: Sequence[str]) -> None:
        """Number the same classes as a network does, where these data can; otherwise nothing changes."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        image = self.image(index)
        return image, self.target(index, image)

    def path(self, index: int) -> str | os.PathLike[str]:
        """The file of picture number `index`."""
        raise NotImplementedError

    def key(self, index: int) -> str:
        """What picture number `index` is called, wherever the data lies."""
        return os.path.basename(self.path(index))

    def known(self) -> Iterator[Any]:
        """All that is known of the pictures beside their files, as plain values, wherever the data lies."""
        raise NotImplementedError

    def stored(self, index: int) -> list[bytes]:
        """Size and beginning of the files of picture number `index`: its own, and those of what is known of it."""
        return [head_of(self.path(index))]

    def name(self, index: int) -> str:
        """What messages call picture number `index`."""
        return str(self.path(index))

    def image(self, index: int) -> Image.Image:
        """Picture number `index`, RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return open_image(self.path(index), self.max_pixels, levels=self.levels)

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """What is known of picture number `index`.

        Raises:
            UserError: the annotation does not fit the picture.
        """
        raise NotImplementedError


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many others there are."""
    others = f" and {len(names) - most} others" if len(names) > most else ""
    return ", ".join(names[:most]) + others
