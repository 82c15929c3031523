"""The run directory of a training, new or resumed. The one process that writes it holds its lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from dorakit.adapters.initial_format import save_initial_of
from dorakit.parallel.environment import Member
from dorakit.progress import say
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.starting import keep_initial
from dorakit.training.prepare import Prepared
from dorakit.training.resumable import check_resumable

SMALLER = (
    "smaller, at the same result where adapter.dropout is 0: "
    "--set training.micro_batch_size=1 --set training.gradient_checkpointing=true"
)


@contextlib.contextmanager
def new_run(prepared: Prepared, accept_changes: Sequence[str], member: Member) -> Iterator[Run]:
    """Create the directory of a new run; its lock is held within the block.

    Raises:
        RunError: As `Run.create`, or the base or the adapter to begin with changed since dorakit wrote it.
    """
    prepared.refuse_changed_files(accept_changes)  # a resumed run's base is held against its checkpoint
    before = prepared.predecessor
    run = Run.create(prepared.recipe, base=base_facts(prepared), start=before.facts if before else None)
    with run.writing():
        save_initial_of(prepared.base.model, run.path)  # before any step: every later load needs it
        keep_initial(run)
        if member.size > 1:  # by which restarted processes know that this run is theirs
            run.update(launch=member.launch)
        yield run


@contextlib.contextmanager
def resumed(
    run: Run, recipe: Recipe, checkpoint: str | None, accept_changes: Sequence[str], *, quiet: bool
) -> Iterator[Run]:
    """Hold the lock of a run to resume within the block.

    Raises:
        RunError: It is finished, held by another process, or something changed that is not accepted.
    """
    with run.writing() as vanished:
        run.refuse_finished()  # which another process may have made it since
        # At once, since this resume may be refused, and the next one finds no trace in the lock.
        if vanished:
            line = f"the last writer of this run ({vanished}) vanished: killed, or out of memory. {SMALLER}"
            run.note(line)
            say(line, quiet=quiet)
        check_resumable(run, recipe, checkpoint, accept_changes)
        yield run


def base_facts(prepared: Prepared) -> dict[str, Any]:
    """What run.json keeps of the base."""
    base = prepared.base
    return {"name": prepared.recipe.model.base, "revision": base.revision, "files": base.identity}
