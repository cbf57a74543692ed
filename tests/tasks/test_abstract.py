"""A task, its inference or its metrics without one of their methods cannot be built."""

import pytest
import torch

from vitrail.metrics.base import Metrics
from vitrail.tasks.base import Inference, Task
from vitrail.tasks.with_head import DenseTask


@pytest.mark.parametrize("base", [Task, DenseTask, Inference, Metrics])
def test_a_missing_method_is_refused_at_construction(base):
    names = sorted(base.__abstractmethods__)
    for missing in names:
        made = type("Made", (base,), {name: lambda *_, **__: None for name in names if name != missing})
        with pytest.raises(TypeError, match=missing):
            made()


def test_a_whole_class_is_built():
    class Count(Metrics):
        def __init__(self):
            self.seen = torch.zeros(())

        def update(self, output, batch):
            self.seen += len(output)

        def state(self):
            return {"seen": self.seen}

        def load(self, states):
            self.seen = sum(state["seen"] for state in states)

        def compute(self):
            return {"seen": int(self.seen)}

        def report(self, folder):
            pass

    count = Count()
    count.update([1, 2], None)
    assert count.compute() == {"seen": 2}
