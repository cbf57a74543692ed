"""Fused and exported networks for benchmarks: the only module here that uses `deploy`."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..config.export import Dynamic, ExportOptions
from ..errors import UserError
from ..utils.extras import how_to_install

#: runtimes that are timed
TimedRuntime = Literal["torch", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]
#: the precisions that each of them has here
PRECISIONS: dict[TimedRuntime, tuple[Precision, ...]] = {
    "torch": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
#: random inputs, each a batch, on which the ranges of activations of int8 files are measured
CALIBRATION_INPUTS = 16


def check_installed(runtime: str) -> None:
    """Raise `UserError`, which names the extra, unless the runtime is installed."""
    if importlib.util.find_spec(runtime) is None:
        extra = _backend(runtime).extra
        raise UserError(f"{runtime} is not installed: {how_to_install(extra)}.")


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


def export(
    network: nn.Module,
    meta: Any,
    *,
    runtime: str,
    folder: Path,
    images: Tensor,
    precision: Precision = "fp32",
    dynamic: Dynamic | None = None,
) -> None:
    """Write a network as `vitrail export` does, as a file for one runtime.

    Args:
        meta: the network's `WeightsMeta`.
        images: of the size that is timed, as many as in a batch.
        precision: of the file; the ranges of an int8 file are measured on random images, so only its speed counts.
        dynamic: as in `vitrail export`.

    Raises:
        UserError: the format has no form of the network, or computes something else.
    """
    from ..deploy.export.export import write_file

    backend, path = _backend(runtime), file_in(folder, runtime)
    network = copy.copy(network)
    network.meta = replace(meta, preprocess=replace(meta.preprocess, image_size=tuple(images.shape[2:])))
    fixed = len(images) if dynamic == "none" else None
    float_path = path if precision == "fp32" else path.with_name(f"float_{path.name}")
    options = ExportOptions(backend.name, str(float_path), dynamic=dynamic, batch_size=fixed)
    metadata = write_file(network, options, meta.model).metadata
    if precision == "int8":
        _quantize(float_path, path, backend=backend, metadata=metadata, images=images)


def _quantize(before: Path, path: Path, *, backend: Any, metadata: Any, images: Tensor) -> None:
    """Write the int8 form of a float file, which is removed."""
    from ..deploy.export.backends.base import quiet

    generator = torch.Generator().manual_seed(0)
    shape = (CALIBRATION_INPUTS, *images.shape)
    calibration = list(torch.randn(shape, generator=generator).to(images.dtype))
    with quiet():
        backend.quantize_file(before, path, metadata, calibration)
    for file in backend.files(before)[:-1]:
        file.unlink()


def opened(
    file: str | None, runtime: str, *, precision: Precision, threads: int, shape: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    """A file of `export` as a function from images to logits.

    Args:
        shape: of the images, for which a file with free axes is compiled now if its runtime does that.

    Raises:
        UserError: the processor does not have the precision.
    """
    backend, path = _backend(runtime), Path(str(file))
    loaded = _in_bf16(path, threads) if precision == "bf16" else backend.open(path, threads)
    if backend.compiles_shapes:
        loaded.compile_for(shape)
    return lambda images: loaded(images)[0]


def has_bf16() -> bool:
    """True if OpenVINO computes in bf16 on this processor."""
    from ..deploy.export.backends.openvino import new_core

    return "BF16" in new_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _in_bf16(path: Path, threads: int) -> Any:
    from ..deploy.export.backends.openvino import OpenVinoFile

    if not has_bf16():
        raise UserError("this processor has no bf16 instructions, without which OpenVINO computes in fp32")
    return OpenVinoFile(path, threads, precision="bf16")


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
