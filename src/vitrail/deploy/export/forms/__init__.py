"""Export forms: modules that exported files compute faster, with the same outputs; one file a family.

The networks do not know their forms. Forms that one format needs alone stand in the file of its `Backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from timm.layers import Conv2dSame
from torch import nn

from ....models.mat import MatAttention
from ....models.pale import PaleAttention
from .layers import halving_conv
from .mat import window_order
from .pale import grouped_pale_attention

#: for every format: by the class that is replaced
TRACED: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {Conv2dSame: halving_conv}
#: for the runtimes that compile a graph, ONNX Runtime and OpenVINO: by the class that is replaced
FORMS: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    **TRACED,
    MatAttention: window_order,
    PaleAttention: grouped_pale_attention,
}
