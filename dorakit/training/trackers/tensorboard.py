"""TensorBoard: event files in RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from dorakit.training.trackers.tracker import End, Tracked


class TensorBoardTracker:
    """Writes event files. A resumed run adds one that takes back the steps after its checkpoint, and tells them anew."""

    needs: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def __init__(self, tracked: Tracked):
        from torch.utils.tensorboard import SummaryWriter

        self.id = tracked.name
        self.has_told = False
        purge = tracked.start_step + 1 if tracked.kept_id else None
        self._writer = SummaryWriter(str(tracked.directory / "tensorboard"), purge_step=purge)
        lines = [f"    {key}: {value}" for key, value in tracked.settings.items()]  # four blanks: verbatim in Markdown
        self._writer.add_text("recipe", "\n".join(lines), tracked.start_step)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, end: End) -> None:
        """Write what is held back."""
        self._writer.close()
