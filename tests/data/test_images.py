from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
from data_samples import encoded, sample_image
from PIL import Image

from vitrail.data.datasets.folder import subfolders
from vitrail.data.datasets.index_masks import folders_in
from vitrail.data.images import (
    BadImage,
    find_images,
    iterate_images,
    left_out_sentence,
    open_image,
    open_mask,
    orientation_of,
    stored_size,
    survey,
    walk_images,
)
from vitrail.errors import UserError


def test_rgb_pixels_are_untouched(tmp_path):
    sample_image().save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(sample_image()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_orientation_is_applied(tmp_path, orientation):
    quadrants = Image.new("RGB", (32, 16))  # top left red, the rest black
    quadrants.paste((255, 0, 0), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    quadrants.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = open_image(tmp_path / "a.jpg")
    assert image.size == ((16, 32) if orientation >= 5 else (32, 16))
    # Where the stored top left corner is seen, by the meaning of each value in the EXIF standard.
    right, bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    x, y = (image.width - 3 if right else 2), (image.height - 3 if bottom else 2)
    red, green, _ = image.getpixel((x, y))
    assert red > 200
    assert green < 60
    assert image.getpixel((image.width - 1 - x, image.height - 1 - y))[0] < 60


def test_damaged_camera_data_do_not_matter(tmp_path):
    sample_image().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert open_image(tmp_path / "a.jpg").size == sample_image().size


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_to_8(tmp_path, suffix):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.asarray(open_image(tmp_path / f"a.{suffix}"))[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


def test_big_endian_16_bits(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257 * 7))
    assert np.asarray(open_image(tmp_path / "a.pgm"))[0].tolist() == [[255] * 3, [7] * 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535, 257]], np.int32), [0, 255, 1]),
        (np.array([[-100, 0, 155]], np.int32), [0, 100, 255]),
        (np.array([[0.0, 1.0, 0.5]], np.float32), [0, 255, 128]),
        (np.array([[0.0, 255.0, 7.0]], np.float32), [0, 255, 7]),
        (np.array([[-1.0, np.nan, 4.0]], np.float32), [0, 51, 255]),
        (np.array([[5e4, 5e4, 5e4]], np.float32), [195, 195, 195]),
    ],
)
def test_integer_and_float_samples(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.asarray(open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == expected


def test_cmyk_grey_palette_and_bits(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert open_image(tmp_path / "a.tif").getpixel((0, 0)) == (255, 0, 0)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.allclose(open_image(tmp_path / "a.jpg").getpixel((8, 8)), (255, 0, 0), atol=6)
    Image.new("L", (2, 2), 77).save(tmp_path / "b.png")
    assert open_image(tmp_path / "b.png").getpixel((1, 1)) == (77, 77, 77)
    sample_image().quantize(8).save(tmp_path / "c.png")
    assert np.array_equal(open_image(tmp_path / "c.png"), sample_image().quantize(8).convert("RGB"))
    Image.new("1", (2, 2), 1).save(tmp_path / "d.png")
    assert open_image(tmp_path / "d.png").getpixel((1, 1)) == (255, 255, 255)


def test_transparency_lies_over_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    image.save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0].tolist() == [[200, 0, 0], [255] * 3, [204] * 3]
    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "b.png")
    assert open_image(tmp_path / "b.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "c.png", transparency=0)
    assert np.asarray(open_image(tmp_path / "c.png"))[0].tolist() == [[255] * 3, [40, 50, 60]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert open_image(tmp_path / f"a.{suffix}").getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_every_truncation_is_an_image_or_one_sentence(form):
    whole = encoded(form=form)
    read = refused = 0
    for length in range(0, len(whole), max(1, len(whole) // 24)):
        try:
            read += open_image(io.BytesIO(whole[:length]), name="cut.img").size == sample_image().size
        except BadImage as error:
            refused += "cut.img" in str(error) and "\n" not in str(error)
    assert read + refused == len(range(0, len(whole), max(1, len(whole) // 24)))
    assert refused


def test_truncated_jpeg_is_refused(tmp_path):
    sample_image(size=(64, 64)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-500])
    with pytest.raises(BadImage, match=r"a\.jpg is truncated or corrupt \("):
        open_image(tmp_path / "a.jpg")


def test_not_images(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "c.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    for name in "abc":
        with pytest.raises(BadImage, match=rf"{name}\.jpg is not an image"):
            open_image(tmp_path / f"{name}.jpg")
    with pytest.raises(BadImage, match="does not exist"):
        open_image(tmp_path / "d.jpg")
    with pytest.raises(BadImage, match="is a folder"):
        open_image(tmp_path)


def bomb(width: int, height: int) -> io.BytesIO:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [5000, 10_000, 60_000])
def test_bombs_are_refused_by_their_header(side, monkeypatch):
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self))
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match=r"bomb\.png .*pixels"):
            open_image(bomb(side, side), max_pixels=10_000_000, name="bomb.png")
    assert not decoded
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_higher_limit_than_pillows_is_obeyed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(io.BytesIO(encoded()), max_pixels=80).size == (10, 8)
    with pytest.raises(BadImage, match="more than the 79"):
        open_image(io.BytesIO(encoded()), max_pixels=79)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_bad_image_survives_a_worker():
    error = pickle.loads(pickle.dumps(BadImage("Image a is bad.")))
    assert isinstance(error, UserError)
    assert str(error) == "Image a is bad."


def test_find_images(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt", ".hidden.png", "._a.png", "sub/d.webp", ".git/e.png", "__MACOSX/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "circle").symlink_to(tmp_path)

    def names(found):
        return [p.relative_to(tmp_path).as_posix() for p in found]

    assert names(find_images(tmp_path)) == ["a.png", "b.JPG", "sub/d.webp"]
    assert names(find_images(tmp_path / "c.txt")) == ["c.txt"]
    assert names(find_images(f"{tmp_path}/*.png")) == ["a.png"]
    assert names(find_images(f"{tmp_path}/*/*.webp")) == ["sub/d.webp"]


def test_find_images_finds_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        find_images(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="No image matches"):
        find_images(f"{tmp_path}/*.jpg")


@pytest.mark.parametrize("form", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_can_be_read_as_it_is_stored(tmp_path, form, orientation):
    stored = np.random.RandomState(orientation).randint(0, 256, (6, 10, 3), np.uint8)
    stored = np.kron(stored, np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{form}"
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(form, {})
    Image.fromarray(stored).save(path, exif=exif, **options)
    assert orientation_of(path) == orientation
    assert stored_size(path) == (80, 48)
    seen, as_stored = open_image(path), open_image(path, upright=False)
    assert seen.info["orientation"] == as_stored.info["orientation"] == orientation
    # by the meaning of each value in the EXIF standard: where row 0 and column 0 of the stored pixels are seen
    turned = stored.swapaxes(0, 1) if orientation >= 5 else stored
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    assert np.abs(np.asarray(seen).astype(int) - turned).max() <= (4 if form == "jpg" else 0)
    assert np.abs(np.asarray(as_stored).astype(int) - stored).max() <= (4 if form == "jpg" else 0)


@pytest.mark.parametrize(
    ("mode", "dtype"), [("P", np.uint8), ("L", np.uint8), ("I;16", np.uint16), ("I", np.int32), ("1", np.uint8)]
)
def test_masks_are_read_as_they_are_stored(tmp_path, mode, dtype):
    most = {"I;16": 65536, "I": 70_000, "1": 2}.get(mode, 256)
    values = np.random.RandomState(3).randint(0, most, (7, 5)).astype(dtype)
    image = Image.fromarray(values * 255 if mode == "1" else values)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)
    image = image.convert("1") if mode == "1" else image
    image.save(tmp_path / ("a.tif" if mode == "I" else "a.png"), **({"transparency": 3} if mode == "P" else {}))
    read = open_mask(tmp_path / ("a.tif" if mode == "I" else "a.png"))
    assert read.dtype == dtype
    assert np.array_equal(read, values)


def test_masks_are_refused_by_their_header():
    with pytest.raises(BadImage, match=r"m\.png has 9000 x 9000 pixels, more than the 1,000"):
        open_mask(bomb(9000, 9000), max_pixels=1000, name="m.png")
    with pytest.raises(BadImage, match=r"m\.png is truncated or corrupt"):
        open_mask(bomb(900, 900), name="m.png")


def test_a_pipe_a_socket_and_a_broken_link_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "c.png").mkdir()
    sample_image().save(tmp_path / "c.png" / "d.PNG")
    (tmp_path / "e.png").symlink_to(tmp_path / "c.png" / "d.PNG")
    (tmp_path / "f.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "g.png"))
        assert survey(tmp_path) == (["c.png/d.PNG", "e.png"], {"no regular file": 4})
        for name in ("a", "f", "g"):
            with pytest.raises(BadImage, match="no regular file"):
                open_image(tmp_path / f"{name}.png")
            with pytest.raises(UserError, match="no regular file"):
                find_images(tmp_path / f"{name}.png")
    with pytest.raises(BadImage, match="does not exist"):
        open_image(tmp_path / "b.png")


def test_links_in_circles_are_no_images_and_no_folders(tmp_path):
    sample_image().save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("b.png")  # itself
    (tmp_path / "c.png").symlink_to("d.png")
    (tmp_path / "d.png").symlink_to("c.png")
    (tmp_path / "e").symlink_to(".")
    assert survey(tmp_path) == (["a.png"], {"no regular file": 3})
    (tmp_path / "f").mkdir()
    assert subfolders(str(tmp_path)) == folders_in(tmp_path) == ["e", "f"]


def test_what_is_left_out_is_counted_by_ending(tmp_path):
    names = [
        "a.HEIC",
        "b.heic",
        "sub/c.heic",
        "d",
        "e.txt",
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        ".x.png",
        "._a.heic",
    ]
    for name in [
        *names,
        "f.PNG",
        "g.JpEg",
        "__MACOSX/h.heic",
        ".git/config",
        "v1.2 of May/i.png",
        "v1.2 of May/note 1. x",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images, left_out = survey(tmp_path)
    assert images == ["f.PNG", "g.JpEg", "v1.2 of May/i.png"] == walk_images(tmp_path)
    assert left_out == {".heic": 3, "without ending": 2, ".txt": 1}
    assert left_out_sentence(left_out, "x") == ("6 files in x are left out: 3 .heic, 2 without ending, 1 .txt.")
    assert left_out_sentence({}, "x") is None
    many = left_out_sentence({f".{letter}": 1 for letter in "abcdefgh"}, "x")
    assert many is not None
    assert many.endswith("1 .a, 1 .b, 1 .c, 1 .d, 1 .e, 3 others.")


def test_a_folder_that_cannot_be_read_is_counted(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # the superuser may read everything
    assert survey(tmp_path) == (["a.png"], {"folder that cannot be read": 1})


@pytest.mark.parametrize("size", [(300_000, 1), (1, 300_000)])
def test_sides_without_end_are_refused_by_their_header(size):
    with pytest.raises(BadImage, match="sides of more than 262,144 are not read"):
        open_image(bomb(*size), name="long.png")
    assert stored_size(bomb(*size)) == size


def test_the_order_is_that_of_whole_paths(tmp_path):
    """Also where a folder's name is the beginning of another one, or of a file."""
    names = ["a/x.png", "a-b/x.png", "a.png", "a/b.png", "a/b/c.png", "a b.png", "b/a.png", "B.png", "a0/z.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    left_out: Counter[str] = Counter()
    assert list(iterate_images(tmp_path, left_out)) == sorted(names) == walk_images(tmp_path)
    assert not left_out
