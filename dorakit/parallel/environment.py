"""What `--nproc`, torchrun or another launcher tells a process of its group, read without torch."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from dorakit.errors import UsageError

# Set by `--nproc` (parallel/launch.py): the file in which the ranks of one host meet.
MEETING = "DORAKIT_MEETING_FILE"


@dataclass(frozen=True)
class Member:
    """One process of a group: its rank, the group's size, its rank on its host.

    `attempt` counts the group's restarts. `launch` names the launch: the same for all attempts, another for every launch.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    attempt: int = 0
    launch: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


def this_process() -> Member:
    """The place of this process; a group of one where no launcher says otherwise.

    Raises:
        UsageError: A launcher's variables say nothing that can be.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Member()
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        value = os.environ.get(name, "0")
        if not value.isdigit():
            raise UsageError(f"the environment says {name}={value}, expected a number: start the group with torchrun")
        numbers[name] = int(value)
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    if not rank < size:
        raise UsageError(f"the environment says RANK={rank} of WORLD_SIZE={size}: start the group with torchrun")
    # torchrun calls every launch "none" unless it is given a name; then its process on this host tells them apart.
    given = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    launch = f"{platform.node()}:{os.getppid()}" if given == "none" else given
    return Member(rank, size, numbers["LOCAL_RANK"], numbers["TORCHELASTIC_RESTART_COUNT"], launch)
