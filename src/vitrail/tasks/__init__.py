"""What can be learned: one object a task, with its network, data, loss and metric."""

from __future__ import annotations

from ..config import TrainConfig
from ..errors import UserError, unknown
from .base import Batches, Metrics, Task, measure

__all__ = ["TASKS", "Batches", "Metrics", "Task", "build_task", "measure"]

#: names of the tasks in recipes
TASKS = ("classification",)


def build_task(config: TrainConfig) -> Task:
    """The task of a recipe, with its data opened.

    Raises:
        UserError: unknown task, or data that cannot be used.
    """
    if config.task == "classification":
        from .classification import Classification

        return Classification(config)
    raise UserError(unknown("task", config.task, TASKS))
