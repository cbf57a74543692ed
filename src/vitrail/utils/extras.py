"""Optional packages, imported where they are used.

Every room may import this module.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import UserError


def how_to_install(extra: str) -> str:
    """The command that installs an extra; there is no package of this library on an index yet, only its sources."""
    return f'pip install -e ".[{extra}]" in the folder of vitrail\'s sources'


def require(module: str, extra: str) -> Any:
    """Import a module that an extra installs.

    Raises:
        UserError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UserError(f"This needs {package}, which is not installed: {how_to_install(extra)}.") from error
