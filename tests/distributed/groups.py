"""Groups of processes that train together, in forks of the test process: seconds instead of the launcher's ten.

The environment is what a launcher would set, without torchrun's store: the first rank keeps one. test_launched.py starts
torchrun itself.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from dying_runs import Ended, Site, be_a_child
from safetensors.torch import load_file

from dorakit import failpoints
from dorakit.parallel import voice

PATIENCE = 90  # seconds after which a group hangs


@dataclass(frozen=True)
class Group:
    """How the ranks of a group ended, by rank, and after how many seconds the last of them did."""

    ranks: list[Ended]
    seconds: float

    @property
    def codes(self) -> list[int]:
        return [ended.code for ended in self.ranks]

    @property
    def errors(self) -> list[str]:
        """Every line that begins a message of failure, on all ranks."""
        return [line for ended in self.ranks for line in ended.err.splitlines() if "error" in line]


def group(size: int, function: Callable[[int], int]) -> Group:
    """Call `function(rank)` in `size` forks that are told to be one group; its value is the exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began, files, children = time.monotonic(), [], []
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(size):
        files.append((tempfile.TemporaryFile(), tempfile.TemporaryFile()))
        child = os.fork()
        if child == 0:
            _told(rank, size, port)
            be_a_child(partial(function, rank), *files[-1])
        children.append(child)
    codes: dict[int, int] = {}
    while len(codes) < size:
        for rank, child in enumerate(children):
            if rank not in codes and (done := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(done[1])
        if time.monotonic() - began > PATIENCE:
            for rank, child in enumerate(children):
                if rank not in codes:
                    os.kill(child, 9)
                    os.waitpid(child, 0)
            pytest.fail(f"ranks {sorted(set(range(size)) - codes.keys())} hang; ended: {codes}")
        time.sleep(0.02)
    return Group([Ended(codes[rank], *map(_text, files[rank])) for rank in range(size)], time.monotonic() - began)


def _told(rank: int, size: int, port: int) -> None:
    """What a launcher tells a process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in numbers.items()})


def _text(file) -> str:
    file.seek(0)
    return file.read().decode()


def dorakit_group(
    size: int,
    *arguments: str | Path,
    failpoints_of: dict[int, str] | None = None,
    before: Callable[[int], None] | None = None,
) -> Group:
    """The command line on every rank. `before` is called there first."""

    def run(rank: int) -> int:
        from dorakit.cli.app import main

        failpoints.arm((failpoints_of or {}).get(rank, ""))
        if before is not None:
            before(rank)
        sys.argv = ["dorakit", *map(str, arguments)]
        main()
        return 0

    return group(size, run)


def impatient(rank: int) -> None:
    """Do not wait long for what a killed rank cannot say any more."""
    voice._SECONDS_TO_TELL = 1


def other_weights(module, name: str) -> None:
    """Let what a module loads by this name, and returns with a `model`, have another first parameter."""
    own = getattr(module, name)

    def changed(*given, **options):
        loaded = own(*given, **options)
        next(loaded.model.parameters()).data.add_(1)
        return loaded

    setattr(module, name, changed)


def plain(site: Site) -> Site:
    """Without dropout, whose draws are each micro-batch's own, and with AdamW in float32."""
    text = site.recipe.read_text().replace(", dropout: 0.1", "").replace("adamw_8bit", "adamw")
    site.recipe.write_text(text.replace("micro_batch_size: 4", "micro_batch_size: 2"))
    return site


def weights(run: Path) -> dict[str, torch.Tensor]:
    """What a training left."""
    (file,) = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    return load_file(file)


def distance(one: dict, other: dict) -> float:
    return float(torch.stack([(one[name].float() - other[name].float()).norm() for name in one]).norm())
