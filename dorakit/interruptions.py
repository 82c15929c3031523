"""Interruptions from outside: signals and failed allocations."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from dorakit.errors import ResourceError, is_out_of_memory


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turn a failed allocation within the block into a ResourceError that says what to lower."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"out of memory: {(str(error) or 'no more is there').splitlines()[0]}\n  {advice}\n  more: docs/faq.md#out-of-memory"
        ) from error


class StoppedAtOnce(SystemExit):
    """Leave now, on a signal. Not an Exception, so that no library on the way up catches it."""

    def __init__(self, signal_number: int):
        self.exit_code = 128 + signal_number
        super().__init__(self.exit_code)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, for the next step boundary; the second one stops at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise StoppedAtOnce(number)
        received.append(number)

    with _handling(note, signal.SIGINT, signal.SIGTERM):
        yield received


@contextlib.contextmanager
def terminated_at_once() -> Iterator[None]:
    """SIGTERM raises StoppedAtOnce within the block, so that cleanup runs as after Ctrl-C."""

    def leave(number: int, _: Any) -> None:
        raise StoppedAtOnce(number)

    with _handling(leave, signal.SIGTERM):
        yield


@contextlib.contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """Collect every SIGINT in a list; the block checks it and ends by itself."""
    received: list[int] = []
    with _handling(lambda number, _: received.append(number), signal.SIGINT):
        yield received


@contextlib.contextmanager
def interrupts_raised() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt within the block, even inside `interrupts_noted`."""
    with _handling(signal.default_int_handler, signal.SIGINT):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread: signals stay the caller's
        yield
        return
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
