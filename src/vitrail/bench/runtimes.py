"""Networks in other runtimes: the one place where benchmarks meet the export."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from ..errors import UserError

#: runtimes besides torch, and the format each reads
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


def check_installed(runtime: str) -> None:
    """Raise `UserError` naming the extra unless the runtime is there."""
    if importlib.util.find_spec(runtime) is None:
        raise UserError(f"{runtime} is not installed: install it with pip install 'vitrail[deploy]'.")


def exported(network: nn.Module, runtime: str, folder: Path, image_size: tuple[int, int], batch: int) -> Path:
    """A network as a file of the runtime's format, for this size and batch only."""
    from ..deploy.exporting import export_file  # pyright: ignore[reportMissingImports]

    target = folder / f"network{SUFFIXES[FORMATS[runtime]]}"
    return export_file(network, FORMATS[runtime], target, image_size, batch, dynamic="none")


def opened(path: Path, runtime: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A file of the runtime's format as a function from images to logits."""
    from ..deploy.runtimes import open_runtime  # pyright: ignore[reportMissingImports]

    return open_runtime(path, runtime, threads)
