"""Light is light: samples of any depth keep their brightness, by one rule for all images of a set."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from vitrail.checkpoint.format import read_meta
from vitrail.cli import main
from vitrail.config.data import DataConfig
from vitrail.data import open_dataset
from vitrail.data.images import levels_of, open_image, to_rgb
from vitrail.data.levels import guess_levels, sample_range, scale_to_8_bits
from vitrail.errors import UserError

RAMP = np.linspace(0, 1, 64)[None].repeat(16, 0)


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Images have samples of more")
        yield


def png(values: np.ndarray, path) -> None:
    """A 16-bit PNG of grey, grey with alpha, colours, or colours with alpha, by the format's specification."""
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def tiff(values: np.ndarray, path, order: str = "<", bits: int = 16) -> None:
    """An uncompressed TIFF of unsigned grey or colours, by the format's specification."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    if bits == 12:
        flat = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=2)[..., 4:]
        data = np.packbits(flat.reshape(height, -1), axis=1).tobytes()
    else:
        data = values.astype(f"{order}u{bits // 8}").tobytes()
    extra = struct.pack(f"{order}{channels}H", *[bits] * channels)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1 if channels == 1 else 2), (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height)]
    tags += [(279, 4, 1, len(data))]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data) + len(extra)) + data + extra
    out += struct.pack(f"{order}H", len(tags))
    for number, kind, count, value in tags:
        if number == 258 and channels > 1:
            field = struct.pack(f"{order}I", 8 + len(data))
        else:
            field = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        out += struct.pack(f"{order}HHI", number, kind, count) + field
    path.write_bytes(out + struct.pack(f"{order}I", 0))


def seen(path, **options) -> np.ndarray:
    return np.asarray(open_image(path, **options)).astype(int)


@pytest.mark.parametrize("white", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("kind", ["png", "png3", "png4", "tif", "tif>", "tif3", "tif3>", "int32", "float"])
def test_brightness_survives_at_any_depth(tmp_path, white, kind):
    values = np.round(RAMP * white)
    path = tmp_path / ("a.png" if "png" in kind else "a.tif")
    colours = np.stack([values, values[:, ::-1], values // 2], 2)
    if kind in ("int32", "float"):
        Image.fromarray(values.astype(np.int32 if kind == "int32" else np.float32)).save(path)
    elif kind == "png4":
        png(np.concatenate([colours, np.full((*values.shape, 1), 65535)], 2), path)
    elif "png" in kind:
        png(colours if "3" in kind else values, path)
    else:
        tiff(colours if "3" in kind else values, path, ">" if ">" in kind else "<")
    given = colours if kind[-2:].strip(">").endswith(("3", "4")) or "3" in kind.replace("int32", "") else values
    expected = given / white * 255
    got = seen(path)
    expected = expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
    assert np.abs(got - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("white", [0.25, 1.0])
def test_floats_up_to_one_are_shares_of_white(tmp_path, white):
    Image.fromarray((RAMP * white).astype(np.float32)).save(tmp_path / "a.tif")
    assert np.abs(seen(tmp_path / "a.tif")[..., 0] - RAMP * white * 255).max() <= 0.5 + 1e-4


def test_a_tiff_of_12_bits_is_taken_at_its_word(tmp_path):
    values = np.round(RAMP * 900)  # a dark image: its own samples would say 1023
    tiff(values, tmp_path / "a.tif", bits=12)
    assert np.abs(seen(tmp_path / "a.tif")[..., 0] - values / 4095 * 255).max() <= 0.5
    assert levels_of([tmp_path / "a.tif"]) is None
    # what the user names is for files that state nothing
    assert np.array_equal(seen(tmp_path / "a.tif", levels=(0, 65535)), seen(tmp_path / "a.tif"))


@pytest.mark.parametrize("most", [255, 1000, 4095, 65535])
def test_pnm_states_its_white(tmp_path, most):
    values = np.array([[0, most // 3, most]])
    dtype = ">u2" if most > 255 else "u1"
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 %d\n" % most + values.astype(dtype).tobytes())
    (tmp_path / "b.ppm").write_bytes(b"P6 3 1 %d\n" % most + values.repeat(3).astype(dtype).tobytes())
    for name in ("a.pgm", "b.ppm"):
        assert np.abs(seen(tmp_path / name)[0, :, 0] - values[0] / most * 255).max() <= 1


def test_16_bit_colours_over_white(tmp_path):
    values = np.zeros((1, 3, 4), int)
    values[0, :, 0], values[0, :, 3] = 65535, [65535, 0, 257 * 51]
    png(values, tmp_path / "a.png")
    assert seen(tmp_path / "a.png")[0].tolist() == [[255, 0, 0], [255, 255, 255], [255, 204, 204]]


def test_compressed_and_interlaced_files_give_the_same_colours(tmp_path):
    values = np.random.RandomState(0).randint(0, 4096, (40, 30, 3))
    tiff(values, tmp_path / "a.tif")
    png(values, tmp_path / "b.png")
    expected = np.round(values / 4095 * 255)
    for path in (tmp_path / "a.tif", tmp_path / "b.png", io.BytesIO((tmp_path / "b.png").read_bytes())):
        assert np.abs(seen(path) - expected).max() <= 1


def test_one_white_for_all_images_of_a_set(tmp_path):
    """A dark image beside bright ones is not made bright, in training, measuring and predicting."""
    whites = {"a": 4000, "b": 700}
    for part, count in (("train", 4), ("val", 2)):
        for name, largest in whites.items():
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                png(np.round(RAMP * (largest - i)), tmp_path / part / name / f"{i}.png")
    config = DataConfig("folder", str(tmp_path))
    train, val = (open_dataset(config, part) for part in (True, False))
    assert train.levels == val.levels == (0, 4095)
    assert any("4095 is taken as white" in note for note in train.notes())
    for data in (train, val):
        for index in range(len(data)):
            brightest = np.asarray(data.image(index)).max()
            largest = whites[data.classes[data.targets[index]]]
            assert abs(brightest - largest / 4095 * 255) <= 1
    named = open_dataset(DataConfig("folder", str(tmp_path), white=8000), True)
    assert named.levels == (0, 8000)
    assert not any("is taken as white" in note for note in named.notes())


def test_the_validation_share_has_the_white_of_the_set(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            png(np.round(RAMP * (3000 if name == "a" else 200)), tmp_path / name / f"{i}.png")
    parts = [open_dataset(DataConfig("folder", str(tmp_path)), train) for train in (True, False)]
    for part in parts:
        assert {int(np.asarray(part.image(i)).max()) for i in range(len(part))} == {187, 12}


@pytest.mark.parametrize("white", [0, -1, float("nan")])
def test_a_white_that_cannot_be(tmp_path, white):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in "ab":
        png(np.round(RAMP * 4095), tmp_path / name / "0.png")
        png(np.round(RAMP * 4095), tmp_path / name / "1.png")
    with pytest.raises(UserError, match=r"data\.white"):
        open_dataset(DataConfig("folder", str(tmp_path), white=white), True)


def test_a_white_without_effect_is_refused(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match=r"data\.white=4095 changes nothing"):
        open_dataset(DataConfig("folder", str(tmp_path), white=4095), True)
    with pytest.raises(UserError, match=r"data\.white=4095"):
        open_dataset(DataConfig(white=4095), True)
    assert main(["predict", "random:emsnet_xxtiny", str(tmp_path), "--white", "4095"]) == 2
    assert "--white 4095 is not allowed" in capsys.readouterr().err


def test_a_network_remembers_the_white_it_learned_with(tmp_path, capsys):
    random = np.random.RandomState(0)
    for part in ("train", "val"):
        for name in "ab":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(3):
                png(random.randint(0, 4000, (32, 32)), tmp_path / "data" / part / name / f"{i}.png")
    run = tmp_path / "run"
    data = ["--data", "folder", "--data.root", str(tmp_path / "data")]
    argv = ["train", "--model", "emsnet_xxtiny", "--image_size", "32", "--batch_size", "2", "--max_steps", "1"]
    assert main([*argv, *data, "--epochs", "1", "--device", "cpu", "--output", str(run)]) == 0
    assert "4095 is taken as white" in capsys.readouterr().err
    assert tuple(read_meta(run / "best.safetensors").preprocess.levels) == (0, 4095)
    dark = np.round(RAMP * 900)
    png(dark, tmp_path / "dark.png")
    Image.fromarray(np.round(dark / 4095 * 255).astype(np.uint8)).save(tmp_path / "same.png")
    Image.fromarray(np.round(dark / 1023 * 255).astype(np.uint8)).save(tmp_path / "other.png")

    def probabilities(name, *more):
        assert main(["predict", str(run), str(tmp_path / name), "--json", *more]) == 0
        record = json.loads(capsys.readouterr().out)[0]
        return dict(zip(record["classes"], record["probabilities"], strict=True))["a"]

    assert probabilities("dark.png") == pytest.approx(probabilities("same.png"), abs=1e-6)
    assert probabilities("dark.png", "--white", "1023") == pytest.approx(probabilities("other.png"), abs=1e-6)


def test_predict_takes_one_white_for_all_and_says_so(tmp_path, capsys):
    png(np.round(RAMP * 4095), tmp_path / "a.png")
    png(np.round(RAMP * 300), tmp_path / "b.png")
    assert main(["predict", "random:emsnet_xxtiny", str(tmp_path), "--save", str(tmp_path / "drawn")]) == 0
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "b.png"))[: 16 * 16]
    assert drawn.max() == round(300 / 4095 * 255)
    assert levels_of([tmp_path / "a.png", tmp_path / "b.png"]) == (0, 4095)


def test_images_that_a_library_opened_follow_the_rule():
    values = np.round(RAMP * 4095).astype(np.uint16)
    assert np.abs(np.asarray(to_rgb(Image.fromarray(values), (0, 4095)))[..., 0] - values / 4095 * 255).max() <= 0.5
    clear = Image.new("RGBA", (2, 2), (9, 9, 9, 0))
    assert np.asarray(to_rgb(clear)).min() == 255


@pytest.mark.parametrize("seed", range(4))
def test_scaling_is_the_closed_form_whatever_the_parts(seed, monkeypatch):
    random = np.random.RandomState(seed)
    values = random.randint(-500, 70_000, (13, 7, 3)).astype(random.choice(["int32", "float32"]))
    black, white = sorted(random.randint(-1000, 70_000, 2).tolist())
    expected = np.clip(np.round((values - black) / (white - black) * 255), 0, 255)
    for band in (1, 40, 10**6):
        monkeypatch.setattr("vitrail.data.levels.BAND", band)
        assert np.abs(scale_to_8_bits(values, (black, white)) - expected).max() <= (values.dtype == np.float32)
        assert sample_range(values) == (values.min(), values.max())


@pytest.mark.parametrize(
    ("low", "high", "floats", "expected"),
    [
        (0, 0, False, (0, 255)),
        (0, 1, True, (0, 1)),
        (0, 1.01, True, (0, 255)),
        (3, 256, False, (0, 1023)),
        (0, 70_000, False, (0, 70_000)),
        (-5, 9, False, (-5, 9)),
        (0, 4096, True, (0, 16383)),
    ],
)
def test_the_guess(low, high, floats, expected):
    assert guess_levels(low, high, floats) == expected
