"""`compile`: a trained network, compiled by Inductor with its weights as constants."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn

from .compare import refuse_changes

#: input shapes whose first outputs are compared with those of the network
CHECKED = 8


def compile(model: nn.Module, mode: str | None = None, check: bool = True) -> CompiledNetwork:
    """A compiled copy of a network for inference, in which Inductor treats the weights as constants ("freezing").

    `torch.compile` leaves the weights of a network as inputs of its graph. As constants they are reordered once, for
    oneDNN's kernels, and norms are folded into convolutions. The first call with a size compiles, which takes about as
    long as with `torch.compile` (see docs/performance.md); after eight sizes PyTorch runs further ones uncompiled.
    Later changes of `model` have no effect on the copy.

    Args:
        model: a network, also one of `vitrail.fuse`; it is not changed.
        mode: as of `torch.compile`.
        check: compare the outputs with those of the network at the first sizes it is called with.

    Returns:
        A network in evaluation mode, called like `model`, without gradients. Its first call with wrong outputs raises
        RuntimeError. Do not train it.
    """
    return CompiledNetwork(copy.deepcopy(model).eval().requires_grad_(False), mode, check)


class CompiledNetwork(nn.Module):
    """See `compile`.

    Attributes:
        network: the network that was compiled; attributes that this module lacks are its.
    """

    def __init__(self, network: nn.Module, mode: str | None, check: bool):
        super().__init__()
        self.network = network
        # Inductor's graphs for all sizes expect other strides than frozen convolutions give
        self.compiled = torch.compile(_call_of(network), mode=mode, dynamic=False)
        self.unchecked = CHECKED if check else 0
        self.seen: set[Any] = set()
        self.eval()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":
                raise
            return getattr(self.network, name)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """The network's outputs.

        Raises:
            RuntimeError: they are not those of the network.
        """
        with frozen_weights():
            outputs = self.compiled(*inputs)
        shapes = tuple(getattr(x, "shape", None) for x in inputs)
        if self.unchecked and shapes not in self.seen:
            self.seen.add(shapes)
            self.unchecked -= 1
            name = type(self.network).__name__
            refuse_changes(self.network(*inputs), outputs, changed=f"torch.compile changed the outputs of {name}")
        return outputs


def _call_of(network: nn.Module) -> Callable[..., Any]:
    """The network's call as a function with a code object of its own.

    `torch.compile` keeps what it compiles by code object, which all networks of a class share: where one of them was
    compiled with weights as inputs, another one would run that graph instead of one with constant weights.
    """

    def call(*inputs: Any) -> Any:
        return network(*inputs)

    return FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


_frozen = threading.Lock()
_calls: list[bool] = []  # of each running call, whether freezing was on before the first one


@contextmanager
def frozen_weights() -> Iterator[None]:
    """Let Inductor compile with frozen weights; the global setting is as before when the last such call has ended.

    Freezing has no effect among the options of `torch.compile`: the tracer reads the global setting.
    """
    config = cast(Any, torch)._inductor.config
    with _frozen:
        _calls.append(_calls[0] if _calls else config.freezing)
        config.freezing = True
    try:
        yield
    finally:
        with _frozen:
            before = _calls.pop()
            if not _calls:
                config.freezing = before
