"""Trackio: its database in RUN/trackio, or where TRACKIO_DIR says."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from dorakit.training.trackers.tracker import End, Tracked


class TrackioTracker:
    """Writes Trackio's database. The library has one directory for the life of a process."""

    needs: ClassVar[tuple[str, ...]] = ("trackio",)

    def __init__(self, tracked: Tracked):
        wanted = Path(os.environ.get("TRACKIO_DIR") or tracked.directory / "trackio").absolute()
        before = os.environ.get("TRACKIO_DIR")
        os.environ["TRACKIO_DIR"] = str(wanted)  # read when it is imported
        try:
            from trackio.utils import TRACKIO_DIR
        finally:
            if before is None:
                del os.environ["TRACKIO_DIR"]
        if Path(TRACKIO_DIR).absolute() != wanted:
            raise RuntimeError(
                f"this process already writes to {TRACKIO_DIR}, and Trackio has one directory per process; "
                "set TRACKIO_DIR, or train each run in a process of its own"
            )
        self.id = tracked.kept_id or self._new_name(tracked)
        self.has_told = bool(tracked.kept_id)
        try:
            self._start(tracked, "must" if tracked.kept_id else "never")
        except ValueError:  # the directory is another one than before, and does not know the run
            if not tracked.kept_id:
                raise
            self.has_told = False
            self._start(tracked, "never")

    def _new_name(self, tracked: Tracked) -> str:
        """A resumed run is found by its name, and a directory of the user's may hold others of the same name."""
        return f"{tracked.name}-{uuid.uuid4().hex[:6]}" if "TRACKIO_DIR" in os.environ else tracked.name

    def _start(self, tracked: Tracked, resume: str) -> None:
        import trackio

        self._run = trackio.init(
            project=tracked.project,
            name=self.id,
            config=dict(tracked.settings),
            resume=resume,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        self._run.log(dict(figures), step=step)

    def finish(self, end: End) -> None:
        """Write what is held back."""
        import trackio

        trackio.finish()  # the run's own would leave it to be finished again at exit
