"""Typed decorators for torch.fx and TorchScript."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from timm.models import register_notrace_function, register_notrace_module

Marked = TypeVar("Marked", bound=Callable[..., Any])


def notrace_function(function: Marked) -> Marked:
    """Make a function a leaf of torch.fx graphs, for code that branches on sizes."""
    return cast(Marked, register_notrace_function(function))


def notrace_module(module: Marked) -> Marked:
    """Make a module a leaf of torch.fx graphs, for a forward that branches on sizes."""
    return cast(Marked, register_notrace_module(cast(Any, module)))


def unscripted(method: Marked) -> Marked:
    """Exclude a method from TorchScript, which runs `forward` and what it calls."""
    return cast(Marked, torch.jit.ignore(cast(Any, method)))
