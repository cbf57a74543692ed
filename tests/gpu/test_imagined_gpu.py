"""Every network on a GPU that PyTorch only imagines (fake tensors): the devices of all tensors, without a GPU.

A forward pass that mixes tensors of the processor in, or that waits for a number of the GPU, fails or is listed. Both
would also break a CUDA graph. Detectors choose boxes by number, which imagined tensors do not have.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from head_helpers import small_head
from network_helpers import NARROW, small
from vitrail.factory import HEADS, assemble

ONE_BLOCK = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


class FromProcessor(TorchDispatchMode):
    """Lists the operators that give a tensor of the GPU and take one of the processor, such as a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = [arg for arg in args if isinstance(arg, Tensor)]
        if isinstance(out, Tensor) and out.device.type == "cuda" and any(t.device.type == "cpu" for t in taken):
            self.found.append(str(func))
        return out


@pytest.fixture
def imagined() -> Iterator[FakeTensorMode]:
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    torch.__future__.set_overwrite_module_params_on_conversion(before)


def runs_on_it(model: nn.Module, mode: FakeTensorMode) -> None:
    with mode:
        model = model.to_empty(device="cuda")
        x = torch.randn(2, 3, 64, 64, device="cuda")
        for training in (True, False):
            with torch.set_grad_enabled(training), FromProcessor() as seen:
                out = model.train(training)(x)
            assert seen.found == []
            assert all(t.device.type == "cuda" for t in (out if isinstance(out, tuple) else [out]))


@pytest.mark.parametrize("family", sorted(NARROW))
def test_a_network_stays_on_its_gpu(family, imagined):
    runs_on_it(small(family, **{**NARROW[family], "depths": (1, 1, 1, 1)}), imagined)


@pytest.mark.parametrize("head", [name for name in HEADS if not HEADS[name].detector])
def test_a_head_stays_on_its_gpu(head, imagined):
    runs_on_it(assemble("mat_1", head, ONE_BLOCK, small_head(head)), imagined)


def test_what_would_leave_it_is_seen(imagined):
    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(3).to(x.device).view(3, 1, 1)

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.max())

    with pytest.raises(AssertionError, match="_to_copy"):
        runs_on_it(Mixes(), imagined)
    with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
        runs_on_it(Waits(), imagined)
