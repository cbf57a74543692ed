"""The C library's allocator: keep freed memory for the next call, or return it at once."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# parameters of mallopt in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30  # bytes; blocks up to this size come from the heap, of which this much may be unused
_OWN_MAPPING = 1 << 16  # bytes; every larger block is a mapping of its own

_state = {"keeps": False}


def keep_memory() -> bool:
    """Let this process keep the memory it frees, up to 1 GiB, for its next tensors.

    The C library of Linux (glibc) returns large blocks to the system as soon as they are free and requests them anew in
    the next call, page by page and zeroed. For the maps of a vision network that takes a large part of the time
    (docs/performance.md). In exchange, other processes cannot use this memory. Results do not change. Call it once,
    early; earlier allocations are not affected.

    Returns:
        True if the C library accepted it; False on systems without glibc, where nothing changes.
    """
    library = _glibc()
    if library:
        _state["keeps"] = all(library.mallopt(option, _KEPT) for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
    return _state["keeps"]


def keeps_memory() -> bool:
    """True if `keep_memory` took effect in this process."""
    return _state["keeps"]


def return_memory() -> None:
    """Let this process return free blocks of more than 64 KiB to the system at once, for measurements of memory.

    Resident memory is then the memory in use. By default, glibc takes blocks of up to 32 MiB from its heap as soon as
    one of their size was freed, and gaps between blocks in use stay resident: the same call of the same network then
    adds half as much again in one process as in another. Without glibc, nothing happens.
    """
    library = _glibc()
    if library:
        library.mallopt(_MMAP_THRESHOLD, _OWN_MAPPING)  # which also switches glibc's dynamic threshold off
        library.malloc_trim(0)
        _state["keeps"] = False


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc, else None."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    return None
