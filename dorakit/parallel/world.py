"""The processes of one training, and what they tell each other: tensors and JSON, never pickles.

Nothing here starts a process: parallel/launch.py does, or torchrun. Every rank goes through the same steps; the first one
writes files and speaks. A rank that fails leaves, so that there is nothing for the others to hang in (parallel/voice.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dorakit.errors import MachineError, PeerLost, RunError
from dorakit.model.load import pick_device
from dorakit.parallel.environment import Member, this_process
from dorakit.parallel.voice import meeting_place, one_voice, store_of_group

T = TypeVar("T")
U = TypeVar("U")
_SECONDS_TO_ANSWER = 3600


class World:
    """The group, as one rank sees it; of a group of one, every exchange is with itself and costs nothing.

    Values are those of JSON, with texts for keys; a tuple arrives as a list.
    """

    def __init__(self, member: Member | None = None):
        self.member = member or Member()
        self.rank, self.size, self.is_first = self.member.rank, self.member.size, self.member.is_first

    def share(self, everything: Sequence[T]) -> Sequence[T]:
        """What this rank does of what all do together: every `size`-th, so that what is sorted by length is spread."""
        return everything[self.rank :: self.size]

    def collected(self, own: Sequence[T]) -> list[T]:
        """On every rank what all of them made of their `share`, in the order of the whole."""
        parts = self.gather(list(own))
        longest = max(map(len, parts))
        return [part[place] for place in range(longest) for part in parts if place < len(part)]

    def in_rounds(self, pieces: Sequence[T], do: Callable[[T], U]) -> Iterator[list[tuple[T, U]]]:
        """Do pieces of work, in each round one on every rank; gives after a round its pieces with what came of them.

        All ranks get the same, in the order of the whole: that of one process, which does a piece a round.
        """
        for start in range(0, len(pieces), self.size):
            of_round = pieces[start : start + self.size]
            done = self.collected([do(piece) for piece in self.share(of_round)])
            yield list(zip(of_round, done, strict=True))

    def gather(self, value: T) -> list[T]:
        """The value of each rank, by rank, on every rank."""
        if self.size == 1:
            return [value]
        own = _packed(value)
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        with _talking():
            dist.all_gather(lengths, torch.tensor([len(own)]))
            longest = max(int(length) for length in lengths)
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(parts, torch.cat([own, own.new_zeros(longest - len(own))]))
        return [_unpacked(part[: int(length)]) for part, length in zip(parts, lengths, strict=True)]

    def stacked(self, rows: Tensor, number: int) -> Tensor:
        """On every rank the rows of all, `number` in all, dealt out as torch.chunk does."""
        if self.size == 1:
            return rows
        each = -(-number // self.size)
        padded = rows.new_zeros((each, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _talking():
            dist.all_gather(parts, padded)
        return torch.cat(parts)[:number]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, the only one to call it; on every rank."""
        if self.size == 1:
            return make()
        packed = _packed(make()) if self.is_first else torch.empty(0, dtype=torch.uint8)
        length = self.tensor_from_first(torch.tensor(len(packed)))
        if not self.is_first:
            packed = packed.new_empty(int(length))
        value: T = _unpacked(self.tensor_from_first(packed))
        return value

    def tensor_from_first(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, on the CPU of every rank; elsewhere only shape and dtype count, so it may be on meta."""
        own = tensor.cpu().contiguous() if self.is_first else torch.empty(tensor.shape, dtype=tensor.dtype)
        if self.size > 1:
            with _talking():
                dist.broadcast(own, src=0)
        return own

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Put into each tensor, in place, its sum over all ranks: the same bytes on every one."""
        if self.size > 1:
            with _talking():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def agree(self, facts: dict[str, str]) -> None:
        """Refuse ranks that are about to do different things.

        Args:
            facts: By what a person calls it, the content that must be the same everywhere.

        Raises:
            RunError: It is not.
        """
        told = self.gather(facts)
        for what, value in told[0].items():
            if odd := [rank for rank, other in enumerate(told) if other[what] != value]:
                raise RunError(
                    f"{what}: rank {odd[0]} has {told[odd[0]][what]:.40}, rank 0 has {value:.40}\n"
                    "  every rank needs the same recipe, data and base: are the files on all hosts the same?"
                )


ALONE = World()


@contextlib.contextmanager
def joined(*, timeout_s: float = _SECONDS_TO_ANSWER) -> Iterator[World]:
    """Be one of the group that a launcher started, for the length of the block.

    Args:
        timeout_s: Seconds after which a rank that does not answer counts as lost.

    Raises:
        MachineError: The others were not there in time, or one was lost without a word.
        ToldByAnother: Another rank failed first and says why.
    """
    member = this_process()
    if member.size == 1:
        yield World(member)
        return
    on_cuda = pick_device().type == "cuda"
    if on_cuda:
        torch.cuda.set_device(member.local_rank)
    with one_voice():
        _meet(member, timedelta(seconds=timeout_s), "cpu:gloo,cuda:nccl" if on_cuda else "gloo")
        try:
            yield World(member)
        finally:
            with contextlib.suppress(Exception):  # of a group that is broken
                dist.destroy_process_group()


def _meet(member: Member, timeout: timedelta, backend: str) -> None:
    try:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store_of_group()),  # type: ignore[attr-defined]
            rank=member.rank,
            world_size=member.size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"rank {member.rank} of {member.size} did not find the others at {meeting_place()} within "
            f"{timeout.total_seconds():.0f} s: {str(error).splitlines()[0]:.200}"
        ) from error


def _packed(value: Any) -> Tensor:
    """A value as the bytes of its JSON."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Any:
    return json.loads(packed.numpy().tobytes())


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(str(error).splitlines()[0]) from error
