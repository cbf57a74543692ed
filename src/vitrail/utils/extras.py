"""Optional packages, imported where they are used.

Every room may import this module.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import UserError


def require(module: str, extra: str) -> Any:
    """Import a module that an extra installs.

    Raises:
        UserError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UserError(f'This needs {package}, which is not installed: pip install "vitrail[{extra}]".') from error
