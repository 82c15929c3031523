"""Memory of the machine: how much there is, how it is written, and what was freed given back."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_SMALL = 1 << 24  # bytes
_MEMINFO = Path("/proc/meminfo")


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


def host_memory() -> tuple[int, int]:
    """Bytes free and in all; a container's limit where it is lower. Without /proc (macOS) all of it counts as free."""
    if not _MEMINFO.exists():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    free, total = kib["MemAvailable"] << 10, kib["MemTotal"] << 10
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None and limit < total:
        return min(free, max(0, limit - used)), limit
    return free, total


def gib(size: float) -> str:
    """Bytes, for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _number(file: Path) -> int | None:
    """The number in a file of the system; None where it says `max` or is not there."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
