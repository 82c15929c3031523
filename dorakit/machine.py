"""The machine and the libraries that a run was made with, for environment.json."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from typing import Any

# Those that compute, read and write; then those that read what dorakit writes, or measure it.
_LIBRARIES = (
    "dorakit", "torch", "transformers", "datasets", "bitsandbytes", "safetensors", "tokenizers", "numpy", "accelerate",
    "gguf", "huggingface_hub", "pydantic", "typer", "triton",
    "peft", "trl", "vllm", "xllamacpp", "llama_cpp_python", "lm_eval",
)  # fmt: skip


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
