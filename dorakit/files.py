"""Files and directories that are at any instant the old ones or the new ones, whole; and errors that say where."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is at any instant the old one or the new one, whole."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is at any instant the old one or the new one, whole."""
    staging = path.with_name(f".tmp-{path.name}")
    with naming(path), open(staging, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Give a staging directory that becomes `path` if the block succeeds and vanishes if it does not.

    An existing `path` is replaced only at that moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    staging.mkdir()
    try:
        with naming(path):
            yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        fsync_directory(staging)
        if path.exists():
            old = path.with_name(f".trash-{path.name}-{uuid.uuid4().hex[:8]}")
            path.rename(old)
            staging.rename(path)
            shutil.rmtree(old)
        else:
            staging.rename(path)
        fsync_directory(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a path into the errors of the block that have none: a write to a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:  # which carries the system's words in its text
        if "(os error 28)" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
