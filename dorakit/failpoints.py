"""Places where a test can make the program die, fail, or be interrupted: what a crash leaves behind can only be tested so.

    DORAKIT_FAILPOINT=PLACE:N=ACTION[,PLACE:N=ACTION...]

PLACE is one of PLACES, N counts arrivals there from 1, ACTION is one of ACTIONS. While the variable is unset a place costs
one comparison and does nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections import Counter

from dorakit.errors import UsageError

PLACES = {
    "micro": "a micro-batch has been through forward and backward",
    "loss": "the loss of a micro-batch is known",
    "step": "an optimizer step is done",
    "checkpoint.file": "a file of a checkpoint is in its staging directory",
    "checkpoint.written": "all files are there, not yet synced",
    "checkpoint.synced": "all files are synced, the directory still has its staging name",
    "checkpoint.replacing": "as directory.replacing, of a checkpoint that was passed over",
    "checkpoint.renamed": "the directory has its name, its parent is not synced",
    "prune": "an old checkpoint has its name of rubbish and is still there",
    "result.file": "a file of the result is in its staging directory",
    "result.written": "as checkpoint.written, of adapter/ or model/",
    "result.synced": "as checkpoint.synced",
    "result.replacing": "as directory.replacing, of a result that an earlier try left",
    "result.renamed": "the result is there, run.json does not yet say so",
    "directory.written": "as checkpoint.written, of a merged or quantized model",
    "directory.synced": "as checkpoint.synced",
    "directory.replacing": "the old one has another name, the new one still its staging name",
    "directory.renamed": "as checkpoint.renamed",
    "cache.written": "as checkpoint.written, of what is kept between runs",
    "cache.synced": "as checkpoint.synced",
    "cache.renamed": "as checkpoint.renamed",
    "shard": "a shard of a merged or quantized model is in the staging directory",
    "lock": "the run's lock is about to be taken",
}
ACTIONS = ("kill9", "sigterm", "sigint", "enospc", "eacces", "memory", "nan")

_VARIABLE = "DORAKIT_FAILPOINT"
_armed: dict[tuple[str, int], str] = {}
_arrivals: Counter[str] = Counter()


def arm(text: str) -> None:
    """Set the failpoints from the variable's text, counting anew.

    Raises:
        UsageError: It names a place or an action that there is not.
    """
    _armed.clear()
    _arrivals.clear()
    _armed.update(_read(text))


def check_variable() -> None:
    """Refuse a variable that says nothing; importing this leaves it alone, so that the command line can say so.

    Raises:
        UsageError: As `arm`.
    """
    _read(os.environ.get(_VARIABLE, ""))


def _read(text: str) -> dict[tuple[str, int], str]:
    armed = {}
    for entry in filter(None, text.split(",")):
        where, _, action = entry.partition("=")
        place, _, number = where.partition(":")
        if place not in PLACES or action not in ACTIONS or not number.isdigit():
            raise UsageError(
                f"{_VARIABLE}: {entry!r} is not PLACE:N=ACTION\n"
                f"  places: {', '.join(PLACES)}\n  actions: {', '.join(ACTIONS)}"
            )
        armed[place, int(number)] = action
    return armed


def reach(place: str) -> bool:
    """Arrive at a place. True asks the caller for a value that is not finite (action nan).

    Raises:
        OSError, MemoryError: As armed.
    """
    if not _armed:
        return False
    _arrivals[place] += 1
    action = _armed.get((place, _arrivals[place]))
    if action is None:
        return False
    if action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action in ("sigterm", "sigint"):
        signal.raise_signal(signal.SIGTERM if action == "sigterm" else signal.SIGINT)
    elif action in ("enospc", "eacces"):
        number = errno.ENOSPC if action == "enospc" else errno.EACCES
        raise OSError(number, os.strerror(number))
    elif action == "memory":
        raise MemoryError
    return action == "nan"


with contextlib.suppress(UsageError):
    arm(os.environ.get(_VARIABLE, ""))
