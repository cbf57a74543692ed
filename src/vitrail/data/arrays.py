"""Arrays of an `.npz` file: their headers are compared with what the file holds before memory is taken."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence

import numpy as np

from ..errors import UserError

#: bytes of all arrays together; a compressed file may claim a thousand times its own size
MOST_BYTES = 2**31
#: of an array's header; numpy's own limit
MOST_HEADER = 10_000


def read_arrays(file: str | os.PathLike[str], names: Sequence[str], what: str) -> list[np.ndarray]:
    """Named arrays of an `.npz` file, in the order of the names.

    Nothing in the file is executed, and nothing is decompressed before all headers are known to fit.

    Args:
        file: the `.npz` file.
        names: of the arrays.
        what: what messages call such a file, such as "file of embeddings".

    Raises:
        UserError: it cannot be read, lacks an array, or an array does not fit its header or into `MOST_BYTES`.
    """
    described = f"{file} is no {what} (.npz with {', '.join(names)})"
    try:
        with zipfile.ZipFile(file) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            missing = [name for name in names if name not in members]
            if missing:
                raise UserError(f"{file} has no {missing[0]}: it needs {', '.join(names)}.")
            if sum(members[name].file_size for name in names) > MOST_BYTES:
                raise UserError(f"{file} holds arrays of more than {MOST_BYTES >> 30} GB: it is no {what}.")
            for name in names:
                _check_header(archive, members[name], f"{file}, {name}")
        with np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except UserError:
        raise
    except Exception as error:  # damaged archives and headers raise almost anything
        raise UserError(f"{described}.") from error


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> None:
    """Raise `UserError` unless an array's shape and type need as many bytes as its entry holds."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream, max_header_size=MOST_HEADER)
        if dtype.hasobject:
            raise ValueError("objects")
        needed = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or needed != entry.file_size - stream.tell():
            raise UserError(
                f"{where} has a header of shape {tuple(shape[:8])} that its bytes do not fill: it is damaged."
            )
