"""`vitrail token_labels`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..config.data import DataConfig
from .parsing import Call, Parser, parser_of
from .printing import print_json, write_line


def parser() -> Parser:
    """Its options."""
    made = parser_of("token_labels")
    made.add_argument("teacher", help="a .safetensors, a run directory, an authors' file, or timm:MODEL")
    made.add_class_arguments(DataConfig, "data", help="which images; their training part")
    made.add_function_arguments(token_labels, skip={"teacher", "data", "as_json"})
    return made


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    return token_labels(**call.values, as_json=call.as_json)


def token_labels(
    teacher: str,
    data: DataConfig,
    output: str,
    model: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    top_k: int = 5,
    batch_size: int = 16,
    device: str = "auto",
    overwrite: bool = False,
    as_json: bool = False,
) -> int:
    """Make label maps for `vitrail train --token_labels`.

    Args:
        teacher: a .safetensors of ours, a run directory, an authors' file with --model, or timm:MODEL.
        data: which images; their training part.
        output: folder for the maps, one a training image.
        model: the network an authors' file belongs to.
        image_size: side, or (height, width), at which the teacher sees the images; None = its own.
        top_k: number of classes kept at each place.
        batch_size: images in one forward pass.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        overwrite: make maps anew that are there already.
        as_json: print one JSON document.
    """
    from ..engine.make_token_labels import make_label_maps

    made = make_label_maps(teacher, data, Path(output), model, image_size, top_k, batch_size, device, overwrite)
    if as_json:
        return print_json(dataclasses.asdict(made))
    rows, columns = made.grid
    write_line(
        f"{made.made:,} label maps of {rows}x{columns} places by {made.teacher} in {made.folder}, {made.kept:,} kept"
    )
    return 0
