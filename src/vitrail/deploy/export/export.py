"""Export of a network to a file that runs without this library and is compared with PyTorch before it is kept."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...checkpoint.format import meta_of
from ...checkpoint.load import notes, open_network
from ...checkpoint.run_dir import data_of_run
from ...config.data import DataConfig, Preprocess, check_sides
from ...config.export import ExportOptions, Format
from ...config.train import height_width
from ...data.datasets.division import changed_options, check_division
from ...errors import UserError
from ...factory import HEADS
from ...utils.files import exists
from ...utils.output_folder import identity
from ...version import __version__
from .backends import BACKENDS, Backend, Runtime
from .backends.base import require
from .detector import WholeDetector
from .metadata import KINDS, ONE_SIZE, Metadata, metadata_path, versions_of
from .quantize import Quantization, check_quantizable, quantize
from .runtime import DeployedNetwork
from .trace import CannotExport, Graph, Shape, first_line, free_size_refused
from .verify import (
    Check,
    compare,
    compare_detections,
    images_to_compare,
    inputs,
    latency,
    refuse_disagreement,
    shapes_to_check,
    size_of,
    torch_threads,
)
from .wrappers import Part, part_of


@dataclass
class Exported:
    """Result of `export_network`.

    Attributes:
        file: the main file.
        format: as in `--format`.
        network: name of the network.
        shape: of the input: numbers, and names of the free axes.
        outputs: names.
        megabytes: of the file and its weights.
        compared_on: description of the images of the comparison.
        checks: the comparison of the float graph, shape by shape.
        torch_ms: median latency of PyTorch at the recorded size.
        runtime_ms: median latency of the file there.
        threads: of both.
        notes: origin and licence of the weights; deviations from the defaults, with reasons.
        quantization: accuracy and agreement of an int8 file; None for float.
    """

    file: str
    format: str
    network: str
    shape: list[int | str]
    outputs: list[str]
    megabytes: float
    compared_on: str
    checks: list[Check]
    torch_ms: float
    runtime_ms: float
    threads: int
    notes: list[str] = field(default_factory=list)
    quantization: Quantization | None = None


def export_network(
    weights: str, options: ExportOptions, data: DataConfig | None = None, images: Sequence[str] = ()
) -> Exported:
    """Write a network as a file, run it on images, and keep it only if its outputs agree with PyTorch's.

    Args:
        weights: a .safetensors, a run directory, timm:NAME, hf-hub:ORG/NAME, a folder in the Hub's form, a file of
            tensors with its network's name, or random:MODEL.
        options: options of the export.
        data: data set for the comparison, and for calibration and accuracy of int8; by default that of the run.
        images: images for the comparison instead: files, folders or globs.

    Raises:
        UserError: options that do not fit, files in the way, a missing package, or a runtime that disagrees; nothing is
            left behind.
    """
    options.check()
    backend = BACKENDS[options.format]
    output = Path(options.output)
    _check_options(options, backend, output)
    _check_files(options, backend, output, [weights, *images])
    for module in backend.modules:
        require(module, backend.extra)
    network = open_network(weights, options.model)
    part = part_of(network, options.features, options.end_to_end)
    if data is not None:
        if images and options.quantize is None:
            raise UserError("--images and --data both name images to compare on: choose one.")
        check_division(data, meta_of(network).task, changed_options(data))
    data = data or data_of_run(weights)
    if options.quantize:
        check_quantizable(backend, meta_of(network), data, kind=part.kind, options=options)
    resize_input(network, part.module, options.image_size)
    samples, source = images_to_compare(images, data, meta_of(network))
    job = _Job(
        network, part, options=options, backend=backend, output=output, data=data, samples=samples, source=source
    )
    job.notes += [f"{weights}: {text}" for text in notes(network)]
    with torch_threads(options.threads):
        return _first_that_works(job, _shapes(job), _attempt, weights)


@dataclass
class _Job:
    """Inputs of an export, the same for every attempt."""

    network: nn.Module
    part: Part
    options: ExportOptions
    backend: Backend
    output: Path
    data: DataConfig | None
    samples: list[Image.Image]
    source: str
    notes: list[str] = field(default_factory=list)


def in_runtime(network: nn.Module, runtime: str, source: str, threads: int) -> DeployedNetwork:
    """A network in another runtime: exported for its image size and any batch, compared with PyTorch, no file left.

    Args:
        network: with its `.meta`.
        runtime: as in `--runtime`.
        source: name of the network in messages.
        threads: of the runtime.

    Raises:
        UserError: a missing package, or a network that this runtime cannot run or runs with other outputs.
    """
    backend = next(backend for backend in BACKENDS.values() if backend.runtime == runtime)
    if part_of(network, features=False).kind not in KINDS.values():
        raise UserError(f'{source} decodes its boxes in PyTorch: runtime="{runtime}" cannot run it; leave runtime out.')
    pre = meta_of(network).preprocess
    shapes = [Shape(batch, pre.image_size, channels=pre.in_chans) for batch in (None, 1)]
    with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
        path = Path(folder) / f"network{backend.suffix}"
        options = ExportOptions(cast(Format, backend.name), str(path), threads=threads)
        written = write_file(network, options, source, shapes)
    return DeployedNetwork(Path(f"{source} in {runtime}"), written.runtime, written.metadata)


def write_file(
    network: nn.Module, options: ExportOptions, source: str, shapes: Sequence[Shape] | None = None
) -> Written:
    """Write the float file that `vitrail export` writes, without its JSON; compared with PyTorch on noise.

    Args:
        network: with its `.meta`, whose image size the file has.
        options: format, path, free axes and threads are used.
        source: name of the network in messages.
        shapes: to try, instead of those that `options` say.

    Raises:
        UserError: a missing package, or a network that this format cannot express or computes otherwise.
    """
    backend = BACKENDS[options.format]
    for module in backend.modules:
        require(module, backend.extra)
    job = _Job(
        network,
        part_of(network, options.features, options.end_to_end),
        options=options,
        backend=backend,
        output=Path(options.output),
        data=None,
        samples=_noise(meta_of(network).preprocess),
        source="noise",
    )
    with torch_threads(options.threads):
        return _first_that_works(job, shapes or _shapes(job), _write, source)


def _noise(preprocess: Preprocess) -> list[Image.Image]:
    """Two images to compare on, where there are no data: coarse and fine noise."""
    height, width = preprocess.image_size
    sizes = [(height // 8 + 1, width // 8 + 1, 3), (height, width, 3)]
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in sizes]


Made = TypeVar("Made")


def _first_that_works(job: _Job, shapes: Sequence[Shape], attempt: Callable[[_Job, Shape], Made], weights: str) -> Made:
    """The first attempt that succeeds, with the most free axes first; only one if the user chose the axes."""
    for shape in shapes[:-1]:
        try:
            return attempt(job, shape)
        except CannotExport as error:
            freed = ", ".join(shape.free.values())
            job.notes.append(f"{freed} cannot be free together: {error}")
    try:
        return attempt(job, shapes[-1])
    except CannotExport as error:
        raise UserError(f"{weights} was not exported to {job.backend.name}: {error}; nothing was written.") from error


@dataclass
class Written:
    """A float file that agrees with PyTorch, its reference graph, its metadata, and the file in its runtime."""

    graph: nn.Module
    metadata: Metadata
    checks: list[Check]
    runtime: Runtime


def _attempt(job: _Job, shape: Shape) -> Exported:
    """Write, quantise and time a file of this shape, and keep it."""
    options, backend = job.options, job.backend
    with _kept_if_whole(job.output, backend) as path:
        written = _write(replace(job, output=path), shape)
        graph, metadata, runtime = written.graph, written.metadata, written.runtime
        quantization = None
        if options.quantize:
            metadata.quantized = options.quantize
            del runtime, written.runtime
            quantization = quantize(path, backend, metadata=metadata, data=_data(job), graph=graph, options=options)
            metadata.quantized = None if quantization.kept == "float" else options.quantize
            job.notes.extend(_note_on_time(quantization))
            runtime = open_written(path, backend, options.threads)
        metadata_path(path).write_text(metadata.text(), encoding="utf-8")
        x = inputs(job.samples, metadata.input_preprocess, shape.batch or 1, shape.size)
        array = x.numpy()
        torch_ms, runtime_ms = latency(lambda: graph(x), lambda: runtime(array))
        megabytes = size_of(backend.files(path)[:-1]) / 1e6
    if backend.compiles_shapes and shape.free:
        job.notes.append(
            f"{', '.join(shape.free.values())} free: vitrail compiles the file for the sizes it meets; a program of "
            "yours should call model.reshape with its size before it compiles, which makes it faster"
        )
    return Exported(
        file=str(job.output),
        format=backend.name,
        network=metadata.meta.model,
        shape=shape.axes,
        outputs=metadata.outputs,
        megabytes=megabytes,
        compared_on=job.source,
        checks=written.checks,
        torch_ms=torch_ms,
        runtime_ms=runtime_ms,
        threads=options.threads,
        notes=job.notes,
        quantization=quantization,
    )


def _note_on_time(quantization: Quantization) -> list[str]:
    """The note on a float file that was kept in the place of a slower int8 one."""
    if quantization.kept == "int8":
        return []
    return [
        f"int8 takes {quantization.latency_ratio:.2f} times as long as float on this processor, so the file is the "
        "float one: --max_slowdown 10 keeps int8, for its size or for a device that is faster with it"
    ]


def _write(job: _Job, shape: Shape) -> Written:
    """Write the float file of this shape without its JSON, and compare it.

    Raises:
        CannotExport: there is none, or it disagrees with PyTorch.
    """
    options, backend, path = job.options, job.backend, job.output
    embed = meta_of(job.network).preprocess if options.embed_preprocessing else None
    differences = compare_detections if job.part.kind == "detections" else compare
    graph = Graph(job.part.module, embed).eval()  # the reference for the file's outputs
    metadata = _describe(job, shape)
    program = backend.trace(Graph(backend.in_form(job.part.module), embed), shape)
    backend.write(program, path, metadata, shape)
    runtime = open_written(path, backend, options.threads)
    pairs = shapes_to_check(shape, backend.least_side(program))
    compared = partial(differences, graph, images=job.samples, preprocess=metadata.input_preprocess)
    if backend.compiles_shapes and shape.free:  # what other programs run, and what this library runs
        checks = compared(open_written(path, backend, options.threads, as_written=True), pairs=pairs)
        refuse_disagreement(compared(runtime, pairs=pairs[:1]), options.tolerance)
    else:
        checks = compared(runtime, pairs=pairs)
    refuse_disagreement(checks, options.tolerance)
    if not any(check.detections is None or check.detections for check in checks):
        job.notes.append(
            "the network found nothing in these images, so that only empty results were compared: name images with "
            "objects in them with --images"
        )
    return Written(graph, metadata, checks, runtime)


def open_written(path: Path, backend: Backend, threads: int, as_written: bool = False) -> Any:
    """Open a file that was just written, see `Backend.open`.

    Raises:
        CannotExport: the runtime cannot load it.
    """
    try:
        return backend.open(path, threads, as_written)
    except UserError as error:
        cause = error.__cause__
        if cause is None:
            raise
        raise CannotExport(f"{backend.runtime} cannot load the file: {first_line(cause)}") from error


def _data(job: _Job) -> DataConfig:
    assert job.data is not None  # check_quantizable saw to it
    return job.data


def _describe(job: _Job, shape: Shape) -> Metadata:
    packages = ("torch", "timm", "numpy", *(m.split(".")[0] for m in job.backend.modules))
    return Metadata(
        meta=replace(meta_of(job.network), vitrail=__version__),
        format=job.backend.name,
        shape=shape.axes,
        outputs=job.part.outputs,
        output_kind=job.part.kind,
        embedded=job.options.embed_preprocessing,
        decoding=job.part.module.decoding() if isinstance(job.part.module, WholeDetector) else {},
        versions={"vitrail": __version__, "python": platform.python_version(), **versions_of(*packages)},
    )


# ---- checks of options ------------------------------------------------------------------------------------------


def _check_options(options: ExportOptions, backend: Backend, output: Path) -> None:
    if output.suffix.lower() != backend.suffix:
        raise UserError(f"--output {output}: a file of {backend.name} ends in {backend.suffix}.")
    if options.batch_size is not None and "batch" in (options.dynamic or ""):
        raise UserError("--batch_size fixes the batch and --dynamic batch frees it: choose one.")
    if options.end_to_end:
        _check_end_to_end(options, backend)
    for name in ("calibration_images", "max_drop", "max_slowdown"):
        if options.quantize is None and getattr(options, name) != getattr(ExportOptions, name):
            raise UserError(f"--{name} {getattr(options, name)} has no effect: it needs --quantize int8.")


def _check_end_to_end(options: ExportOptions, backend: Backend) -> None:
    """Refuse options that do not go with --end_to_end."""
    if options.features:
        raise UserError("--features leaves out what --end_to_end puts into the file: choose one.")
    if not backend.end_to_end:
        able = " and ".join(f.name for f in BACKENDS.values() if f.end_to_end)
        raise UserError(
            f"--end_to_end is for {able} files: {backend.name} has no suppression of boxes that this library can write."
        )
    if options.batch_size not in (None, 1) or "batch" in (options.dynamic or ""):
        wrong = f"--dynamic {options.dynamic}" if options.dynamic else f"--batch_size {options.batch_size}"
        raise UserError(
            f"{wrong} is not possible with --end_to_end: such a file takes one image, as each has its own number of "
            "detections; leave it out."
        )
    if options.quantize:
        raise UserError(
            f"--quantize {options.quantize} is not possible with --end_to_end: quantise the file without it, whose "
            "outputs are decoded by your program."
        )


def _check_files(options: ExportOptions, backend: Backend, output: Path, inputs: Sequence[str]) -> None:
    """Refuse output files that exist and must not be replaced.

    Args:
        inputs: weights and images, as the user wrote them.

    Raises:
        UserError: one exists without `overwrite`, is a folder or a link, or is read by this command.
    """
    read = {identity(path) for path in (*inputs, *(Path(name) / "best.safetensors" for name in inputs[:1]))} - {None}
    for file in backend.files(output):
        if not exists(file, "--output"):
            continue
        if file.is_symlink() or not file.is_file():
            raise UserError(f"--output {output}: {file} is a folder or a link, which is never replaced.")
        if identity(file) in read:
            raise UserError(f"--output {output}: {file} is read by this command, and never written over.")
        if not options.overwrite:
            raise UserError(f"{file} exists already: replace it with --overwrite, or choose another --output.")


def resize_input(network: nn.Module, part: nn.Module, image_size: int | tuple[int, int] | None) -> None:
    """Set the input size of the exported part; None = that of the weights.

    Raises:
        UserError: the network cannot take it.
    """
    meta = meta_of(network)
    if image_size is not None:
        size = height_width(image_size)
        meta.preprocess = replace(meta.preprocess, image_size=size)
    height, width = meta.preprocess.image_size
    check_sides((height, width), "--image_size")
    try:
        with torch.no_grad():
            part(torch.zeros(1, meta.preprocess.in_chans, height, width))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{meta.model} cannot take --image_size {height} {width} ({first_line(error)}); choose a larger one, or "
            "leave it out."
        ) from error


def _shapes(job: _Job) -> list[Shape]:
    """The shapes to try, those with most free axes first.

    Raises:
        UserError: the axes the user wants free cannot be.
    """
    options, backend, pre = job.options, job.backend, meta_of(job.network).preprocess
    refused = _refused_size(job)
    if options.dynamic is not None:
        wanted = [] if options.dynamic == "none" else options.dynamic.split(",")
        if not set(wanted) <= set(backend.free_axes):
            raise UserError(f"--format {backend.name} has fixed shapes: leave --dynamic out and give --batch_size.")
        if "size" in wanted and refused:
            raise UserError(f"--dynamic {options.dynamic} is not possible: {refused}; use --dynamic batch.")
        chains = [wanted]
    else:
        chains = _default_axes(job, refused)
    fixed = options.batch_size or 1
    return [Shape(None if "batch" in c else fixed, pre.image_size, "size" in c, pre.in_chans) for c in chains]


def _default_axes(job: _Job, refused: str | None) -> list[list[str]]:
    """The free axes to try where the user chose none; what speaks against a free size is noted.

    Tasks that resize every image to one size get files of that size, which are faster.
    """
    one_size = job.part.kind in ONE_SIZE
    if refused:
        job.notes.append(f"one size only: {refused}")
    elif one_size:
        job.notes.append("one size only, which is faster: --dynamic batch,size frees the size")
    allowed = set(job.backend.free_axes)
    if refused or one_size:
        allowed.discard("size")
    if job.options.batch_size is not None or job.options.end_to_end:
        allowed.discard("batch")
    chains = (["batch", "size"], ["batch"], [])
    return [list(c) for c in dict.fromkeys(tuple(axis for axis in chain if axis in allowed) for chain in chains)]


def _refused_size(job: _Job) -> str | None:
    if "size" not in job.backend.free_axes:
        return f"files of {job.backend.name} have fixed shapes"
    head = meta_of(job.network).head
    if job.options.end_to_end and head is not None and HEADS[head].one_size:
        return f"head {head} resizes every image to it"
    return free_size_refused(job.network)


# ---- files ------------------------------------------------------------------------------------------------------


@contextmanager
def _kept_if_whole(output: Path, backend: Backend) -> Iterator[Path]:
    """A temporary path next to the output; its files are moved to the output at the end, or deleted on failure.

    Raises:
        UserError: the folder of `output` cannot be written.
    """
    temporary: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".vitrail-new-", dir=output.parent))
        yield temporary / output.name
        for file in backend.files(temporary / output.name):
            os.replace(file, output.parent / file.name)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
