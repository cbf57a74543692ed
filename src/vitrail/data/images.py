"""Image files: finding them, and reading them as upright 8-bit RGB images or samples of masks."""

from __future__ import annotations

import glob
import os
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import UserError
from .levels import BAND, FULL, GUESSED_LEVELS, Levels, guess_levels, sample_range, scale_to_8_bits

MAX_PIXELS = 178_956_970  # where Pillow itself stops by default
#: a row of it, with 150 classes a pixel, is 157 MB of floats; JPEG's sides end at 65,535
MAX_SIDE = 262_144
EXTENSIONS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff"))
EXTENSIONS |= {".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif", ".jp2"}
#: what operating systems leave in folders, in small letters
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir"))
#: characters of a file name's ending, with its dot; what is longer is part of the name
MAX_EXTENSION_LENGTH = 12
#: kinds of files that a sentence names
MAX_KINDS = 5
#: transposition that makes the stored pixels upright, by EXIF's orientation
UPRIGHT_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: raw modes of 16-bit colours, of which Pillow keeps the high bytes -> the same in the other byte order
SWAPPED_BYTE_ORDER = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBX", "RGBA")
    for order, other in (("L", "B"), ("B", "L"), ("N", "B" if sys.byteorder == "little" else "L"))
}
#: raw modes of 2 and 4 bits a sample -> the factor by which Pillow scales them to 8 bits
SCALE_TO_8_BITS = {"L;2": 85, "L;4": 17}
# Only pixel formats: Pillow also opens EPS by starting another program, which no data set needs.
FORMATS = frozenset(["JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "TGA", "AVIF", "JPEG2000"])


class BadImage(UserError):
    """An image that cannot be used; the sentence names the file and the reason."""


Source = str | os.PathLike[str] | BinaryIO


def open_image(
    source: Source,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
    upright: bool = True,
    levels: Levels | None = None,
) -> Image.Image:
    """Reads one image as an upright RGB image.

    The camera's orientation is applied, samples of more than 8 bits are scaled to 8 (see `levels`), transparency is
    laid over white, and of an animation the first frame is taken. The size is read from the header and judged before
    any pixel is decoded.

    Args:
        source: a path or an open binary file.
        max_pixels: images with more pixels are refused.
        name: what messages call the image; default the path.
        upright: apply the camera's orientation; False = the pixels as they are stored.
        levels: black and white of samples of more than 8 bits, where the file does not state them; None = guessed
            from this file alone, with a warning where it matters (see `levels`).

    Returns:
        The image; its `info["orientation"]` is what the camera states, 1 (upright) to 8 (see `orientation_of`).

    Raises:
        BadImage: no such file, no regular file, not an image, truncated, corrupt or too large.
    """
    with _opened(source, max_pixels, name) as image:
        stated = _stated_levels(image)
        if not _is_deep(image):
            return _to_rgb(_decoded(image, upright))
        low = _low_bytes(source, upright) if _is_deep_colour(image) else None
        return _deep_to_rgb(_decoded(image, upright), low, stated or levels)


def to_rgb(image: Image.Image, levels: Levels | None = None) -> Image.Image:
    """An image that a library has opened, as `open_image` would give it (16-bit colours by their high bytes)."""
    image = _decoded(image, upright=True)
    return _deep_to_rgb(image, None, levels) if _is_deep(image) else _to_rgb(image)


def levels_of(sources: Iterable[Source], max_pixels: int = MAX_PIXELS) -> Levels | None:
    """Black and white for all images of a set, by the smallest and largest sample of some of them.

    Args:
        sources: the files that are read; of those with 8 bits the header only.
        max_pixels: larger ones are passed over.

    Returns:
        None if none of those has samples of more than 8 bits whose range the file does not state.
    """
    found, floats = list[Levels](), False
    for source in sources:
        try:
            with _opened(source, max_pixels, None) as image:
                if not _is_deep(image) or _stated_levels(image):
                    continue
                low = _low_bytes(source, False) if _is_deep_colour(image) else None
                image.load()
                found.append(sample_range(_samples(image, low)))
                floats |= image.mode == "F"
        except BadImage:  # said where it is used
            continue
    return guess_levels(min(low for low, _ in found), max(high for _, high in found), floats) if found else None


def open_mask(source: Source, max_pixels: int = MAX_PIXELS, name: str | None = None) -> np.ndarray:
    """The samples of a file of indices or ids as they are stored: nothing is scaled, converted or turned.

    Args:
        source: a path or an open binary file.
        max_pixels: files with more pixels are refused, before any pixel is decoded.
        name: what messages call the file; default the path.

    Returns:
        (H, W) palette indices, grey samples of 8, 16 or 32 bits, or 0 and 1 of one bit; (H, W, C) of colours. The type
        is that of the samples (uint8, uint16, int32, float32).

    Raises:
        BadImage: as for `open_image`.
    """
    with _opened(source, max_pixels, name) as image:
        stored = _rawmode(image)
        if ";16" in stored and image.mode in ("LA", "RGB", "RGBA"):  # of which Pillow keeps the high bytes alone
            raise BadImage(f"{name or source} has several channels of 16 bits: indices and ids lie in 8, or in one.")
        image = _decoded(image, upright=False)
        samples = np.asarray(image)
        if image.mode == "1":
            return samples.astype(np.uint8)
        return samples // SCALE_TO_8_BITS[stored] if stored in SCALE_TO_8_BITS else samples


def orientation_of(source: Source, max_pixels: int = MAX_PIXELS, name: str | None = None) -> int:
    """EXIF's orientation of an image, 1 (upright) to 8; 1 if the file states none.

    2 to 4 are mirrored or turned by 180 degrees and keep the size; 5 to 8 exchange width and height. `open_image`
    applies it, so coordinates and masks of the stored pixels have to be turned with it. Reads the header, of a PNG the
    pixels, too: an image that is opened anyway has the value in its `info["orientation"]`.

    Raises:
        BadImage: as for `open_image`; damaged camera data are no statement.
    """
    with _opened(source, max_pixels, name) as image:
        return _orientation(image)


def stored_size(source: Source, name: str | None = None) -> tuple[int, int]:
    """(width, height) of the pixels as they are stored, before the camera's orientation is applied; header only.

    Raises:
        BadImage: as for `open_image`.
    """
    with _opened(source, None, name) as image:
        tags: Any = getattr(image, "tag_v2", None)  # Pillow states a TIFF's size as it is seen
        return image.size if tags is None or image.format != "TIFF" else (int(tags[256]), int(tags[257]))


@contextmanager
def _opened(source: Source, max_pixels: int | None, name: str | None) -> Iterator[Image.Image]:
    """The file with its header read and its size judged; whatever goes wrong inside is a `BadImage`.

    Args:
        source: a path or an open binary file.
        max_pixels: None = nothing will be decoded, any size will do.
        name: what messages call it.
    """
    path = source if isinstance(source, str | os.PathLike) else None
    name = name or str(path if path is not None else getattr(source, "name", "image"))
    try:
        if path is not None:
            _check_regular(path, name)
        limit = 2**62 if max_pixels is None else max_pixels
        with _pillow_limit(limit), Image.open(source, formats=_formats()) as image:
            width, height = image.size
            if width * height > limit:
                raise BadImage(
                    f"Image {name} has {width} x {height} pixels, more than the {max_pixels:,} that are allowed: "
                    "make it smaller or raise max_pixels."
                )
            if max_pixels is not None and max(width, height) > MAX_SIDE:
                raise BadImage(
                    f"Image {name} has {width} x {height} pixels: sides of more than {MAX_SIDE:,} are not read."
                )
            yield image
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage(f"Image {name} does not exist.") from None
    except IsADirectoryError:
        raise BadImage(f"{name} is a folder, not an image.") from None
    except PermissionError:
        raise BadImage(f"Image {name} may not be read: its permissions forbid it.") from None
    except UnidentifiedImageError:
        raise BadImage(f"{name} is not an image in a known format.") from None
    except Image.DecompressionBombError:
        raise BadImage(f"Image {name} has more than the {max_pixels or 0:,} pixels that are allowed.") from None
    except MemoryError as error:
        raise BadImage(f"Image {name} needs more memory than there is.") from error
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"Image {name} is truncated or corrupt ({reason}).") from error


def _check_regular(path: str | os.PathLike[str], name: str) -> None:
    """Raise `BadImage` for a pipe, a socket or a device: opening one may wait for ever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise BadImage(f"{name} is no regular file (a pipe, a socket or a device), so no image is read from it.")


def head_of(path: str | os.PathLike[str], most: int = 1 << 16) -> bytes:
    """Size and first bytes of a file, which tell it from others; nothing of what cannot be read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return b""
        with open(path, "rb") as file:
            return b"%d " % status.st_size + file.read(most)
    except OSError:
        return b""


def is_image_name(name: str) -> bool:
    """True if a file name has the ending of an image; False for hidden files, such as macOS's `._a.jpg`."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def walk_images(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all images below a folder, relative to it, sorted; links are followed, circles are not."""
    return survey(folder)[0]


def survey(folder: str | os.PathLike[str]) -> tuple[list[str], dict[str, int]]:
    """All images below a folder, and how many files are left out.

    An image is a regular file (or a link to one) whose ending is in `EXTENSIONS`, in any capitals, and that is not
    hidden. Training, evaluation and prediction all use this rule.

    Returns:
        Paths relative to the folder, sorted; and how many files are left out by ending (".heic", "without ending") or
        reason ("no regular file"), the most frequent first. Hidden files, and what operating systems leave in folders,
        are not counted. Links are followed, circles are not.
    """
    left_out: Counter[str] = Counter()
    return list(iterate_images(folder, left_out)), dict(left_out.most_common())


def iterate_images(folder: str | os.PathLike[str], left_out: Counter[str]) -> Iterator[str]:
    """As `survey`, path by path in the same order: only the names of one folder and its parents are in memory.

    Args:
        folder: that is searched.
        left_out: files that are no images are added here, when their folder is read.
    """
    root = os.fspath(folder)
    waiting, seen = [""], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        if here and not here.endswith(os.sep):
            yield here
            continue
        folder = os.path.join(root, here.removesuffix(os.sep))
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                found = [name for entry in entries if (name := _taken(entry, left_out))]
        except OSError:
            left_out["folder that cannot be read"] += 1
            continue
        # sorted as whole paths are, in which a folder's name ends with a slash; the first is the last on the stack, and
        # of two links to one folder always the same one is followed
        waiting += [os.path.join(here, name) for name in sorted(found, reverse=True)]


def _taken(entry: os.DirEntry[str], left_out: Counter[str]) -> str | None:
    """The name of an image, or of a folder with a slash behind it; None of what is left out."""
    if is_folder(entry):
        return None if is_ignored_folder(entry.name) else entry.name + os.sep
    if reason := why_left_out(entry.name, _is_regular(entry)):
        left_out[reason] += 1
        return None
    return None if is_ignored_file(entry.name) else entry.name


def is_folder(entry: os.DirEntry[str]) -> bool:
    """True if an entry is a folder, or a link to one; a link that leads in a circle is neither."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def why_left_out(name: str, regular: bool = True) -> str | None:
    """Why a file is not taken for an image: its ending, or that it is no regular file.

    None = it is one, or it is of those that need no word.

    Args:
        name: of the file, without folders.
        regular: whether it is a regular file, or a link to one.
    """
    if is_ignored_file(name) or (regular and is_image_name(name)):
        return None
    if not regular:
        return "no regular file"
    ending = os.path.splitext(name)[1].lower()
    return ending if 1 < len(ending) <= MAX_EXTENSION_LENGTH and ending[1:].isalnum() else "without ending"


def left_out_sentence(left_out: Mapping[str, int], where: str) -> str | None:
    """One sentence on files that were left out, such as "40 files in photos are left out: 38 .heic, 2 without ending".

    Args:
        left_out: as from `survey`.
        where: the folder, or what else names the place.

    Returns:
        None if there are none.
    """
    total = sum(left_out.values())
    if not total:
        return None
    ranked = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count:,} {kind}" for kind, count in ranked[:MAX_KINDS])
    rest = sum(count for _, count in ranked[MAX_KINDS:])
    more = f", {rest:,} others" if rest else ""
    files = "1 file in {} is" if total == 1 else f"{total:,} files in {{}} are"
    return f"{files.format(where)} left out: {named}{more}."


def is_ignored_file(name: str) -> bool:
    """True if a file is hidden, or one that operating systems leave in folders."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def is_ignored_folder(name: str) -> bool:
    """True if a folder is an operating system's or a tool's, not the user's."""
    return name.startswith(".") or name == "__MACOSX"


def find_images(path_or_glob: str | os.PathLike[str], left_out: Counter[str] | None = None) -> list[Path]:
    """The images that a path means: one file, all below a folder, or those that match a glob (`**` allowed).

    A file that is named outright is returned whatever its extension; opening it will tell.

    Args:
        path_or_glob: what the user wrote.
        left_out: files that are no images are added here, as `survey` counts them.

    Raises:
        UserError: nothing there, or no regular file.
    """
    left_out = Counter() if left_out is None else left_out
    text = os.path.expanduser(os.fspath(path_or_glob))
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        names, others = survey(path)
        left_out.update(others)
        if not names:
            said = f" {left_out_sentence(others, 'it')}" if others else ""
            raise UserError(f"Folder {text} holds no images ({', '.join(sorted(EXTENSIONS))}).{said}")
        return [path / name for name in names]
    if path.exists():
        raise UserError(f"{text} is no regular file (a pipe, a socket or a device): give an image or a folder.")
    if not glob.has_magic(text):
        raise UserError(f"{text} does not exist: give an image, a folder or a pattern such as 'photos/*.jpg'.")
    matches = [Path(p) for p in sorted(glob.glob(text, recursive=True)) if not os.path.isdir(p)]
    reasons = {match: why_left_out(match.name, match.is_file()) for match in matches}
    left_out.update(reason for reason in reasons.values() if reason)
    found = [match for match, reason in reasons.items() if reason is None and not is_ignored_file(match.name)]
    if not found:
        raise UserError(f"No image matches {text}.")
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
    """The supported formats that this build of Pillow can read, the common ones first."""
    Image.preinit()
    Image.init()
    return [name for name in Image.ID if name in FORMATS]


def _orientation(image: Image.Image) -> int:
    try:
        stated = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged camera data state nothing, and do not make the pixels bad
        return 1
    return stated if 1 <= stated <= 8 else 1


def _decoded(image: Image.Image, upright: bool) -> Image.Image:
    """The pixels, upright or as they are stored; `info["orientation"]` is what the camera states."""
    stated = _orientation(image)
    image.load()
    done = image.format == "TIFF" and stated != _orientation(image)  # Pillow turns TIFFs by itself
    if done and not upright:
        turn = {6: UPRIGHT_TRANSPOSES[8], 8: UPRIGHT_TRANSPOSES[6]}.get(stated, UPRIGHT_TRANSPOSES.get(stated))
    else:
        turn = UPRIGHT_TRANSPOSES.get(stated) if upright and not done else None
    turned = image if turn is None else image.transpose(turn)
    turned.info = {key: value for key, value in image.info.items() if key not in ("exif", "xmp")}
    turned.info["orientation"] = stated
    return turned


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of samples of 8 bits, over white where it is transparent."""
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB")
    made = Image.new("RGB", image.size)
    made.info = dict(image.info)
    rows = max(1, BAND // image.width)  # in bands, since each needs several copies
    for top in range(0, image.height, rows):
        rgba = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        made.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), (0, top))
    made.info.pop("transparency", None)
    return made


# ---- samples of more than 8 bits ------------------------------------------------------------------------------------


def _rawmode(image: Image.Image) -> str:
    """Pillow's raw mode of the samples in the file, such as "RGB;16B"; "" if nothing is left to decode."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _is_deep_colour(image: Image.Image) -> bool:
    return image.mode in ("RGB", "RGBA") and _rawmode(image) in SWAPPED_BYTE_ORDER


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F" or _is_deep_colour(image)


def _stated_levels(image: Image.Image) -> Levels | None:
    """Black and white where the file, or its decoder, settles them."""
    if image.format in ("PPM", "JPEG2000"):
        return FULL  # Pillow scales their largest value to that of 16 bits
    tags: Any = getattr(image, "tag_v2", None)
    bits = tags.get(258, (8,)) if image.format == "TIFF" and tags is not None else (8,)
    most = max(bits) if isinstance(bits, tuple) else bits
    return (0.0, float(2**most - 1)) if 8 < most < 16 else None


def _low_bytes(source: Source, upright: bool) -> Image.Image | None:
    """The low bytes of 16-bit colours, of which Pillow decodes the high ones: decoded in the other order of bytes."""
    if not isinstance(source, str | os.PathLike):
        source.seek(0)
    try:
        with Image.open(source, formats=_formats()) as image:
            tiles: Any = image
            tiles.tile = [tile._replace(args=_other_byte(tile[3])) for tile in tiles.tile]
            return _decoded(image, upright)
    except (ValueError, KeyError, AttributeError, OSError):  # a decoder that has only one order
        return None


def _other_byte(arguments: Any) -> Any:
    if isinstance(arguments, tuple):
        return (SWAPPED_BYTE_ORDER[arguments[0]], *arguments[1:])
    return SWAPPED_BYTE_ORDER[arguments]


def _samples(high: Image.Image, low: Image.Image | None) -> np.ndarray:
    """(H, W) grey samples as they are, or (H, W, 3) colours of 16 bits."""
    values = np.asarray(high)
    if values.ndim == 2:
        return values
    rest = values if low is None else np.asarray(low)
    return values[..., :3].astype(np.uint16) * 256 + rest[..., :3]


def _deep_to_rgb(image: Image.Image, low: Image.Image | None, levels: Levels | None) -> Image.Image:
    """RGB of deep samples.

    Args:
        image: decoded; of 16-bit colours the high bytes.
        low: their low bytes, if they could be decoded.
        levels: black and white; None = guessed from these samples.
    """
    values = _samples(image, low)
    if levels is None:
        floats = image.mode == "F"
        levels = guess_levels(*sample_range(values), floats)
        if levels[1] < (1 if floats else FULL[1]) or (floats and levels[1] > 1):
            warnings.warn(GUESSED_LEVELS, stacklevel=3)
    grey_or_colours = scale_to_8_bits(values, levels)
    clear = image.info.get("transparency")
    if values.ndim == 2 and isinstance(clear, int):
        grey_or_colours[values == clear] = 255
    made = Image.fromarray(grey_or_colours).convert("RGB")
    made.info = {key: value for key, value in image.info.items() if key != "transparency"}
    if image.mode == "RGBA":
        made = Image.composite(made, Image.new("RGB", made.size, "white"), image.getchannel("A"))
        made.info = dict(image.info)
    return made
