"""The programs of the documentation prepare an image as `vitrail predict` does, whatever the image."""

import dataclasses
import importlib.util
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.config.data import Preprocess
from vitrail.data.images import open_image
from vitrail.data.transforms.classification import eval_transform

DOCS = Path(__file__).parents[2] / "docs"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("onnxruntime")
    return module(DOCS / "deploy/onnxruntime_example.py")


def test_the_programs_are_those_that_are_written():
    written = module(DOCS / "deploy_examples.py")
    for name in written.PROGRAMS:
        assert (DOCS / f"deploy/{name}_example.py").read_text() == written.program(name)


def noise(size: tuple[int, int], channels: int = 3, most: int = 256, kind=np.uint8) -> np.ndarray:
    blocks = np.random.default_rng(sum(size)).integers(0, most, (-(-size[1] // 4), -(-size[0] // 4), channels))
    return np.kron(blocks, np.ones((4, 4, 1)))[: size[1], : size[0]].astype(kind).squeeze()


def gap(example: ModuleType, path: Path, preprocess: Preprocess) -> float:
    """The largest difference of the inputs."""
    ours = eval_transform(preprocess)(open_image(path, levels=preprocess.levels)).numpy()
    theirs = example.read(str(path), dataclasses.asdict(preprocess), False)[0]
    assert theirs.shape == ours.shape
    assert theirs.dtype == np.float32
    return float(np.abs(ours - theirs).max())


def write(path: Path, kind: str, size: tuple[int, int]) -> Path:
    """An image file of a kind; the name gets its ending."""
    if kind.startswith("turned"):
        exif = Image.Exif()
        exif[0x112] = int(kind[-1])
        path = path.with_suffix(".jpg")
        Image.fromarray(noise(size)).save(path, exif=exif, quality=90)
        return path
    if kind in ("tiff float", "tiff 32", "tiff 12 bits"):
        path = path.with_suffix(".tiff")
        values = {"tiff float": noise(size, 1, kind=np.float32) / 255, "tiff 32": noise(size, 1, 70000, np.int32)}
        Image.fromarray(values.get(kind, noise(size, 1, 4096, np.uint16))).save(path)
        return path
    made = {
        "rgb": lambda: Image.fromarray(noise(size)),
        "grey": lambda: Image.fromarray(noise(size, 1)),
        "transparent": lambda: Image.fromarray(noise(size, 4), "RGBA"),
        "grey, transparent": lambda: Image.fromarray(noise(size, 2), "LA"),
        "palette": lambda: Image.fromarray(noise(size)).quantize(16),
        "one bit": lambda: Image.fromarray(noise(size, 1)).convert("1"),
        "16 bits": lambda: Image.fromarray(noise(size, 1, 65536, np.uint16)),
        "12 bits in 16": lambda: Image.fromarray(noise(size, 1, 4096, np.uint16)),
    }[kind]()
    path = path.with_suffix(".png")
    made.save(path, **({"transparency": 3} if kind == "palette" else {}))
    return path


KINDS = ["rgb", "grey", "transparent", "grey, transparent", "palette", "one bit", "16 bits", "12 bits in 16"]
KINDS += ["tiff float", "tiff 32", "tiff 12 bits", *(f"turned {n}" for n in range(1, 9))]


@pytest.mark.filterwarnings("ignore:Images have samples", "ignore:.*mode.*parameter:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_kind(example, tmp_path, kind):
    path = write(tmp_path / "a", kind, (61, 47))
    for preprocess in (Preprocess((32, 32)), Preprocess((40, 24), crop_pct=0.875), Preprocess((32, 32), in_chans=1)):
        assert gap(example, path, preprocess) < 1e-5


def test_the_white_that_the_network_learned_with(example, tmp_path):
    path = write(tmp_path / "a", "12 bits in 16", (40, 30))
    assert gap(example, path, Preprocess((32, 32), levels=(0.0, 65535.0))) < 1e-5
    assert gap(example, path, Preprocess((32, 32), levels=(100.0, 3000.0))) < 1e-5


SIDES = st.integers(1, 150)


@settings(max_examples=60, deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from([(32, 32), (48, 32), (32, 56)]),
    st.sampled_from([0.7, 0.875, 0.9, 0.95, 1.0]),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_images_of_any_size(example, tmp_path_factory, width, height, image_size, crop_pct, interpolation):
    path = tmp_path_factory.getbasetemp() / "sizes.png"
    Image.fromarray(noise((width, height)).reshape(height, width, 3)).save(path)
    assert gap(example, path, Preprocess(image_size, interpolation=interpolation, crop_pct=crop_pct)) < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3000, 2), (33, 31), (2, 3)])
def test_slender_and_tiny_images(example, tmp_path, size):
    path = tmp_path / "a.png"
    Image.fromarray(noise(size).reshape(size[1], size[0], 3)).save(path)
    assert gap(example, path, Preprocess((32, 32))) < 1e-5


def test_colours_of_16_bits_stop_the_program(example, tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_16_bits(noise((20, 20), 3, 65536, np.uint16)))
    with pytest.raises(SystemExit, match="16 bits"):
        example.decode(str(tmp_path / "a.png"))


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint16 as a PNG, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_nothing_of_ours_is_imported(example):
    assert "vitrail" not in Path(example.__file__).read_text().split("import json")[1].split("def decode")[0]
    assert example.__name__ not in sys.modules
