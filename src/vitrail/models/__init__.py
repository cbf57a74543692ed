"""The networks, one file a paper; importing this package registers them with timm.

`lab_plain`, the laboratory's host, is registered too, but it is no paper's network: `names` does not list it.
"""

from __future__ import annotations

import importlib

FAMILIES = ("pslt", "lvt", "volo", "pale", "emsnet", "mat", "partialformer")

_modules = {family: importlib.import_module(f"{__name__}.{family}") for family in FAMILIES}
importlib.import_module(f"{__name__}.lab_plain")


def names() -> list[str]:
    """Names of every registered network, family by family, smallest first."""
    return [name for module in _modules.values() for name in module.default_cfgs]


def family_of(name: str) -> str:
    """The family a network's name belongs to, such as "mat" for "mat_2".

    Raises:
        KeyError: if no network has the name.
    """
    for family, module in _modules.items():
        if name in module.default_cfgs:
            return family
    raise KeyError(name)
