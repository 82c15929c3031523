"""What was freed, given back to the system."""

from __future__ import annotations

import ctypes

_SMALL = 1 << 24  # bytes


def return_freed_memory(size: int) -> None:
    """Let the C library return its free pages, where it can be told to, after a temporary of `size` bytes.

    A large temporary leaves a hole, the small tensors that outlive it settle there, and the next large temporary finds no
    room: over the layers of a large model glibc's heap grows by gigabytes of holes. Called between layers; of small ones
    the holes are not worth the call.
    """
    if size < _SMALL:
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
