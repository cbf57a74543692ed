"""vitrail: small, fast vision transformers from the papers to a trained model.

Importing the package registers its networks with timm, so that `timm.create_model` builds them by name.
"""

from __future__ import annotations

import fnmatch

from timm import create_model

from . import models
from .deploy.fuse.compiled import compile
from .deploy.fuse.fuse import fuse
from .engine.loaded import LoadedModel, load
from .factory import assemble
from .flops.profile import profile
from .utils.allocator import keep_memory
from .version import __version__

__all__ = [
    "LoadedModel",
    "__version__",
    "assemble",
    "compile",
    "create_model",
    "fuse",
    "keep_memory",
    "list_models",
    "load",
    "profile",
]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered networks that match a shell pattern such as "mat_*", family by family.

    Each name is built by `vitrail.create_model` (timm's own function).
    """
    return [name for name in models.names() if fnmatch.fnmatchcase(name, pattern)]
