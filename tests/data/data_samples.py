"""Images and data sets that the tests write for themselves."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def sample_image(value: int = 0, size: tuple[int, int] = (10, 8)) -> Image.Image:
    """An image of (width, height) whose pixels depend on `value` and differ from each other."""
    width, height = size
    pixels = (np.arange(height * width * 3).reshape(height, width, 3) * 7 + value * 31) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(value: int = 0, form: str = "PNG") -> bytes:
    """The bytes of an image's file."""
    buffer = io.BytesIO()
    sample_image(value).save(buffer, form)
    return buffer.getvalue()


def write_classes(root: Path, counts: dict[str, int]) -> None:
    """A folder per class with so many PNG files each."""
    for c, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            sample_image(10 * c + i).save(root / name / f"{i}.png")


def real_data(name: str) -> str:
    """Folder of a real small data set; skips the test when it is not there."""
    root = os.environ.get("VITRAIL_TEST_DATA")
    if not root or not Path(root, name).is_dir():
        pytest.skip(f"set VITRAIL_TEST_DATA to a folder that holds {name}")
    return str(Path(root, name))
