"""Where files go: the working directory, the caches, and what keeps the hub away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dorakit import cache
from dorakit.doctor.finding import Finding
from dorakit.errors import MachineError
from dorakit.files import why_not_writable
from dorakit.memory import gib
from dorakit.terminal import typed

_LITTLE_ROOM = 10 << 30  # bytes
_NO_ROOM = 1 << 30
_FLAGS = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def check_disk() -> Iterator[Finding]:
    """Room where runs are written."""
    yield _of_place("disk", Path.cwd(), "", "set output_dir to another disk, or make room")


def check_caches() -> Iterator[Finding]:
    """Whether the caches can be written, and what is in the hub's."""
    from huggingface_hub.constants import HF_HUB_CACHE

    set_own, set_hub = f"export {cache.VARIABLE}=DIR", "export HF_HOME=DIR"
    try:
        yield _of_place("cache", cache.root(), "", set_own)
    except MachineError as error:
        yield Finding("fail", "cache", str(error).splitlines()[0], set_own)
    if reason := cache.why_no_hub_cache(HF_HUB_CACHE):
        yield Finding("fail", "hub cache", reason, set_hub)
        return
    hub = Path(HF_HUB_CACHE)
    models = sum(1 for _ in hub.glob("models--*")) if hub.is_dir() else 0
    yield _of_place("hub cache", hub, f"{models} model{'' if models == 1 else 's'}, ", set_hub)


def check_offline() -> Iterator[Finding]:
    """Flags that keep the hub away."""
    given = [name for name in _FLAGS if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if given:
        yield Finding(
            "warn", "offline", f"{', '.join(given)} set: only what is in the caches", f"unset {' '.join(given)}"
        )
    else:
        yield Finding("ok", "offline", "no flag set: models and data of the hub may be fetched")


def _of_place(about: str, place: Path, holds: str, mend: str) -> Finding:
    """A directory that is there or will be made."""
    if reason := why_not_writable(place):
        return Finding("fail", about, f"{typed(place)}: {reason}", mend)
    there = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    says = f"{typed(place)}: {holds}{gib(free)} free"
    if free < _LITTLE_ROOM:
        return Finding("fail" if free < _NO_ROOM else "warn", about, says, mend)
    return Finding("ok", about, says)
