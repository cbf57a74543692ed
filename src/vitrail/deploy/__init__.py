"""Export of networks to files that run without this library: written, checked against PyTorch, quantised.

    from vitrail.deploy import ExportOptions, export_network, open_deployed

    made = export_network("runs/digits", ExportOptions("onnx", "digits.onnx"))
    logits = open_deployed("digits.onnx")(images)

The inference form of a network in Python is `vitrail.fuse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export.backends import BACKENDS, Backend
    from .export.export import Exported, ExportOptions, export_network
    from .export.runtime import DeployedNetwork, open_deployed

__all__ = ["BACKENDS", "Backend", "DeployedNetwork", "ExportOptions", "Exported", "export_network", "open_deployed"]

#: name -> its module; imported on first use, since these import the data sets and tasks
_HOMES = {
    "BACKENDS": "export.backends",
    "Backend": "export.backends",
    "DeployedNetwork": "export.runtime",
    "ExportOptions": "export.export",
    "Exported": "export.export",
    "export_network": "export.export",
    "open_deployed": "export.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
