"""What is made once and kept between runs: converted models, token ids of large data sets.

The cache is `$DORAKIT_CACHE`, else `$XDG_CACHE_HOME/dorakit`, else `~/.cache/dorakit`. Whatever is in it can be made again:
removing it costs time and nothing else.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The cache directory `name`, made whole or not at all by `make`; two processes may race, one result stays."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(os.environ.get("DORAKIT_CACHE") or Path(home) / "dorakit")
    target = root / name
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".tmp-{name}-{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        make(staging)
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target
