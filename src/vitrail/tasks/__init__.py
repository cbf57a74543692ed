"""Tasks: network, data, loss and metrics of each; `build_task` makes the one of a recipe, `task_of` that of weights."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from ..checkpoint.description import WeightsMeta
from ..config.data import DataConfig
from ..config.tasks import InferenceConfig
from ..config.train import TrainConfig
from ..data import DATASETS
from ..errors import UserError, unknown
from ..metrics.base import Metrics
from ..utils.plain import from_dict
from .base import Batches, Inference, Task, measure
from .with_head import DenseTask, Example

__all__ = [
    "TASKS",
    "Batches",
    "DenseTask",
    "Example",
    "Inference",
    "Metrics",
    "Task",
    "build_task",
    "data_of",
    "default_size_of",
    "group_of",
    "heads_of",
    "measure",
    "task_of",
]

#: module and class of each task, by its name in recipes
TASKS = {
    "classification": ("classification", "Classification"),
    "detection": ("detection", "Detection"),
    "instance_segmentation": ("detection", "InstanceSegmentation"),
    "panoptic_segmentation": ("panoptic_segmentation", "PanopticSegmentation"),
    "semantic_segmentation": ("semantic_segmentation", "SemanticSegmentation"),
    "keypoints": ("keypoints", "Keypoints"),
    "reid": ("reid", "Reid"),
}


def build_task(config: TrainConfig) -> Task:
    """The task of a recipe, with its data opened.

    Raises:
        UserError: unknown task, or data that cannot be used.
    """
    return _class_of(config.task)(config)


def task_of(meta: WeightsMeta, data: DataConfig | None = None, inference: InferenceConfig | None = None) -> DenseTask:
    """The task of a trained network with a head, ready to measure and to use it.

    Args:
        meta: what the weights say of themselves.
        data: to measure on; opened when it is first asked for.
        inference: how the network is used.

    Raises:
        UserError: unknown task, or settings it cannot have.
    """
    values = {
        "task": meta.task,
        "model": meta.model,
        "model_options": meta.model_options,
        "head": meta.head,
        "head_options": meta.head_options,
        "image_size": meta.preprocess.image_size,
        "mean": meta.preprocess.mean,
        "std": meta.preprocess.std,
        **meta.settings,
    }
    config = from_dict(TrainConfig, values)
    config = replace(config, data=data or DataConfig(), inference=inference or InferenceConfig())
    task = _class_of(config.task)(config, meta.classes)
    task.preprocess.levels = meta.preprocess.levels
    if task.preprocess.interpolation != meta.preprocess.interpolation:  # no recipe has it, but weights of others do
        task.preprocess.interpolation = meta.preprocess.interpolation
        task.inference = task.build_inference()
    return task


def heads_of(task: str) -> tuple[str, ...]:
    """The heads of a task, its default first; classification has none."""
    return getattr(_class_of(task), "heads", ())


def group_of(task: str) -> str:
    """The group of options that a task has for itself."""
    return _class_of(task).group


def default_size_of(task: str) -> tuple[int, int]:
    """(height, width) of the input of a task with heads, where no recipe names one."""
    return _class_of(task).default_size


def data_of(task: str) -> tuple[str, ...]:
    """Names of the data that a task can learn from."""
    source = getattr(_class_of(task), "source", None)
    return DATASETS if source is None else source[:1]


def _class_of(task: str) -> Any:
    if task not in TASKS:
        raise UserError(unknown("task", task, TASKS))
    module, name = TASKS[task]
    # a task's own libraries are imported with it
    return getattr(importlib.import_module(f".{module}", __package__), name)
