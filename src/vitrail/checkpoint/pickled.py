"""Files of pickled tensors, read without running anything they hold."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError


def read_pickle(path: Path) -> dict[str, Any]:
    """An authors' file, read by PyTorch's restricted unpickler, which builds tensors and runs nothing."""
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_safe_types()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other programs, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global:?)\s+[`'\"]?([\w.]+)", str(error))
        if found and not found.group(1).startswith("was"):
            raise UserError(
                f"{path} is refused: besides tensors it holds Python code ({found.group(1)}), which loading would run; "
                "ask its author for a .safetensors."
            ) from error
        raise UserError(
            f"{path} is damaged or no weights file (a pickle of anything but tensors is refused); fetch it again."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or no weights file; fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no weights: expected tensors by name, found {type(content).__name__}.")
    return content


def _check_archive(path: Path) -> None:
    """PyTorch stores tensors as they are: an archive that holds more than its own size would fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no weights file; fetch it again.") from error
    if size > path.stat().st_size:
        raise UserError(f"{path} is refused: it is packed, and unpacks to {size:,} bytes; save it with torch.save.")


def _safe_types() -> list[Any]:
    """Types that authors keep beside their tensors (options, a best accuracy) and that run nothing when built."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [np.dtype(kind) for kind in ("f4", "f8", "i4", "i8", "b1")]
    return [argparse.Namespace, np.dtype, (scalar, "numpy.core.multiarray.scalar"), scalar, *{type(k) for k in kinds}]
