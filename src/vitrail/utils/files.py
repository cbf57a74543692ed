"""Reading untrusted text, JSON, YAML and file names, and writing files atomically.

Every room may import this module; it imports only `errors`.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ..errors import UserError, printable

#: largest YAML file in bytes; a recipe or a list of classes has a few kilobytes
MAX_YAML = 1 << 20
#: errno values of a full disk
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: errno values of an unusable path
BAD_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO)
#: parts of torch's and safetensors' messages for a full disk
FULL_MESSAGES = ("No space left", "os error 28", "os error 27", "os error 122", "file write failed", "unexpected pos")
#: most bytes of a path below its root, and of each name in it
MAX_PATH, MAX_NAME = 3072, 255  # Linux: 4096, of which the root needs some
#: deepest nesting of lists and mappings in a recipe
MAX_DEPTH = 32


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file's content: UTF-8, with or without a byte-order mark.

    Raises:
        UserError: it cannot be read, is no regular file, or is not UTF-8.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}): save it as UTF-8."
        ) from error
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON document.

    Args:
        text: the document.
        where: name of the document in messages.

    Raises:
        UserError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply to be read.") from error
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}.") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file's content.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    return parse_json(read_text(path), str(path))


class _Plain(yaml.SafeLoader):
    """Loader of YAML's plain values; a repeated key is an error, and 1e-3 is a number as in JSON and YAML 1.2."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping without repeated keys, of which YAML would silently keep the last."""
        known: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in known:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            known.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        """A whole number of at most 64 bits: no option has a larger one."""
        value = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise yaml.constructor.ConstructorError(None, None, "a whole number of more than 64 bits", node.start_mark)
        return value


_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_yaml_int)
_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML document: no tags, no aliases, bounded in size and depth.

    Aliases are refused, since a few lines of them can expand to billions of values.

    Raises:
        UserError: it is no YAML of plain values, too large, or has a key twice.
    """
    if len(text) > MAX_YAML:
        raise UserError(f"{where} has more than {MAX_YAML:,} characters: it is no recipe.")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{where} uses YAML aliases (*{event.anchor}): write the values out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(f"{where} is nested too deeply to be read.")
        return yaml.load(text, Loader=_Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers out of range are ValueErrors
        reason = " ".join(str(error).split())
        raise UserError(f"{where} is no YAML of plain values: {reason}.") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """A YAML file's plain values; see `parse_yaml`.

    Raises:
        UserError: it cannot be read, or is no YAML of plain values.
    """
    path = Path(path)
    try:
        if path.is_file() and path.stat().st_size > MAX_YAML:
            raise UserError(f"{path} is larger than {MAX_YAML:,} bytes: it is no recipe.")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_yaml(read_text(path), str(path))


def inside(root: str | os.PathLike[str], name: Any, where: str, writing: bool = False) -> Path:
    """The path of a file named in data, which must lie below `root`.

    Every path read from a file (members of archives, COCO's and panoptic `file_name`, class names as file names,
    external data of ONNX) is checked here.

    Args:
        root: the folder that must contain it.
        name: the name in the file; any value, since the file is untrusted.
        where: where the name was found, for the message.
        writing: also refuse links that lead out of `root`. Reading follows links inside a data set.

    Raises:
        UserError: no text, empty, absolute, with `..`, a drive or a null character, longer than file systems allow, or
            out of `root` by a link.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: the file name must be a text, not {shortened(name)}.")
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    windows = PureWindowsPath(name)
    absolute = PurePosixPath(name).is_absolute() or bool(windows.drive or windows.root)
    if absolute or ".." in parts or "\0" in name:
        raise UserError(f"{where}: the file name {shortened(name)} leads out of its folder {root}: it is refused.")
    lengths = [len(part.encode("utf-8", "replace")) for part in (name, *name.split("/"))]
    if lengths[0] > MAX_PATH or max(lengths[1:]) > MAX_NAME:
        raise UserError(f"{where}: the file name {shortened(name)} is longer than file systems allow.")
    path = Path(root) / name
    if writing and not path.resolve().is_relative_to(Path(root).resolve()):
        raise UserError(f"{where}: {path} leads out of {root} by a link: it is refused.")
    return path


def shortened(value: Any, most: int = 80) -> str:
    """A value of an untrusted file for a message: its repr, printable, at most `most` characters."""
    try:
        # a long value is cut first, so that a message never needs much memory
        text = repr(value[: most * 2]) if isinstance(value, (str, bytes, list, tuple)) else repr(value)
    except (RecursionError, ValueError):  # deeply nested; an integer with too many digits for `repr`
        text = f"a value of type {type(value).__name__}"
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def exists(path: str | os.PathLike[str], option: str) -> bool:
    """True if an output path exists, also as a broken link.

    Raises:
        UserError: the name is invalid, or one of its folders is a file or not accessible.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {shortened(str(path))[1:-1]}: {getattr(error, 'strerror', error)}.") from error
    return True


def write_whole(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace a file by `data` atomically: a failure leaves the old file unchanged.

    Raises:
        OSError: the write failed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)  # of an interrupted write, or a link, which is never written through
        with open(temporary, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def saving(where: str | os.PathLike[str], advice: str = "free some space and repeat the command.") -> Iterator[None]:
    """Turn a failed write, in particular on a full disk, into a `UserError`.

    Args:
        where: path of the output, for the message.
        advice: what to do if the disk is full, for the message.

    Raises:
        UserError: the disk is full, or the folder is missing or not writable.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        if full or any(sign in str(error) for sign in FULL_MESSAGES):
            raise UserError(f"No space left on the disk of {where}: {advice}") from error
        if isinstance(error, OSError):
            raise UserError(f"Cannot write to {where}: {error.strerror or error}.") from error
        raise
