"""`vitrail demo`: a folder with a page that runs a network in a browser, for any static host."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..checkpoint.format import meta_of
from ..checkpoint.load import notes, open_network
from ..checkpoint.run_dir import data_of_run
from ..config.export import ExportOptions
from ..data.images import find_images, left_out_sentence, levels_of, open_image
from ..deploy.export.export import write_file
from ..deploy.export.trace import Shape
from ..deploy.export.verify import validation_images
from ..deploy.export.wrappers import part_of
from ..errors import UserError
from ..utils.draw import within
from ..utils.output_folder import OutputFolder
from ..version import __version__
from .description import description_of, preparation_of
from .runtime_files import PACKAGE, RuntimeFiles, find_runtime

#: where the page's own files are
SOURCES = Path(__file__).parent / "page"
#: files of the page that are the same for every network
PAGE = (
    *("index.html", "demo.css", "demo.js", "draw.js", "decode.js", "network.js", "prepare.js", "resample.js"),
    *("worker.js", "_headers", "ort/LICENSE.txt"),
)
NETWORK, DESCRIPTION = "network.onnx", "network.json"
#: subfolders of which earlier files are deleted when the page is written again
RENEWED = ("examples/", "ort/")
#: images on the page, where nothing is said, and at most
EXAMPLES, MOST_EXAMPLES = 8, 64
#: longest side of an example, and up to which one is kept without loss
LONGEST, LOSSLESS = 1024, 256


@dataclass
class Site:
    """A page that was written.

    Attributes:
        output: its folder.
        network: name of the network.
        head: of the network; None = a classifier.
        task: of the network.
        classes: number of them.
        files: their names and sizes in bytes.
        examples: number of example images, and where they are from.
        difference: largest of the ONNX file's outputs from PyTorch's, as a share of the largest output.
        runtime: version of onnxruntime-web.
        webgpu: whether the page can use a GPU.
    """

    output: str
    network: str
    head: str | None
    task: str
    classes: int
    files: dict[str, int]
    examples: str
    difference: float
    runtime: str
    webgpu: bool


def demo(
    weights: str | Path,
    *,
    output: str | Path,
    model: str | None = None,
    title: str | None = None,
    images: Sequence[str | Path] = (),
    examples: int = EXAMPLES,
    image_size: int | tuple[int, int] | None = None,
    onnxruntime_web: str | Path | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> Site:
    """Write a static page that runs a network in a browser: on images, and on what a camera sees.

    The folder works from any static host. Nothing in it leads to another address, and images stay on the reader's
    device.

    Args:
        weights: as of `predict`, timm:NAME, hf-hub:org/name and random:NAME included: a
            classifier, a RetinaNet, or a network for semantic segmentation.
        output: folder of the page; only unchanged files of an earlier page are replaced.
        model: the network an authors' file belongs to.
        title: of the page; None = task and network.
        images: example images: files, folders or globs; by default validation images of the run's data.
        examples: number of example images at most, 0 to 64.
        image_size: height and width of the input in pixels, one number or two; of a network with a head the short side.
            Smaller images are faster. None = those of the weights.
        onnxruntime_web: folder with the files of onnxruntime-web; None = looked for in node_modules and packages.
        note: called with notes for the user: origin and licence of the weights, what the page lacks.

    Raises:
        UserError: weights or images that cannot be used, a task that the page does not show, missing files of
            onnxruntime-web, or a file in `output` that must not be replaced.
    """
    weights = str(weights)
    if not 0 <= examples <= MOST_EXAMPLES:
        raise UserError(f"--examples {examples} is not allowed; give a number from 0 to {MOST_EXAMPLES}.")
    runtime = find_runtime(onnxruntime_web)
    network = open_network(weights, model)
    for text in notes(network):
        note(f"{weights}: {text}")
    part = part_of(network, features=False)
    preparation = preparation_of(network, part.module, image_size)
    shown, source = example_images(weights, network, images=images, count=examples, note=note)
    folder = OutputFolder(output, "--output", [weights, *map(str, images), *runtime.paths])
    names = [*PAGE, NETWORK, DESCRIPTION, *(f"ort/{path.name}" for path in runtime.paths)]
    folder.check(names)  # before anything long starts
    made = description_of(network, part, preparation, title or default_title(network))
    with folder.adding() as fresh:
        _copy_page(fresh, runtime)
        made["examples"] = _write_examples(fresh, shown)
        difference = _write_network(fresh, network, weights, preparation.free_size)
        made |= _about_files(fresh, runtime)
        (fresh / DESCRIPTION).write_text(json.dumps(made, ensure_ascii=False) + "\n", encoding="utf-8")
        sizes = {p.relative_to(fresh).as_posix(): p.stat().st_size for p in sorted(fresh.rglob("*")) if p.is_file()}
    folder.discard(name for name in folder.written if name.startswith(RENEWED) and name not in sizes)
    if not runtime.webgpu:
        note(f"{runtime.folder} has no files for WebGPU: the page runs on the processor alone.")
    return Site(
        output=str(folder.path),
        network=made["network"],
        head=made["head"],
        task=made["task"],
        classes=len(made["classes"]),
        files=sizes,
        examples=source,
        difference=difference,
        runtime=runtime.version,
        webgpu=bool(runtime.webgpu),
    )


def default_title(network: nn.Module) -> str:
    """Task and network."""
    meta = meta_of(network)
    return f"{meta.task.replace('_', ' ').capitalize()} with {meta.model}"


# ---- files ------------------------------------------------------------------------------------------------------


def _copy_page(folder: Path, runtime: RuntimeFiles) -> None:
    (folder / "ort").mkdir()
    for name in PAGE:
        (folder / name).write_bytes((SOURCES / name).read_bytes())
    for path in runtime.paths:
        shutil.copyfile(path, folder / "ort" / path.name)


def _write_network(folder: Path, network: nn.Module, weights: str, free_size: bool) -> float:
    """Write the network's ONNX file; returns the largest difference of its outputs, as a share of the largest one."""
    pre = meta_of(network).preprocess
    shape = Shape(1, pre.image_size, free_size=free_size, channels=pre.in_chans)
    options = ExportOptions("onnx", str(folder / NETWORK), threads=torch.get_num_threads())
    return max(check.relative for check in write_file(network, options, weights, [shape]).checks)


def _about_files(folder: Path, runtime: RuntimeFiles) -> dict[str, Any]:
    """What network.json says of the page's files."""
    return {
        "file": NETWORK,
        "bytes": (folder / NETWORK).stat().st_size,
        "runtime": {
            "wasm": f"ort/{runtime.wasm[0]}",
            "webgpu": f"ort/{runtime.webgpu[0]}" if runtime.webgpu else None,
            PACKAGE: runtime.version,
        },
        "vitrail": __version__,
    }


# ---- example images ---------------------------------------------------------------------------------------------


def example_images(
    weights: str, network: nn.Module, *, images: Sequence[str | Path], count: int, note: Callable[[str], None]
) -> tuple[list[Image.Image], str]:
    """Images for the page, and where they are from.

    Raises:
        UserError: named images that cannot be read.
    """
    meta = meta_of(network)
    if images:
        left_out: Counter[str] = Counter()
        paths = list(dict.fromkeys(path for name in images for path in find_images(name, left_out)))
        if sentence := left_out_sentence(left_out, "--images"):
            note(sentence)
        count = min(count, len(paths))
        chosen = [paths[i * len(paths) // count] for i in range(count)]
        levels = meta.preprocess.levels or levels_of(chosen)
        return [open_image(path, levels=levels) for path in chosen], f"{count} of --images"
    data = data_of_run(weights)
    if count == 0 or data is None:
        return [], "none"
    try:
        found = validation_images(data, meta, count)
    except UserError as error:
        note(f"The page has no example images, as the run's data cannot be read ({error}) Name some with --images.")
        return [], "none"
    if found:
        note(f"{len(found)} validation images of {data.title} are on the page: leave them out with --examples 0.")
    return found, f"{len(found)} validation images of {data.title}"


def _write_examples(folder: Path, images: Sequence[Image.Image]) -> list[str]:
    """Write the images, without what cameras store beside the pixels; their names."""
    (folder / "examples").mkdir()
    names = []
    for number, image in enumerate(images, 1):
        small = Image.fromarray(np.asarray(within(image.convert("RGB"), LONGEST)))
        lossless = max(small.size) <= LOSSLESS
        name = f"examples/{number}.{'png' if lossless else 'jpg'}"
        small.save(folder / name, quality=92)  # which PNG has none of
        names.append(name)
    return names
