"""What a resume is refused for that needs no base: found before minutes are spent on loading one.

training/restore.py looks again, at everything, once the base is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from dorakit.errors import RunError
from dorakit.recipe.resolved import settings
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.training.checkpoint import CHECKPOINT_FILES, named_checkpoint, newest_checkpoint, read_state
from dorakit.training.manifest import verify
from dorakit.training.resume import accepted_at, refuse_changed_settings


def check_resumable(run: Run, recipe: Recipe, checkpoint: str | None, accepted: Sequence[str]) -> None:
    """Refuse to go on without a checkpoint that can be used, or with other settings than its own.

    Args:
        run: The run, locked by the caller.
        recipe: What is to be done now.
        checkpoint: Name of the one to go on from; None for the newest that verifies.
        accepted: Keys whose change is accepted.

    Raises:
        RunError: The named checkpoint is absent or damaged, none can be used, or a setting changed that is neither free nor
            accepted.
    """
    path = _to_go_on_from(run, checkpoint)
    if path is None:
        return
    try:
        state = read_state(path)
    except RunError:
        if checkpoint is not None:
            raise
        return  # restore.py looks for an older one
    refuse_changed_settings(
        run,
        state["facts"]["recipe"],
        settings(recipe),
        accepted=accepted,
        accepted_before=accepted_at(run, state["step"]),
        validates_best=recipe.training.keep_best,
    )


def _to_go_on_from(run: Run, name: str | None) -> Path | None:
    there = sorted(run.checkpoints.glob("step-" + 9 * "[0-9]"), reverse=True)
    if name is not None:
        path = run.checkpoints / name
        if path not in there:
            named_checkpoint(run, name)  # refuses, with those that are there
        verify(path, CHECKPOINT_FILES)
        return path
    for path in there:
        with contextlib.suppress(RunError):
            verify(path, CHECKPOINT_FILES)
            return path
    newest_checkpoint(run)  # refuses, where there are some, with what is wrong with each
    return None
