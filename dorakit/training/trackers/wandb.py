"""Weights & Biases: a directory in RUN/wandb, which `wandb sync` sends. Nothing is sent unless WANDB_MODE says online."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from dorakit.training.trackers.tracker import End, Tracked


class WandbTracker:
    """Tells wandb the figures and the recipe, and nothing of the machine: no console, code, git state or usage figures."""

    needs: ClassVar[tuple[str, ...]] = ("wandb",)

    def __init__(self, tracked: Tracked):
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # its own crash reports; read when it is imported
        import wandb

        self.id = tracked.kept_id or uuid.uuid4().hex[:8]
        self.has_told = bool(tracked.kept_id)
        is_online = os.environ.get("WANDB_MODE") == "online"
        mode: Any = os.environ.get("WANDB_MODE", "offline")  # of any other text wandb says that it knows none
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", tracked.project),
            name=tracked.name,
            id=self.id,
            # Offline there is nothing to ask whether the run is there; the same id joins the parts when they are sent.
            resume="allow" if is_online else None,
            config=dict(tracked.settings),
            dir=str(tracked.directory),
            mode=mode,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_save_requirements=False,
                host="",
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        self._run.log(dict(figures), step=step)

    def finish(self, end: End) -> None:
        """Write what is held back, and stop its process."""
        self._run.finish(exit_code=0 if end == "finished" else 1)
