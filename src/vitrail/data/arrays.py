"""Arrays of an `.npz` file: their headers are compared with what the file holds before memory is taken."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from typing import IO

import numpy as np

from ..errors import UserError

#: bytes of all arrays together; a compressed file may claim a thousand times its own size
MAX_BYTES = 2**31
#: of an array's header; numpy's own limit
MAX_HEADER = 10_000


def read_arrays(file: str | os.PathLike[str], names: Sequence[str], what: str) -> list[np.ndarray]:
    """Named arrays of an `.npz` file, in the order of the names.

    Nothing in the file is executed, and nothing is decompressed before all headers are known to fit.

    Args:
        file: the `.npz` file.
        names: of the arrays.
        what: what messages call such a file, such as "file of embeddings".

    Raises:
        UserError: it cannot be read, lacks an array, or an array does not fit its header or into `MAX_BYTES`.
    """
    described = f"{file} is no {what} (.npz with {', '.join(names)})"
    try:
        with zipfile.ZipFile(file) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            missing = [name for name in names if name not in members]
            if missing:
                raise UserError(f"{file} has no {missing[0]}: it needs {', '.join(names)}.")
            check_members(archive, names, str(file))
        with np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except UserError:
        raise
    except Exception as error:  # damaged archives and headers raise almost anything
        raise UserError(f"{described}.") from error


def check_members(archive: zipfile.ZipFile, names: Sequence[str], file: str) -> None:
    """Judge those of the named arrays that an `.npz` archive holds by their headers alone.

    Raises:
        UserError: an array does not fit its header, or all together `MAX_BYTES`.
        ValueError: an array holds Python objects; and what damaged archives raise.
    """
    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    wanted = {name: entries[name] for name in names if name in entries}
    if sum(entry.file_size for entry in wanted.values()) > MAX_BYTES:
        raise UserError(f"{file} holds arrays of more than {MAX_BYTES >> 30} GB, which is refused.")
    for name, entry in wanted.items():
        with archive.open(entry) as stream:
            _check_header(stream, entry.file_size, f"{file}, {name}")


def check_array(file: str | os.PathLike[str]) -> None:
    """Judge an `.npy` file by its header alone; raises as `check_members` does."""
    with open(file, "rb") as stream:
        _check_header(stream, os.fstat(stream.fileno()).st_size, str(file))


def _check_header(stream: IO[bytes], size: int, where: str) -> None:
    """Raise `UserError` unless an array's shape and type need as many bytes as follow its header."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream, max_header_size=MAX_HEADER)
    if dtype.hasobject:
        raise ValueError("objects, which allow_pickle would unpack")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise UserError(f"{where} has a header of shape {tuple(shape[:8])} that its bytes do not fill: it is damaged.")
