"""Exported files at work: one class a runtime, and a file as a network that predicts and is measured like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ...checkpoint.description import KEY
from ...checkpoint.load import open_network
from ...errors import BadOption, UserError
from ...utils.files import read_text, shortened
from .formats import FORMATS, RUNTIMES, Format, format_of, require, sidecar_path
from .metadata import KINDS, Sidecar
from .trace import first_line
from .untrusted import check_onnx, check_torch_export
from .writing import quiet


class Runtime(Protocol):
    """A loaded file."""

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one float32 input (B, C, H, W)."""
        ...


class OnnxRuntime:
    """An ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, threads: int = 1):
        ort = require("onnxruntime", "export")
        check_onnx(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one input."""
        return self.session.run(None, {self.input: images})

    def metadata(self) -> dict[str, str]:
        """The entries of the file's metadata."""
        return dict(self.session.get_modelmeta().custom_metadata_map)


class OpenVino:
    """An OpenVINO IR on the CPU, computed in float32: its default on some processors is bfloat16."""

    def __init__(self, path: Path, threads: int = 1):
        ov = require("openvino", "openvino")
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self.model = ov.Core().compile_model(str(path), "CPU", options)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one input."""
        results = self.model(images)
        return [results[i] for i in range(len(self.model.outputs))]


class ExecuTorch:
    """An ExecuTorch program; it takes its own number of threads."""

    def __init__(self, path: Path, threads: int = 1):
        runtime = require("executorch.runtime", "executorch").Runtime.get()
        self.program = runtime.load_program(path)  # the method uses its memory
        self.method = self.program.load_method("forward")

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one input."""
        return [output.numpy().copy() for output in self.method.execute([torch.from_numpy(images)])]


class TorchExport:
    """A file of `torch.export.save`, in this process."""

    def __init__(self, path: Path, threads: int = 1):
        check_torch_export(path)
        # the guards list what the tracer thought of the sizes it saw; ours are measured on other sizes instead
        self.module = _load_torch_export(path).module(check_guards=False)

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one input."""
        outputs = self.module(torch.from_numpy(images))
        return [output.numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]


def _load_torch_export(path: Path) -> ExportedProgram:
    try:
        return torch.export.load(path)
    except Exception as error:  # PyTorch's own words point to warnings, which say less than these
        raise UserError(
            f"{path} is damaged or no torch_export file (PyTorch cannot rebuild its graph and weights); export the "
            "network again."
        ) from error


#: outputs that have a channel a class
NAMED = (KINDS["classification"], KINDS["semantic_segmentation"])

OPENERS: dict[str, Callable[[Path, int], Runtime]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "executorch": ExecuTorch,
    "torch": TorchExport,
}


def open_runtime(path: Path, format: Format, threads: int = 1) -> Runtime:
    """An exported file, ready to run.

    Raises:
        UserError: no such file, a damaged one, or its runtime is not installed.
    """
    missing = [file for file in format.files(path)[:-1] if not file.is_file()]
    if missing:
        raise UserError(f"There is no file {missing[0]}.")
    try:
        with quiet():
            return OPENERS[format.runtime](path, threads)
    except UserError:
        raise
    except Exception as error:  # each runtime has its own kinds
        raise UserError(
            f"{path} is damaged or no {format.name} file ({first_line(error)}); export the network again."
        ) from error


class DeployedNetwork(nn.Module):
    """An exported file in its runtime, called like the network it was made from.

    Attributes:
        meta: of the network; its preprocessing gives this file's input.

    Args:
        path: the file.
        runtime: the file in its runtime.
        sidecar: its description.
    """

    def __init__(self, path: Path, runtime: Runtime, sidecar: Sidecar):
        super().__init__()
        self.path, self.runtime, self.sidecar = path, runtime, sidecar
        self.meta: Any = replace(sidecar.meta, preprocess=sidecar.input_preprocess)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of every input; None where these axes are free."""
        height, width = self.sidecar.shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, C, H, W), any B: a file for a fixed batch is run several times, with pictures repeated at the end.

        Raises:
            BadOption: channels or a size that the file does not take.
        """
        outputs = [torch.from_numpy(np.concatenate(parts)[: len(x)]) for parts in zip(*self._parts(x), strict=True)]
        self._check_classes(outputs)
        return outputs[0] if self.sidecar.output_kind in KINDS.values() else tuple(outputs)

    def _check_classes(self, outputs: list[Tensor]) -> None:
        """Refuse a description whose classes are not as many as the file's outputs.

        Raises:
            UserError: both numbers.
        """
        named = len(self.meta.classes)
        if self.sidecar.output_kind in NAMED and outputs[0].ndim > 1 and outputs[0].shape[1] != named:
            raise UserError(
                f"{sidecar_path(self.path)} names {named} classes, {self.path} gives {outputs[0].shape[1]}: they do "
                "not belong together; export the network again."
            )

    def _parts(self, x: Tensor) -> list[list[np.ndarray]]:
        for axis, given in zip(self.sidecar.shape[1:], x.shape[1:], strict=True):
            if isinstance(axis, int) and axis != given:
                wanted = " x ".join(map(str, self.sidecar.shape[1:]))
                raise BadOption(f"input {tuple(x.shape)} does not fit {self.path}, which takes {wanted}")
        images = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
        batch = self.sidecar.shape[0]
        if isinstance(batch, str):
            return [self.runtime(images)]
        images = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)])
        return [self.runtime(images[i : i + batch]) for i in range(0, len(images), batch)]


def open_deployed(path: Path, format: Format, threads: int = 1) -> DeployedNetwork:
    """An exported file and its description as a network.

    Raises:
        UserError: a file or a description that is missing or damaged.
    """
    for file in format.files(path)[:-1]:
        if not file.is_file():
            raise UserError(f"There is no file {file}.")
    sidecar = read_sidecar(path, format)  # before the runtime reads, builds or allocates anything
    return DeployedNetwork(path, open_runtime(path, format, threads), sidecar)


def read_sidecar(path: Path, format: Format) -> Sidecar:
    """The description of an exported file; of an ONNX file that lost its JSON, the one inside.

    Raises:
        UserError: there is none, or it is damaged.
    """
    beside = sidecar_path(path)
    if beside.is_file():
        made = Sidecar.parse(read_text(beside), str(beside))
        if made.format != format.name:
            raise UserError(f"{beside} describes a file of {shortened(made.format)}, not {path}; export it again.")
        return made
    text = _inside(path) if format.name == "onnx" else None
    if text is None:
        raise UserError(
            f"{path} has lost its description {beside.name}, which names its classes and its preprocessing: put it "
            "beside the file, or export the network again."
        )
    return Sidecar.parse(text, str(path))


def _inside(path: Path) -> str | None:
    """The description in an ONNX file's metadata, read by its runtime, which users of the file have."""
    return OnnxRuntime(path).metadata().get(KEY)


def open_any(weights: str, model: str | None = None, runtime: str = "auto", threads: int | None = None) -> nn.Module:
    """The network of a WEIGHTS argument, in PyTorch, or an exported file in its runtime.

    Args:
        weights: what `open_network` takes, or a file of `vitrail export`.
        model: the network an authors' file belongs to.
        runtime: "auto" = what the file is for; another name must be just that.
        threads: of the runtime; None = as many as PyTorch uses.

    Raises:
        UserError: what cannot be opened, a runtime that does not run this file, or a file without classes.
    """
    if runtime not in ("auto", *RUNTIMES):
        raise UserError(f"--runtime {runtime!r} is none of auto, {', '.join(RUNTIMES)}.")
    format = format_of(weights)
    fits = format.runtime if format else "torch"
    if runtime not in ("auto", fits):
        wanted = next(f for f in FORMATS.values() if f.runtime == runtime)
        raise UserError(
            f"--runtime {runtime} runs {wanted.suffix} files, not {weights}: make one with vitrail export --format "
            f"{wanted.name}, or leave --runtime out."
        )
    if format is None:
        return open_network(weights, model)
    if model is not None:
        raise UserError(f"{weights} says itself which network it holds: leave --model {model} out.")
    network = open_deployed(Path(weights), format, threads or torch.get_num_threads())
    if network.sidecar.output_kind not in KINDS.values():
        raise UserError(
            f"{weights} gives {network.sidecar.output_kind}, and nothing to predict or measure: use the weights it was "
            "made from."
        )
    return network
