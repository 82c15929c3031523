"""What is made once and kept between runs: converted models, token ids of large data sets.

The cache is `$DORAKIT_CACHE`, else `$XDG_CACHE_HOME/dorakit`, else `~/.cache/dorakit`. Whatever is in it can be made again:
removing it costs time and nothing else. What was not used for KEPT_DAYS goes when something new is put there, and so does
what a process that was killed there left a day ago. Seeded tiny models stay: they are small.

Several people may share one. Files have the rights that the umask leaves; what cannot be read, made or written there is a
MachineError that names the variable to set.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dorakit.errors import MachineError, ModelError
from dorakit.files import discard, whole_directory, why_not_writable
from dorakit.terminal import typed

VARIABLE = "DORAKIT_CACHE"
_NO_HOME = "HOME is not set, and this user has no home directory"
_SET = "set {} to a directory that can be written"
# Errors for a place that somebody else owns, a read-only disk, and a file where a directory should be.
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
KEPT_DAYS = 30
_LEFT_DAYS = 1
# Nothing else is removed, whatever directory DORAKIT_CACHE names.
_UNUSED = re.compile(r"(tokens|gguf)-[0-9a-f]{16}.*")
_LEFT = re.compile(r"\.(tmp|trash)-(tokens|gguf|tiny)-.+-[0-9a-f]{8}")


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The entry `name` of the cache: a directory, filled by `make` where it is not there yet, by one process at a time.

    Raises:
        MachineError: It is not there, and the cache cannot be written.
    """
    found = find(name)
    if found is not None:
        return found
    with _waiting_for_others():
        return find(name) or keep(name, make)


def find(name: str) -> Path | None:
    """The entry `name`, which counts as used now; None where it is not there.

    Raises:
        MachineError: The cache cannot be read.
    """
    entry = root() / name
    with _naming_variable():
        if not entry.is_dir():
            return None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(entry)
    return entry


def keep(name: str, make: Callable[[Path], None]) -> Path:
    """Make the entry `name`, whole or not at all; of two processes that do so at once, one result stays.

    Raises:
        MachineError: The cache cannot be written.
        OSError: Its disk is full.
    """
    entry = root() / name
    with _naming_variable(), whole_directory(entry, what="cache", keep_existing=True) as staging:
        make(staging)
    _remove_old(entry)
    return entry


def forget(name: str) -> None:
    """Remove the entry `name`, where it is there."""
    with contextlib.suppress(FileNotFoundError):
        discard(root() / name)


@contextlib.contextmanager
def reading(entry: Path) -> Iterator[None]:
    """In the block a model that is kept as `entry` is checked: errors say what to do about the entry.

    Raises:
        MachineError: It cannot be read.
        ModelError: It is damaged.
    """
    try:
        with _naming_variable():
            for file in entry.iterdir():
                if not os.access(file, os.R_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            yield
    except ModelError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"a model kept in the cache is damaged: {reason}\n  remove it, and it is made again: rm -r {typed(entry)}"
        ) from None


def root() -> Path:
    """Where the cache is; it need not be there yet.

    Raises:
        MachineError: No variable says where, and no home directory is known.
    """
    if stated := os.environ.get(VARIABLE):
        return Path(stated)
    if above := os.environ.get("XDG_CACHE_HOME"):
        return Path(above) / "dorakit"
    try:
        return Path.home() / ".cache" / "dorakit"
    except RuntimeError:
        raise MachineError(f"no place for the cache: {_NO_HOME}\n  {_SET.format(VARIABLE)}") from None


def refuse_hub_cache(place: str, *, to_write: bool = False) -> None:
    """Refuse a cache of the hub's libraries that has no place, or `to_write` one into which nothing can be fetched.

    Raises:
        MachineError: With the variable to set.
    """
    if (to_write or _is_homeless(place)) and (reason := why_no_hub_cache(place)):
        raise MachineError(f"no place for what the hub's libraries fetch: {reason}\n  {_SET.format('HF_HOME')}")


def why_no_hub_cache(place: str) -> str:
    """Why the hub's libraries cannot write to the place that they work out for their cache; "" where they can."""
    if _is_homeless(place):
        return _NO_HOME
    return why_not_writable(Path(place))


def _is_homeless(place: str) -> bool:
    """Whether the hub's libraries wanted a home directory for it and found none."""
    return place.startswith("~")


@contextlib.contextmanager
def _naming_variable() -> Iterator[None]:
    """Turn an OSError at the cache, or at a directory above it, into an error that names the variable."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_OURS or error.filename is None:
            raise
        place = Path(os.fsdecode(error.filename))
        if not (place.is_relative_to(root()) or root().is_relative_to(place)):
            raise
        shown = place if os.path.lexists(place) else root()
        raise MachineError(f"the cache cannot be used: {shown}: {error.strerror}\n  {_SET.format(VARIABLE)}") from None


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
