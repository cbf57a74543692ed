"""The formats a network can leave Python in: their file endings, what they need, what they can do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ...errors import UserError, unknown
from ...utils import extras


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: as in `--format`.
        suffix: ending of its files.
        runtime: what runs them, as in `--runtime`.
        extra: the optional dependencies that write and run it; "" = none besides torch.
        modules: what must be importable to write it.
        free_axes: which of "batch" and "size" (height and width) a file may leave open.
        quantizes: whether int8 files can be written.
    """

    name: str
    suffix: str
    runtime: str
    extra: str
    modules: tuple[str, ...]
    free_axes: tuple[str, ...] = ("batch", "size")
    quantizes: bool = False

    def files(self, path: Path) -> list[Path]:
        """Every file an export to `path` consists of, the description included."""
        weights = [path.with_suffix(".bin")] if self.name == "openvino" else []
        return [path, *weights, sidecar_path(path)]


FORMATS = {
    f.name: f
    for f in (
        Format("onnx", ".onnx", "onnxruntime", "export", ("onnx", "onnxscript", "onnxruntime"), quantizes=True),
        Format("openvino", ".xml", "openvino", "openvino", ("openvino",), quantizes=True),
        Format("executorch", ".pte", "executorch", "executorch", ("executorch",), free_axes=()),
        Format("torch_export", ".pt2", "torch", "", ()),
    )
}
RUNTIMES = tuple(f.runtime for f in FORMATS.values())


def sidecar_path(path: Path) -> Path:
    """Where the description of an exported file lies: its name with .json behind."""
    return path.with_name(path.name + ".json")


def format_named(name: str) -> Format:
    """The format of a `--format` value.

    Raises:
        UserError: there is no such format.
    """
    if name not in FORMATS:
        raise UserError(unknown("format", name, FORMATS))
    return FORMATS[name]


def format_of(path: str | Path) -> Format | None:
    """The format whose file ending `path` has; None for any other file."""
    suffix = Path(path).suffix.lower()
    return next((f for f in FORMATS.values() if f.suffix == suffix), None)


def require(module: str, extra: str) -> ModuleType:
    """`extras.require`, without reports to the makers of what is imported."""
    with unreported():
        return extras.require(module, extra)


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Keep OpenVINO's converter and NNCF from reporting their use to their makers over the network.

    Both do so without asking, unless they believe that they run in continuous integration.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
