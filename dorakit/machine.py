"""The machine and the libraries that a run was made with, for environment.json."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from typing import Any

_LIBRARIES = ("dorakit", "torch", "transformers", "datasets", "bitsandbytes", "safetensors", "tokenizers", "numpy")


def machine_facts() -> dict[str, Any]:
    """Python, system, processors, and the versions of the libraries that are installed."""
    versions = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
    }
