"""Export forms: modules that exported files compute faster, with the same outputs; one file a family.

The networks do not know their forms. Forms that one format needs alone stand in the file of its `Backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

#: for the runtimes that compile a graph, ONNX Runtime and OpenVINO: by the class that is replaced
FORMS: Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]] = {}
