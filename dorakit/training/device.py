"""What depends on the device, asked by the loop and answered here: seeding, determinism, peak memory, autocast, paging."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import random
import resource
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dorakit.model.load import pick_device
from dorakit.model.quiet import quiet_libraries

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_LIBRARIES = ("dorakit", "torch", "transformers", "bitsandbytes", "numpy")


def seed_draws(seed: int, stream: str, *position: int) -> None:
    """Make the draws that follow a pure function of (seed, stream, position), so that nothing before can move them."""
    text = ":".join([str(seed), stream, *map(str, position)])
    torch.manual_seed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1)


@contextlib.contextmanager
def as_found() -> Iterator[None]:
    """Give the program that called its random states and its libraries' voice back as they were.

    Our own draws need no state (`seed_draws`); libraries that work for us seed and draw as they like.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cards = torch.cuda.get_rng_state_all() if pick_device().type == "cuda" else []
    try:
        with quiet_libraries():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cards)


@contextlib.contextmanager
def repeatable(*, on_cuda: bool) -> Iterator[None]:
    """Deterministic kernels within the block: always on the CPU, where they cost nothing; on CUDA if asked."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(_WORKSPACE)
    wanted = on_cuda or pick_device().type == "cpu"
    if wanted and workspace is None:
        os.environ[_WORKSPACE] = ":4096:8"
    torch.use_deterministic_algorithms(wanted)
    # Else every output is filled with NaN before it is written; that finds bugs in kernels and changes no result.
    settings: Any = torch.utils.deterministic
    filled, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        settings.fill_uninitialized_memory = filled


def is_repeatable(*, deterministic: bool) -> bool:
    """Whether the same step on the same machine gives the same bytes."""
    return deterministic or pick_device().type == "cpu"


def computing(dtype: torch.dtype, *, ranks: int) -> dict[str, str]:
    """What the bytes of a step hang on besides its inputs: device, dtype, threads, ranks, libraries."""
    cuda = pick_device().type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        # Kernels choose by what the processor can do, and so does the order of their sums.
        "processor": f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "ranks": str(ranks),
        **{library: metadata.version(library) for library in _LIBRARIES},
    }


def _processor() -> str:
    """The processor's model, as Linux tells it; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_memory_bytes() -> int:
    """Peak device memory on CUDA, peak resident memory of the process on the CPU."""
    if pick_device().type == "cuda":
        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def why_not_paged(trained: Iterable[Tensor]) -> str | None:
    """Why the optimizer's states of these tensors cannot live in memory that CUDA pages to the host; None where they can."""
    if pick_device().type != "cuda":
        return "no CUDA device to page from"
    here = all(tensor.device.type == pick_device().type for tensor in trained)
    return None if here else "the states are in the host's memory already"


def autocast(dtype: torch.dtype, *, keeps_casts: bool = True) -> contextlib.AbstractContextManager[object]:
    """Compute in `dtype` over float32 weights, which are cast once or for each use; nothing to do for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(pick_device().type, dtype=dtype, cache_enabled=keeps_casts)
