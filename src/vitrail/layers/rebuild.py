"""Construction of a module of another class with the weights of an existing one."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

Built = TypeVar("Built", bound=nn.Module)


def rebuild(module: nn.Module, kind: type[Built], **attributes: Any) -> Built:
    """A new module of another class with the parameters, buffers, children and attributes of `module`.

    `kind` is meant for classes that differ from the module's in their methods only: its `__init__` does not run.
    Tensors and children are shared, not copied; the module itself stays as it is.

    Args:
        module: the module whose state is taken.
        kind: the class of the new module.
        attributes: further attributes; child modules are registered.
    """
    built = kind.__new__(kind)
    own = {"_parameters", "_buffers", "_modules"}  # dictionaries of its own, so that changes stay with it
    built.__dict__.update({name: copy.copy(v) if name in own else v for name, v in module.__dict__.items()})
    for name, value in attributes.items():
        setattr(built, name, value)
    return built
