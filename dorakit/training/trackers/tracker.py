"""What the training asks of a tracker, and what it gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

End = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker is told of.

    Attributes:
        directory: The run directory. What a tracker keeps on this machine is kept in there.
        project: Name of what the run is one of several of: that of its recipe.
        settings: Every value of the recipe by dotted key.
        start_step: Steps done before, by an earlier process.
        kept_id: What the tracker called this run in that process; "" where it was not told of it.
    """

    directory: Path
    project: str
    settings: Mapping[str, Any]
    start_step: int
    kept_id: str

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.directory.resolve().name


class Tracker(Protocol):
    """One tracker, which starts when it is made and may raise whatever its library raises.

    Attributes:
        needs: Modules that must be there.
        id: What the tracker calls the run, by which a resumed run goes on in the same place.
        has_told: What an earlier process told stands there and stays, so that it must not be told again.
    """

    needs: ClassVar[tuple[str, ...]]
    id: str
    has_told: bool

    def __init__(self, tracked: Tracked): ...

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of an optimizer step, counted from 1. A step may come twice, with other figures."""

    def finish(self, end: End) -> None:
        """Write what is held back and let go."""
