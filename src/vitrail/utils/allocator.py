"""The C library's allocator: keep freed memory for the next call, or return it at once."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# parameters of mallopt in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30  # bytes; blocks up to this size come from the heap, and that much of it may lie idle
_OF_ITS_OWN = 1 << 16  # bytes; every larger block is a mapping of its own

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
    library = _glibc()
    if library:
        _state["keeps"] = all(library.mallopt(option, _KEPT) for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
    return _state["keeps"]


def keeps_memory() -> bool:
    """True if `keep_memory` took effect in this process."""
    return _state["keeps"]


def return_memory() -> None:
    """Let this process give blocks of more than 64 KiB back the moment they are free, and now what is free already.

    What is resident is then what is in use, which is what a measurement wants. Left alone, glibc takes blocks of up to
    32 MiB from its heap as soon as one of their size was freed, and holes between living blocks stay resident: the same
    call of the same network then adds half as much again in one process as in another. Nothing happens without glibc.
    """
    library = _glibc()
    if library:
        library.mallopt(_MMAP_THRESHOLD, _OF_ITS_OWN)  # a limit that was set is no longer raised
        library.malloc_trim(0)
        _state["keeps"] = False


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, where it is glibc."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    return None
