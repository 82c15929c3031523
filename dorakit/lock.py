"""One writer at a time: a lock that ends with its process, in a file that says who holds it; and working directories of a
process, which another one clears if it was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from dorakit.errors import RunError
from dorakit.failpoints import reach
from dorakit.files import FULL, naming
from dorakit.links import not_followed, own

_HELD, _OURS = "held.lock", "dorakit process"


@contextlib.contextmanager
def hold(file: Path, *, of: Path) -> Iterator[str]:
    """Hold the lock of the directory `of` during the block.

    Gives what the file says of an earlier holder that did not let go: one that was killed. Else "".

    Raises:
        RunError: Another process holds it, or the file system has no locks.
    """
    with naming(of):
        lock = _taken(file, of)
    with lock:
        # What fails within the block may be anything's, so it is not named after the directory.
        with naming(of):
            vanished = _sign(lock)
        try:
            yield vanished
        finally:  # which a killed process does not come to
            lock.truncate(0)


@contextlib.contextmanager
def working_directory(of: Path) -> Iterator[Path]:
    """Give a directory beside `of` that is gone after the block; those of killed processes for the same `of` go first.

    What is ours and whose process is gone is known by the file in it that the process holds a lock on. On a file system
    without locks nothing is cleared.
    """
    of.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(of)
    work = of.with_name(f".tmp-{of.name}-{uuid.uuid4().hex[:8]}")
    work.mkdir()
    try:
        with open(work / ".new", "xb") as lock:
            lock.write(f"{_OURS} {os.getpid()}\n".encode())
            lock.flush()
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Path(lock.name).rename(work / _HELD)  # under its name it is held from the first moment on
            inside = work / "in"  # apart from the lock, for what is made in it may have any name
            inside.mkdir()
            yield inside
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _clear_abandoned(of: Path) -> None:
    for place in of.parent.glob(f".tmp-{glob.escape(of.name)}-*"):
        if not re.fullmatch(r"[0-9a-f]{8}", place.name.rpartition("-")[2]) or place.is_symlink():
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(place / _HELD, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.read(len(_OURS)) == _OURS.encode():
                    shutil.rmtree(place)


def refuse_held(file: Path, *, of: Path) -> None:
    """Refuse the directory `of` where another process holds its lock, without taking it.

    Raises:
        RunError: One does.
    """
    if not file.is_file():
        return
    with naming(of), open(file, "rb", buffering=0, opener=not_followed) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(lock, of) from None
        except OSError:  # the file system has no locks, which whoever takes one is told
            return


def _taken(file: Path, of: Path) -> FileIO:
    """The file with its lock, and no other name: that of a copy with hard links would be one lock for two runs."""
    is_own = False
    while True:
        # What a full disk refuses is not written again when it is closed.
        lock = open(file, "ab+", buffering=0, opener=not_followed)
        try:
            _take(lock, of)
            held, there = os.fstat(lock.fileno()), os.lstat(file)
            if os.path.samestat(held, there):  # else another process gave it bytes of its own meanwhile
                if is_own or held.st_nlink == 1:
                    return lock
                own(file)
                is_own = True
        except BaseException:
            lock.close()
            raise
        lock.close()


def _take(lock: FileIO, of: Path) -> None:
    reach("lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held(lock, of) from None
    except OSError as error:
        raise RunError(
            f"{of}: the file system cannot lock files ({error.strerror}), so two writers could not be kept apart\n"
            "  put output_dir on a local disk"
        ) from None


def _sign(lock: FileIO) -> str:
    """Say in the file who holds it; what it said of an earlier holder."""
    vanished = _content(lock)
    lock.truncate(0)
    holder = f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode()
    try:
        is_told = lock.write(holder) == len(holder)
    except OSError as error:
        if error.errno not in FULL:
            raise
        is_told = False
    if not is_told:  # of a full disk the run itself will tell; half a number would name another process
        lock.truncate(0)
    return vanished


def _held(lock: FileIO, of: Path) -> RunError:
    return RunError(f"{of} is being written by {_content(lock) or 'another process'}\n  wait for it, or stop it")


def _content(lock: FileIO) -> str:
    lock.seek(0)
    return lock.read(1000).decode("utf-8", "replace").strip()
