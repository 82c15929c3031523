"""One message and one exit code for a group of processes, whichever of them fails.

Who fails leaves, which ends whatever the others wait for. Who was first to leave says why; the others end with its exit code and
say nothing. They find each other in a key-value store: the file that `--nproc` names, torchrun's own, or one that the first
rank keeps.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from dorakit.errors import MachineError, PeerLost, ToldByAnother
from dorakit.parallel.environment import MEETING, Member, this_process

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

# How long a rank whose peers are gone waits for one of them to say why.
_SECONDS_TO_TELL = 5
_SECONDS_TO_MEET = 300
# What torch's collectives say where nobody turned it into a PeerLost: those within a model that is sharded.
_TRANSPORT = re.compile("gloo|nccl", re.IGNORECASE)
_store: Store | None = None


def store_of_group() -> Store:
    """The group's key-value store, within `one_voice`."""
    assert _store is not None
    return _store


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let only the first of the group that leaves the block with an error leave it with that error.

    Raises:
        ToldByAnother: In all others.
        MachineError: In the first one, where its error was that another was lost, and that one said nothing.
    """
    global _store
    member = this_process()
    if member.size == 1 or _store is not None:
        yield
        return
    _store = _connected(member)
    try:
        yield
    except BaseException as error:
        ended = _ended(error, member, _store)
        if ended is error:
            raise
        raise ended from error
    finally:
        _store = None


def meeting_place() -> str:
    """Where the group meets, as the launcher says: a file, or HOST:PORT."""
    return os.environ.get(MEETING) or ":".join(map(str, _address()))


def _address() -> tuple[str, int]:
    return os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))


def _keeps_store(member: Member) -> bool:
    is_kept = MEETING in os.environ or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return member.is_first and not is_kept


def _connected(member: Member) -> Store:
    from torch.distributed import FileStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

    if file := os.environ.get(MEETING):
        return FileStore(file, member.size)
    host, port = _address()
    try:
        store = TCPStore(
            host,
            port,
            is_master=_keeps_store(member),
            wait_for_workers=False,
            timeout=timedelta(seconds=_SECONDS_TO_MEET),
        )
    except RuntimeError as error:
        raise MachineError(
            f"rank {member.rank} of {member.size} found nobody at {host}:{port}: {str(error).splitlines()[0]:.200}\n"
            "  is that the address of the first host, and the port open there?"
        ) from error
    return PrefixStore(f"dorakit-{member.attempt}", store)


def _ended(error: BaseException, member: Member, store: Store) -> BaseException:
    """The error that a rank which leaves with `error` raises."""
    lost = isinstance(error, PeerLost) or (
        isinstance(error, RuntimeError) and _TRANSPORT.search(str(error)) is not None
    )
    told: list[int] = []
    # A store that is out of reach does not answer, and does not say so either.
    talk = threading.Thread(target=_leave, args=(error, lost, member, store, told), daemon=True)
    talk.start()
    talk.join(2 * _SECONDS_TO_TELL)
    if told:
        return ToldByAnother(told[0])
    if lost:
        return MachineError(
            "another process of this run is gone without a word: killed, out of memory, or out of reach "
            f"({str(error).splitlines()[0]:.200})\n"
            "  a training goes on from its last checkpoint with `dorakit train --resume RUN`, an evaluation of tasks with the "
            "same command"
        )
    return error


def _leave(error: BaseException, lost: bool, member: Member, store: Store, told: list[int]) -> None:
    """Say that this rank leaves; where another one was first, put its exit code into `told`."""
    with contextlib.suppress(RuntimeError):  # the store is gone too
        if lost:
            with contextlib.suppress(RuntimeError):
                store.wait(["left"], timedelta(seconds=_SECONDS_TO_TELL))
        if store.add("leaving", 1) > 1:
            told.append(int(store.get("left")))
            store.add("heard", 1)
            return
        store.set("left", str(MachineError.exit_code if lost else _exit_code(error)))
        if _keeps_store(member):
            _wait_until_heard(member, store)


def _wait_until_heard(member: Member, store: Store) -> None:
    deadline = time.monotonic() + _SECONDS_TO_TELL
    while store.add("heard", 0) < member.size - 1 and time.monotonic() < deadline:
        time.sleep(0.05)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = getattr(error, "exit_code", getattr(error, "code", 1))
    return code if isinstance(code, int) else 1
