"""What may break into a run from outside: a signal, and the end of memory."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
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
            f"out of memory: {(str(error) or 'no more is there').splitlines()[0]}\n  {advice}\n  more: docs/faq.md#out-of-memory"
        ) from error


class StoppedAtOnce(SystemExit):
    """A signal to leave now. No Exception, so that no library on the way up can take it for its own."""

    def __init__(self, signal_number: int):
        self.exit_code = 128 + signal_number
        super().__init__(self.exit_code)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that receives SIGINT or SIGTERM, to be acted on at the next step boundary; the second one stops at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            raise StoppedAtOnce(number)
        received.append(number)

    with _handling(note, signal.SIGINT, signal.SIGTERM):
        yield received


@contextlib.contextmanager
def terminated_at_once() -> Iterator[None]:
    """SIGTERM raises StoppedAtOnce, so that the block is left through what cleans up, as it is after Ctrl-C."""

    def leave(number: int, _: Any) -> None:
        raise StoppedAtOnce(number)

    with _handling(leave, signal.SIGTERM):
        yield


@contextlib.contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """A list that receives SIGINT, however often it comes; what goes on in the block looks at it and ends by itself."""
    received: list[int] = []
    with _handling(lambda number, _: received.append(number), signal.SIGINT):
        yield received


@contextlib.contextmanager
def interrupts_raised() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also within `interrupts_noted`."""
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
