"""Small options of every head, which the tests of all heads read."""

import inspect
from typing import Any

from vitrail.checkpoint.description import COUNTS
from vitrail.factory import HEADS
from vitrail.tasks import TASKS, heads_of

#: of the head itself; classes and sizes, which a task sets, are added by `small_head`
SMALL: dict[str, dict[str, Any]] = {
    "retinanet": {"channels": 8},
    "ssdlite": {"extra_channels": [12, 8, 8, 8]},
    "sparse_rcnn": {"num_proposals": 5, "num_stages": 2, "channels": 16},
    "mask_rcnn": {"channels": 8, "fc_channels": 16},
    "panoptic_fpn": {"channels": 8, "fc_channels": 16, "semantic_channels": 12},
    "semantic_fpn": {"channels": 8, "fpn_channels": 8},
    "upernet": {"channels": 8, "aux_channels": 8},
    "segformer": {"channels": 8},
    "simple_baseline": {"deconv_channels": 8},
    "bnneck": {},
}


def small_head(head: str) -> dict[str, Any]:
    """Options of a small head: three classes (of a panoptic one three things and two kinds of stuff), small inputs."""
    assert head in SMALL, f"tests/head_helpers.py: SMALL has no options of head {head}"
    known = inspect.signature(HEADS[head].make).parameters
    counts = {name: 2 if name == "num_stuff" else 3 for name in COUNTS if name in known}
    if not HEADS[head].detector:
        return {**counts, **SMALL[head]}
    sizes = {"image_size": [96, 64]} if HEADS[head].one_size else {"min_size": 64, "max_size": 96}
    return {**counts, **sizes, **SMALL[head]}


def task_of(head: str) -> str:
    """The task that a head is for."""
    tasks = [task for task in TASKS if head in heads_of(task)]
    assert tasks, f"no task names head {head} in its `heads`"
    return tasks[0]
