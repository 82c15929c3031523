"""Asking the hub: one short try before its client's own, which take half a minute where nothing answers.

The client logs a line for every retry; dorakit's one message at the end names the cause.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

from dorakit.errors import shown

_SILENT = 1.0  # seconds before a line says what is waited for
_LONGEST = 10.0  # seconds for a first answer


@contextlib.contextmanager
def asked(what: str) -> Iterator[str]:
    """Within the block the hub is asked for `what`; a line on stderr says so where that takes longer than a second.

    Where the hub does not answer, its libraries are offline within the block and find what their cache holds.

    Yields:
        Why the hub is not asked, for messages; "" where it is.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        with _errors_only():
            yield "HF_HUB_OFFLINE is set, or --offline"
        return
    host = constants.ENDPOINT.partition("://")[2]
    waiting = threading.Timer(_SILENT, _say, [f"waiting for {host}, which is asked for {what}"])
    waiting.daemon = True
    waiting.start()
    try:
        with _errors_only():
            silence = _silence()
            constants.HF_HUB_OFFLINE = bool(silence)
            try:
                yield f"{host}: {silence}" if silence else ""
            finally:
                constants.HF_HUB_OFFLINE = False
        if silence:
            _say(f"{host} cannot be reached ({silence}): {what} is taken from the hub's cache")
    finally:
        waiting.cancel()


def _silence() -> str:
    """Why the hub gave no answer; "" for an answer of any kind."""
    found = [f"no answer in {_LONGEST:.0f} seconds"]

    def knock() -> None:
        from huggingface_hub import constants, get_session

        try:
            get_session().head(constants.ENDPOINT, timeout=_LONGEST)
        except Exception as error:  # of the HTTP client, which is another one from version to version
            found.append((str(error).strip() or type(error).__name__).splitlines()[0])
        else:
            found.append("")

    # A client's timeout is for each address of a name, and resolving the name has none.
    knocking = threading.Thread(target=knock, daemon=True)
    knocking.start()
    knocking.join(_LONGEST)
    return found[-1]


def _say(line: str) -> None:
    print(shown(line), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Within the block huggingface_hub logs errors only, no retries; the caller's level is put back."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
