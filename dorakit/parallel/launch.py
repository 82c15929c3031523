"""`--nproc N`: the command again, N times on this host, through torchrun's own agent."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from dorakit.errors import UsageError
from dorakit.parallel.environment import this_process

# After a signal the processes end their step and save before they are killed.
_SECONDS_TO_SAVE = 600


def launch(nproc: int, arguments: Sequence[str]) -> int:
    """Run `python -m dorakit ARGUMENTS` in `nproc` processes and return their exit code, that of the first to fail.

    Threads are shared out, unless OMP_NUM_THREADS says how many each may have.

    Raises:
        UsageError: This is such a process already.
    """
    if "RANK" in os.environ:
        raise UsageError(
            f"--nproc {nproc}: this is rank {this_process().rank} of a group that a launcher started; leave --nproc out"
        )
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say themselves what failed.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=_SECONDS_TO_SAVE,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dorakit", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as signal:
        return 128 + int(signal.sigval)
    return 0


def launch_and_exit(nproc: int) -> None:
    """Run this very command line in `nproc` processes, and end with their exit code; return where one process is asked for.

    Raises:
        UsageError: As `launch`.
    """
    if nproc > 1 or this_process().size > 1:
        raise SystemExit(launch(nproc, without_option(sys.argv[1:], "--nproc")))


def without_option(arguments: Sequence[str], option: str) -> list[str]:
    """A command line without an option and its value."""
    kept, skipped = [], False
    for argument in arguments:
        if not skipped and argument != option and not argument.startswith(f"{option}="):
            kept.append(argument)
        skipped = argument == option
    return kept
