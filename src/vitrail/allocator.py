"""Memory that a process keeps for its next call instead of giving it back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# parameters of mallopt in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30  # bytes; blocks up to this size come from the heap, and that much of it may lie idle

_state = {"keeps": False}


def keep_memory() -> bool:
    """Let this process keep the memory it frees, up to 1 GiB, for its next tensors.

    The C library of Linux (glibc) gives large blocks back as soon as they are free and gets them again page by page,
    zeroed, in the next call: for the maps of a vision network that costs as much as much of the arithmetic
    (docs/performance.md). The price is memory that other processes cannot have meanwhile. Nothing is computed
    differently. Call it once, early; what was allocated before stays as it is.

    Returns:
        Whether the C library took it: False on systems without glibc, where nothing changes.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version"):
            _state["keeps"] = all(library.mallopt(option, _KEPT) for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
    return _state["keeps"]


def keeps_memory() -> bool:
    """Whether `keep_memory` took effect in this process."""
    return _state["keeps"]
