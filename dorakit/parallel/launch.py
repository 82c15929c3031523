"""`--nproc N`: the command again, N times on this host.

The processes meet in a file that only this user can open, and talk through the loopback device: nothing listens where
another machine could connect. torchrun's agent keeps a store that listens on every interface, has no password, and holds pickles.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from dorakit.errors import UsageError
from dorakit.parallel.environment import MEETING, this_process

# After a signal the processes end their step and save before they are killed.
_SECONDS_TO_SAVE = 600
_SECONDS_BETWEEN_LOOKS = 0.1
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def launch(nproc: int, arguments: Sequence[str]) -> int:
    """Run `python -m dorakit ARGUMENTS` in `nproc` processes and return their exit code, that of the first to fail.

    Signals are passed on to all of them. Threads are shared out, unless OMP_NUM_THREADS says how many each may have.

    Raises:
        UsageError: This is such a process already.
    """
    if "RANK" in os.environ:
        raise UsageError(
            f"--nproc {nproc}: this is rank {this_process().rank} of a group that a launcher started; leave --nproc out"
        )
    command = [sys.executable, "-m", "dorakit", *arguments]
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="dorakit-") as private, _recorded_signals() as signals:  # of mode 0700
        try:
            for rank in range(nproc):
                environment = _environment(rank, nproc, os.path.join(private, "meeting"))
                # In a session of its own: Ctrl-C in a terminal reaches it once, from here.
                ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
            code = _wait(ranks, signals)
        finally:
            _send(ranks, signal.SIGKILL)
            for process in ranks:
                process.wait()
    if signals:
        return 128 + signals[0]
    return code if code >= 0 else 128 - code


def _environment(rank: int, size: int, meeting: str) -> dict[str, str]:
    """The environment of a rank."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        MEETING: meeting,
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


@contextlib.contextmanager
def _recorded_signals() -> Iterator[list[int]]:
    """Collect the signals to pass on; a signal that is ignored, as under nohup, stays ignored."""
    received: list[int] = []
    handled = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in handled}
    try:
        yield received
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], signals: Sequence[int]) -> int:
    """Wait for all processes; the status of the first that failed. It, or a signal, asks the others to stop."""
    failed, num_sent, deadline = 0, 0, float("inf")
    while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
        asked = list(signals[num_sent:])
        num_sent += len(asked)
        if not failed and (failed := next((process.returncode for process in ranks if process.returncode), 0)):
            asked.append(signal.SIGTERM)
        for number in asked:
            _send(ranks, number)
            deadline = min(deadline, time.monotonic() + _SECONDS_TO_SAVE)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return failed or next((process.returncode for process in ranks if process.returncode), 0)


def _send(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Send a signal to the processes that still run, and to what they started."""
    for process in ranks:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


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
