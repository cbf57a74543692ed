"""From a file to an upright 8-bit RGB picture, or to one sentence on why that is impossible."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError

MAX_PIXELS = 178_956_970  # where Pillow itself stops by default
EXTENSIONS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff"))
EXTENSIONS |= {".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif", ".jp2"}
# Only pixel formats: Pillow also opens EPS by starting another program, which no data set needs.
FORMATS = frozenset(["JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "TGA", "AVIF", "JPEG2000"])


class BadImage(UserError):
    """A picture that cannot be used; the sentence names the file and the reason."""


def open_image(
    source: str | os.PathLike[str] | BinaryIO, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """Reads one picture as an upright RGB image.

    The camera's orientation is applied, 16-bit and float samples are scaled to 8 bits, transparency is laid over
    white, and of an animation the first frame is taken. The size is read from the header and judged before any
    pixel is decoded.

    Args:
        source: a path or an open binary file.
        max_pixels: pictures with more pixels are refused.
        name: what messages call the picture; default the path.

    Raises:
        BadImage: no such file, not a picture, truncated, corrupt or too large.
    """
    path = source if isinstance(source, str | os.PathLike) else None
    name = name or str(path if path is not None else getattr(source, "name", "picture"))
    try:
        with _pillow_limit(max_pixels), Image.open(source, formats=_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(
                    f"Picture {name} has {width} x {height} pixels, more than the {max_pixels:,} that are allowed: "
                    "make it smaller or raise max_pixels."
                )
            image.load()
            return _to_rgb(_upright(image))
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage(f"Picture {name} does not exist.") from None
    except IsADirectoryError:
        raise BadImage(f"{name} is a folder, not a picture.") from None
    except PermissionError:
        raise BadImage(f"Picture {name} may not be read: its permissions forbid it.") from None
    except UnidentifiedImageError:
        raise BadImage(f"{name} is not a picture in a known format.") from None
    except Image.DecompressionBombError:
        raise BadImage(f"Picture {name} has more than the {max_pixels:,} pixels that are allowed.") from None
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"Picture {name} is truncated or corrupt ({reason}).") from error


def is_image_name(name: str) -> bool:
    """Whether a file name looks like a picture's; hidden files, such as macOS's `._a.jpg`, do not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def walk_images(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all pictures below a folder, relative to it, sorted; links are followed, circles are not."""
    folder, found, seen = os.fspath(folder), [], set()
    for here, subfolders, files in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(s for s in subfolders if not is_ignored_folder(s))
        found += [os.path.relpath(os.path.join(here, f), folder) for f in files if is_image_name(f)]
    return sorted(found)


def is_ignored_folder(name: str) -> bool:
    """Whether a folder is an operating system's or a tool's, not the user's."""
    return name.startswith(".") or name == "__MACOSX"


def find_images(path_or_glob: str | os.PathLike[str]) -> list[Path]:
    """The pictures that a path means: one file, all below a folder, or those that match a glob (`**` allowed).

    A file that is named outright is returned whatever its extension; opening it will tell.

    Raises:
        UserError: nothing there.
    """
    text = os.path.expanduser(os.fspath(path_or_glob))
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [path / name for name in walk_images(path)]
        if not found:
            raise UserError(f"Folder {text} holds no pictures ({', '.join(sorted(EXTENSIONS))}).")
        return found
    if not glob.has_magic(text):
        raise UserError(f"{text} does not exist: give a picture, a folder or a pattern such as 'photos/*.jpg'.")
    found = [Path(p) for p in sorted(glob.glob(text, recursive=True)) if is_image_name(os.path.basename(p))]
    if not found:
        raise UserError(f"No picture matches {text}.")
    return found


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Leaves the judgement to us: Pillow's warnings are silent, its limit is lifted only if ours is higher."""
    before = Image.MAX_IMAGE_PIXELS
    lift = before is not None and max_pixels > 2 * before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters becomes an error
        try:
            if lift:
                Image.MAX_IMAGE_PIXELS = max_pixels
            yield
        finally:
            if lift:
                Image.MAX_IMAGE_PIXELS = before


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Those of our formats that this build of Pillow can read, the common ones first."""
    Image.preinit()
    Image.init()
    return [name for name in Image.ID if name in FORMATS]


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged camera data does not make the pixels bad
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scales samples of more than 8 bits to 0..255.

    Integers up to 65535 are 16-bit samples, floats up to 1 are shares of white and floats up to 255 are 8-bit values:
    all three keep their absolute brightness. Anything else has no known white and is stretched between its smallest
    and its largest value.
    """
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > (255 if is_float else 65535):
        scaled = (values - low) * (255 / (high - low)) if high > low else values * 0
    elif is_float:
        scaled = values * 255 if high <= 1 else values
    else:
        scaled = values / 257
    return np.round(scaled).astype(np.uint8)
