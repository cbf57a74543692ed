"""Weights files of small networks with heads."""

from pathlib import Path

import torch

from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.config.data import Preprocess
from vitrail.factory import assemble

SHORT = {"depths": [1, 1, 1, 1]}
CASES = {
    "semantic_fpn": ("semantic_segmentation", {"num_classes": 3, "channels": 8, "fpn_channels": 8}, "class_maps"),
    "simple_baseline": ("keypoints", {"num_keypoints": 3, "deconv_channels": 8}, "heat_maps"),
    "bnneck": ("reid", {"num_ids": 3}, "embedding"),
    "retinanet": ("detection", {"num_classes": 3, "channels": 8}, "raw_boxes"),
    "ssdlite": ("detection", {"num_classes": 3, "extra_channels": [8, 8, 8, 8], "image_size": [96, 96]}, "raw_boxes"),
}
MASKS = ("mask_rcnn", "instance_segmentation", {"num_classes": 3, "channels": 8, "fc_channels": 8})


def weights_with(head: str, task: str, options: dict, folder: Path) -> str:
    """A file of fresh weights."""
    torch.manual_seed(0)
    model = assemble("mat_1", head, SHORT, options)
    path = folder / f"{head}.safetensors"
    meta = WeightsMeta("mat_1", SHORT, head=head, head_options=options, task=task, classes=["a", "b", "c"])
    meta.preprocess = Preprocess((96, 96))
    save_weights(path, model.state_dict(), meta)
    return str(path)
