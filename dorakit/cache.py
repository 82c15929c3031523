"""What is made once and kept between runs: converted models, token ids of large data sets.

The cache is `$DORAKIT_CACHE`, else `$XDG_CACHE_HOME/dorakit`, else `~/.cache/dorakit`. Whatever is in it can be made again:
removing it costs time and nothing else. What was not used for KEPT_DAYS goes when something new is put there, and so does
what a process that was killed there left a day ago. Seeded tiny models stay: they are small.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dorakit.files import discard, whole_directory

KEPT_DAYS = 30
_LEFT_DAYS = 1
# Nothing else is removed, whatever directory DORAKIT_CACHE names.
_UNUSED = re.compile(r"(tokens|gguf)-[0-9a-f]{16}.*")
_LEFT = re.compile(r"\.(tmp|trash)-(tokens|gguf|tiny)-.+-[0-9a-f]{8}")


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The entry `name` of the cache: a directory, filled by `make` where it is not there yet, by one process at a time."""
    found = find(name)
    if found is not None:
        return found
    with _waiting_for_others():
        return find(name) or keep(name, make)


def find(name: str) -> Path | None:
    """The entry `name`, which counts as used now; None where it is not there."""
    entry = root() / name
    if not entry.is_dir():
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(entry)
    return entry


def keep(name: str, make: Callable[[Path], None]) -> Path:
    """Make the entry `name`, whole or not at all; of two processes that do so at once, one result stays.

    Raises:
        OSError: The cache cannot be written.
    """
    entry = root() / name
    with whole_directory(entry, what="cache", keep_existing=True) as staging:
        make(staging)
    _remove_old(entry)
    return entry


def forget(name: str) -> None:
    """Remove the entry `name`, where it is there."""
    with contextlib.suppress(FileNotFoundError):
        discard(root() / name)


def root() -> Path:
    """Where the cache is; it need not be there yet."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DORAKIT_CACHE") or Path(home) / "dorakit")


@contextlib.contextmanager
def _waiting_for_others() -> Iterator[None]:
    """Let the ranks of a group, which all lack the same, not convert a model each. Without locks they do."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            root().mkdir(parents=True, exist_ok=True)
            lock = os.open(root(), os.O_RDONLY)
            held.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_old(new: Path) -> None:
    now = time.time()
    for item in new.parent.iterdir():
        days = KEPT_DAYS if _UNUSED.fullmatch(item.name) else _LEFT_DAYS if _LEFT.fullmatch(item.name) else None
        if days is None or item == new or item.is_symlink():
            continue
        with contextlib.suppress(OSError):  # another process may be removing it too
            touched = max(place.stat().st_mtime for place in (item, *item.rglob("*")))
            if now - touched < days * 86400:
                continue
            if _UNUSED.fullmatch(item.name):
                discard(item)
            else:
                shutil.rmtree(item)
