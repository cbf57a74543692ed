"""Registry of the export formats; each has a file of its own."""

from __future__ import annotations

from pathlib import Path

from .base import Backend, Runtime
from .executorch import ExecuTorch
from .onnx import Onnx
from .openvino import OpenVino
from .torch_export import TorchExport

#: every format, in the order in which messages and tables name them
_ALL: tuple[Backend, ...] = (
    Onnx(),
    OpenVino(),
    ExecuTorch(),
    TorchExport(),
)
BACKENDS = {backend.name: backend for backend in _ALL}

__all__ = ["BACKENDS", "Backend", "Runtime", "backend_of"]


def backend_of(path: str | Path) -> Backend | None:
    """The backend whose file ending `path` has; None for any other file."""
    suffix = Path(path).suffix.lower()
    return next((backend for backend in _ALL if backend.suffix == suffix), None)
