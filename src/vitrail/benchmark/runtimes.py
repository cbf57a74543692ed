"""Fused and exported networks for benchmarks: the only module here that uses `deploy`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError

#: runtimes that are timed
TimedRuntime = Literal["torch", "onnxruntime", "openvino"]


def check_installed(runtime: str) -> None:
    """Raise `UserError`, which names the extra, unless the runtime is installed."""
    if importlib.util.find_spec(runtime) is None:
        extra = _backend(runtime).extra
        raise UserError(f"{runtime} is not installed: install it with pip install 'vitrail[{extra}]'.")


def fused(network: nn.Module, images: Tensor) -> nn.Module:
    """The fused form of a network, checked on `images`; the network itself is not changed."""
    from ..deploy.fuse.fuse import fuse

    return fuse(network, images)


def frozen(network: nn.Module) -> nn.Module:
    """The compiled form of a network with its weights as constants; the benchmark compares its outputs."""
    from ..deploy.fuse.compiled import compile

    return compile(network, check=False)


def file_in(folder: Path, runtime: str) -> Path:
    """Path of the file that `export` writes for a runtime."""
    return folder / f"network{_backend(runtime).suffix}"


def export(network: nn.Module, meta: Any, runtime: str, folder: Path, images: Tensor) -> None:
    """Write a network as a file for one runtime, for images of this shape only.

    Args:
        meta: the network's `WeightsMeta`.
    """
    from ..deploy.export.metadata import Metadata
    from ..deploy.export.trace import Graph, Shape

    backend = _backend(runtime)
    batch, channels, height, width = images.shape
    shape, graph = Shape(batch, (height, width), channels=channels), Graph(backend.in_form(network))
    metadata = Metadata(meta, backend.name, shape.axes, ["logits"])
    backend.write(backend.trace(graph, shape), file_in(folder, runtime), metadata, shape)


def opened(path: Path, runtime: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A file of `export` as a function from images to logits, computed in fp32."""
    loaded = _backend(runtime).open(path, threads)
    return lambda images: loaded(images)[0]


class AsModule(nn.Module):
    """A file of `export` as a network, which a task's inference calls.

    Args:
        run: of `opened`.
        fixed_size: (height, width) of the images it takes.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], fixed_size: tuple[int, int]):
        super().__init__()
        self.run, self.fixed_size = run, fixed_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the network's output."""
        return torch.from_numpy(self.run(images.numpy()))


def _backend(runtime: str) -> Any:
    """The export backend whose files a runtime opens."""
    from ..deploy.export.backends import BACKENDS

    return next(backend for backend in BACKENDS.values() if backend.runtime == runtime)
