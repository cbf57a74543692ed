"""Options as plain values: data classes whose fields are the options, their types and their ranges."""

from .data import AugmentConfig, DataConfig, Preprocess
from .tasks import DetectionConfig, InferenceConfig, KeypointsConfig, ReidConfig, SegmentationConfig
from .train import DistillConfig, OptimConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "DetectionConfig",
    "DistillConfig",
    "InferenceConfig",
    "KeypointsConfig",
    "OptimConfig",
    "Preprocess",
    "ReidConfig",
    "SegmentationConfig",
    "TrainConfig",
]
