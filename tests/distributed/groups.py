"""Groups of processes that train together, in forks of the test process: seconds instead of the launcher's ten.

The environment is what a launcher would set, without torchrun's store: the first rank keeps one. test_launched.py starts
torchrun itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from dying_runs import Ended

from dorakit import failpoints

PATIENCE = 200  # seconds after which a group hangs


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
            _be(rank, size, port, files[-1], function)
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


def _be(rank: int, size: int, port: int, files: Sequence, function: Callable[[int], int]) -> None:
    code = 70
    try:
        for stream, file in zip((1, 2), files, strict=True):
            os.dup2(file.fileno(), stream)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in numbers.items()})
        code = function(rank)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


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
