"""Shortened networks of every family as weights files."""

from pathlib import Path

import pytest
import torch

from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.config.data import Preprocess
from vitrail.deploy.export.backends import BACKENDS
from vitrail.factory import build_model

FAMILIES = ("pslt_tiny", "lvt", "pale_tiny", "emsnet_xxtiny", "mat_1", "partialformer_b0")
SUFFIX = {name: backend.suffix for name, backend in BACKENDS.items()}
#: formats that take long to write; their tests are slow ones
SLOW = ("executorch",)
FAST = [name for name in BACKENDS if name not in SLOW]
#: formats to test: every one that is registered
EACH = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
#: options of int8, but for the data's name
INT8 = ["--quantize", "int8", "--data"]


def axes_of(format: str) -> str:
    """`--dynamic` of a file whose batch is free where the format allows it."""
    return "batch" if "batch" in BACKENDS[format].free_axes else "none"


def weights_of(name: str, folder: Path, size: tuple[int, int] = (64, 64)) -> str:
    """A file of random weights: one block a stage, ten classes."""
    torch.manual_seed(0)
    options = {"depths": [1, 1, 1, 1]}
    model = build_model(name, options, 10)
    path = folder / f"{name}.safetensors"
    classes = [f"class {i}" for i in range(10)]
    save_weights(path, model.state_dict(), WeightsMeta(name, options, classes=classes, preprocess=Preprocess(size)))
    return str(path)
