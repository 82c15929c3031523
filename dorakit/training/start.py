"""The beginning of a training, without torch: what can be refused at once is refused before anything large is loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dorakit.data.precheck import check_rows
from dorakit.errors import RunError, UsageError, shown
from dorakit.interruptions import terminated_at_once
from dorakit.parallel.environment import Member, this_process
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.terminal import typed
from dorakit.training.trackers import check_trackers
from dorakit.versions import refuse_unfit_versions

_ASIDE = "aside-"  # as training/checkpoint.py calls them


@terminated_at_once()  # the steps themselves are finished first
def train(
    recipe: Recipe,
    *,
    start_from: Path | str | None = None,
    resume: Run | None = None,
    checkpoint: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> Run:
    """Train as the recipe says and return the finished run.

    Args:
        recipe: What to do; for a resumed run, the run's own recipe, or one with changes that a resumed run may have.
        start_from: An adapter directory or a finished run whose adapter a new run begins with; a LoRA may go on as a DoRA.
        resume: An unfinished run to go on with, from its newest valid checkpoint.
        checkpoint: Name of the checkpoint to go on from instead.
        accept_changes: What may have changed since: keys of the recipe, `data`, `base`, `template`; of what a new run begins
            with, files that dorakit wrote, each DIRECTORY/FILE.
        quiet: Show nothing.

    Raises:
        RunError: The run directory is taken, locked, changed or damaged.
        MachineError: A library has a version that dorakit excludes, or a tracker of `logging.to` is not installed.
        GateError: A loss or gradient is not finite; no step was taken.
        Interrupted: Stopped by a signal; a checkpoint was saved.
        StoppedAtOnce: By SIGTERM outside the steps, or by a second signal.
        RecipeError: The adapter of `start_from` is not what the recipe says.
        DataError, ModelError, ResourceError: As their names say; nothing is left of a run that never began.
    """
    refuse_unfit_versions()
    member = this_process()
    _check_strategy(recipe, member)
    if resume is None and start_from is None:
        # What this launch began before its processes were restarted, the same command goes on with.
        resume = Run.launched(recipe, member.launch) if member.attempt else None
        accept_changes = () if resume else accept_changes
        if resume and resume.state == "finished":
            return resume
    if resume is None:
        if member.is_first:
            place, wanted = Run.place(recipe), Run.wanted(recipe)
            if place != wanted and not quiet:
                print(shown(f"{wanted} is finished: this run goes to {place}"), file=sys.stderr, flush=True)
    else:
        resume.refuse_finished()
        if start_from is not None:
            raise UsageError("--from is for new runs: a resumed one has the adapter that it began with")
        if checkpoint is not None and checkpoint.startswith(_ASIDE):
            raise RunError(_how_to_use(resume, checkpoint))
    if member.is_first:
        check_trackers(recipe.logging.to)
    check_rows(recipe)

    from dorakit.training import loop

    return loop.train(
        recipe,
        start_from=start_from,
        resume=resume,
        checkpoint=checkpoint,
        accept_changes=accept_changes,
        quiet=quiet,
    )


def _check_strategy(recipe: Recipe, member: Member) -> None:
    """Refuse a group that the recipe does not want, and one with less to do per step than it has processes."""
    strategy = recipe.parallel.strategy
    if strategy == "single" and member.size > 1:
        raise UsageError(
            f"parallel.strategy: single, and this is rank {member.rank} of {member.size} processes\n"
            "  start one process, or set parallel.strategy: auto"
        )
    if strategy == "fsdp" and recipe.trains_whole and "8bit" in recipe.optimizer.name:
        raise UsageError(
            f"optimizer.name: {recipe.optimizer.name} keeps its state in blocks, which adapter.mode: full with "
            "parallel.strategy: fsdp would cut elsewhere for every number of processes\n"
            "  set optimizer.name: adamw, paged_adamw or sgd, or parallel.strategy: ddp"
        )
    if strategy == "fsdp" and not recipe.trains_whole and recipe.adapter.start != "kaiming":
        raise UsageError(
            f"parallel.strategy: fsdp does not go with adapter.start: {recipe.adapter.start}, which needs whole weights\n"
            "  set parallel.strategy: ddp, or adapter.start: kaiming"
        )
    if strategy == "fsdp" and recipe.training.compile:
        raise UsageError("parallel.strategy: fsdp does not go with training.compile\n  set training.compile: false")
    check_ranks(recipe, member.size)


def check_ranks(recipe: Recipe, ranks: int) -> None:
    """Refuse more processes than a step has documents.

    Raises:
        UsageError: There are.
    """
    if (documents := recipe.training.batch_size) < ranks:
        raise UsageError(
            f"training.batch_size {documents} is less than a document for each of {ranks} processes\n"
            "  start fewer, or raise training.batch_size (it counts the documents of all processes)"
        )


def _how_to_use(run: Run, aside: str) -> str:
    """What to do with a checkpoint that `training/checkpoint.py: set_newer_aside` renamed."""
    own = run.checkpoints / aside[aside.find("step-") :]
    if not (run.checkpoints / aside).is_dir():
        return f"{run.path} has no checkpoint {aside!r}"
    taken = f"\n  mv {typed(own)} {typed(own.with_name(f'other-{own.name}'))}" if own.exists() else ""
    return (
        f"{run.checkpoints / aside} was set aside when the run went on from an older checkpoint\n"
        f"  to go on from it, give it its name back:{taken}\n"
        f"  mv {typed(run.checkpoints / aside)} {typed(own)}\n"
        f"  dorakit train --resume {typed(own)}"
    )
