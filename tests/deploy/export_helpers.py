"""Shortened networks of every family as weights files."""

from pathlib import Path

import torch

from vitrail.data.config import Preprocess
from vitrail.weights import WeightsMeta, build_model, save_weights

FAMILIES = ("pslt_tiny", "lvt", "pale_tiny", "emsnet_xxtiny", "mat_1", "partialformer_b0")
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "executorch": ".pte", "torch_export": ".pt2"}


def weights_of(name: str, folder: Path, size: tuple[int, int] = (64, 64)) -> str:
    """A file of random weights: one block a stage, ten classes."""
    torch.manual_seed(0)
    options = {"depths": [1, 1, 1, 1]}
    model = build_model(name, options, 10)
    path = folder / f"{name}.safetensors"
    classes = [f"class {i}" for i in range(10)]
    save_weights(path, model.state_dict(), WeightsMeta(name, options, classes=classes, preprocess=Preprocess(size)))
    return str(path)
