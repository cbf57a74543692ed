"""Registry of the export formats; each has a file of its own."""

from __future__ import annotations

from pathlib import Path

from ....errors import UserError, unknown
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
RUNTIMES = tuple(backend.runtime for backend in _ALL)

__all__ = ["BACKENDS", "RUNTIMES", "Backend", "Runtime", "backend_named", "backend_of"]


def backend_named(name: str) -> Backend:
    """The backend of a `--format` value.

    Raises:
        UserError: there is no such format.
    """
    if name not in BACKENDS:
        raise UserError(unknown("format", name, BACKENDS))
    return BACKENDS[name]


def backend_of(path: str | Path) -> Backend | None:
    """The backend whose file ending `path` has; None for any other file."""
    suffix = Path(path).suffix.lower()
    return next((backend for backend in _ALL if backend.suffix == suffix), None)
