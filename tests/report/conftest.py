"""Small runs that the tests of pages share: two classifiers of the same images, whose names are hostile."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from option_walk import plain_run, write_data
from vitrail.engine.trainer import fit

#: names of classes and of a file, as a stranger may choose them
CLASSES = ("<script>alert(1)<", "a\"b'c `onclick=alert(3)", "photo\u202egnp 😀 " + "long" * 20)
FILE = "<img src=x onerror=alert(2)> </style>.png"


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Small data of every task."""
    folder = tmp_path_factory.mktemp("reports")
    write_data(folder)
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 3)):
        for number, name in enumerate(CLASSES):
            root = folder / "hostile" / part / name
            root.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (40, 48, 3)) + 60 * number
                file = (FILE.replace(".png", f"{name[0]}.png") if i == 0 else f"{i}.png").replace("/", "")
                Image.fromarray(pixels.astype(np.uint8)).save(root / file)
    return folder


def _trained(base: Path, name: str, **options) -> Path:
    config = plain_run("classification", base)
    data = replace(config.data, root=str(base / "hostile"))
    fit(replace(config, data=data, epochs=2, output=str(base / name), **options))
    return base / name


@pytest.fixture(scope="session")
def run(base) -> Path:
    """A run of a classifier."""
    return _trained(base, "run")


@pytest.fixture(scope="session")
def other_run(base) -> Path:
    """Another run on the same images."""
    return _trained(base, "other", seed=1, lr=0.01)


@pytest.fixture(scope="session")
def segmenter(base) -> Path:
    """A run of another task."""
    fit(replace(plain_run("semantic_segmentation", base), epochs=1, output=str(base / "segmenter")))
    return base / "segmenter"
