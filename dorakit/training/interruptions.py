"""What may break into a run from outside: a signal, and the end of memory."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from dorakit.errors import ResourceError, is_out_of_memory


@contextlib.contextmanager
def out_of_memory_said(advice: str) -> Iterator[None]:
    """Turn an allocation that failed within the block into a ResourceError that says what to lower."""
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"out of memory: {(str(error) or 'no more is there').splitlines()[0]}\n  {advice}"
        ) from error


class StoppedAtOnce(SystemExit):
    """A second signal: leave now. No Exception, so that no library on the way up can take it for its own."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that receives SIGINT or SIGTERM, to be acted on at the next step boundary; the second one stops at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise StoppedAtOnce(number)
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals stay the caller's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
