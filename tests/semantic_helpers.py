"""What the tests of semantic segmentation share."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from vitrail.config.data import Preprocess
from vitrail.config.tasks import InferenceConfig
from vitrail.tasks.semantic_segmentation import SemanticInference

CLASSES = ["wall", "sky", "tree", "road"]


def inference(head="semantic_fpn", short_side=64, max_side=200, **options) -> SemanticInference:
    preprocess = Preprocess(image_size=(32, 32), interpolation="bilinear")
    return SemanticInference(head, CLASSES, preprocess, InferenceConfig(**options), short_side, max_side)


def bilinear(x: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def sample_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Patches of colours under noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 9), -(-width // 9), 3))
    fine = np.kron(coarse, np.ones((9, 9, 1)))[:height, :width] + rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray(fine.clip(0, 255).astype(np.uint8))
