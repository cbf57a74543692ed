"""Export forms: modules that the runtime of one format computes faster, registered by format and class.

The networks do not know their forms. A module of a third party may offer its own by a method `export_form(format)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...layers.rebuild import rebuild
from ...models.emsnet import Propagate

Form = Callable[[Any], nn.Module]
Registered = TypeVar("Registered", bound=Form)

_forms: dict[tuple[str, type[nn.Module]], Form] = {}


def register(format: str, kind: type[nn.Module]) -> Callable[[Registered], Registered]:
    """Register a function as the form of a class of modules in files of a format; subclasses do not inherit it."""

    def add(form: Registered) -> Registered:
        _forms[format, kind] = form
        return form

    return add


def export_form(module: nn.Module, format: str) -> nn.Module:
    """The module that takes the place of another in files of a format; itself where there is no other form."""
    form = _forms.get((format, type(module)))
    if form is not None:
        return form(module)
    own = getattr(module, "export_form", None)
    return module if own is None else own(format)


def in_form_for(network: nn.Module, format: str) -> nn.Module:
    """A copy of a network, on the same weights, with the modules that have a form for a format in that form."""
    tensors = [*network.parameters(), *network.buffers()]
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    for name, module in list(twin.named_modules()):
        form = export_form(module, format)
        if form is not module:
            twin.set_submodule(name, form)
    return twin


class TransposedPropagate(Propagate):
    """EMSNet's `Propagate` as the transposed convolution it is."""

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """See `Propagate`."""
        patch, groups = self.weight.shape[2], self.bias.shape[0]
        return F.conv_transpose2d(x, self.weight, self.bias, patch, groups=groups)[:, :, :height, :width]


@register("onnx", Propagate)
def transposed_propagate(layer: Propagate) -> TransposedPropagate:
    """The convolution itself, for which ONNX Runtime has a fast kernel; OpenVINO is faster with the products."""
    return rebuild(layer, TransposedPropagate)
