"""Metrics of each task, as their data sets' own tools define them.

A `Metrics` object takes in a network's outputs batch by batch and computes at the end; `score` measures stored
predictions, without a network.
"""

from .base import Metrics
from .classification import ClassificationMetrics
from .coco import CocoMetrics, average_precision
from .keypoints import KeypointsMetrics
from .panoptic import PanopticMetrics, PanopticQuality, Segment
from .retrieval import Gallery, ReidMetrics, retrieval
from .segmentation import Confusion, SemanticMetrics
from .stored_predictions import score

__all__ = [
    "ClassificationMetrics",
    "CocoMetrics",
    "Confusion",
    "Gallery",
    "KeypointsMetrics",
    "Metrics",
    "PanopticMetrics",
    "PanopticQuality",
    "ReidMetrics",
    "Segment",
    "SemanticMetrics",
    "average_precision",
    "retrieval",
    "score",
]
