"""Shortened networks of every family as weights files."""

from pathlib import Path

import pytest
import torch

from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.config.data import Preprocess
from vitrail.factory import build_model

FAMILIES = ("pslt_tiny", "lvt", "pale_tiny", "emsnet_xxtiny", "mat_1", "partialformer_b0")
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "executorch": ".pte", "torch_export": ".pt2"}
#: formats to test; lowering to ExecuTorch takes longest
EACH = ["onnx", "openvino", "torch_export", pytest.param("executorch", marks=pytest.mark.slow)]
#: options of int8, but for the data's name
INT8 = ["--quantize", "int8", "--data"]


def weights_of(name: str, folder: Path, size: tuple[int, int] = (64, 64)) -> str:
    """A file of random weights: one block a stage, ten classes."""
    torch.manual_seed(0)
    options = {"depths": [1, 1, 1, 1]}
    model = build_model(name, options, 10)
    path = folder / f"{name}.safetensors"
    classes = [f"class {i}" for i in range(10)]
    save_weights(path, model.state_dict(), WeightsMeta(name, options, classes=classes, preprocess=Preprocess(size)))
    return str(path)
