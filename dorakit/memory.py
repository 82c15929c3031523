"""What was freed, given back to the system."""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Let the C library return its free pages, where it can be told to.

    A large temporary leaves a hole, the small tensors that outlive it settle there, and the next large temporary finds no
    room: over the layers of a large model glibc's heap grows by gigabytes of holes. Called between layers.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
