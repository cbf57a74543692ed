"""Mixers of a user's own, named on the command line as `module:Class`."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..models.mixers import MIXERS, MixerKind, register_mixer

#: module:Class, where both may be dotted
_SPEC = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")


def import_mixer(spec: str) -> MixerKind:
    """Import a class that the user names, and make it the mixer of that name.

    The module is looked for in the current folder, too. Only what a user writes on the command line or in a program may
    come here, never what a file says: importing runs the module.

    Args:
        spec: "module:Class", such as "my_mixers:Average"; the class as for `register_mixer`. A mixer's name is
            returned as it is.

    Raises:
        UserError: no such module or class, or a class that is no mixer.
    """
    if spec in MIXERS:
        return MIXERS[spec]
    found = _SPEC.fullmatch(spec)
    if found is None:
        close = nearest(spec, MIXERS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(MIXERS)}."
        raise UserError(f"Unknown mixer {spec!r}: {hint} A class of your own is named module:Class.")
    made: Any = _module(found["module"])
    for part in found["name"].split("."):
        if not hasattr(made, part):
            raise UserError(f"Mixer {spec}: module {found['module']} has no {found['name']}.")
        made = getattr(made, part)
    return register_mixer(spec, made)


def _module(name: str) -> Any:
    """A module, found as `python -m` would."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except Exception as error:  # importing runs the user's code
        raise UserError(f"Mixer module {name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
