"""Where a run begins: anew, or after the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dorakit.data.tokens import Encoded
from dorakit.errors import DorakitError, RunError
from dorakit.files import discard
from dorakit.recipe.resolved import settings
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.terminal import typed
from dorakit.training.checkpoint import (
    Checkpoint,
    check_best,
    named_checkpoint,
    newest_checkpoint,
    save_best,
    set_newer_aside,
)
from dorakit.training.metrics import last_logged_step
from dorakit.training.optim import keeps_alike
from dorakit.training.resume import Facts, accepted_at, compare, write_row_digests
from dorakit.training.trained import check_fits
from dorakit.training.upgrade import refuse_lost_beginning, remember_beginning_


@dataclass
class Progress:
    """What a checkpoint keeps besides tensors; everything else is a pure function of the step.

    `is_exact` is False once anything changed that may have moved a trained byte.
    """

    step: int = 0
    num_tokens: int = 0
    summed_rate: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    is_exact: bool = True


@dataclass(frozen=True)
class Start:
    """Where a resumed run goes on: a checkpoint by name, or the newest; and which changes are accepted.

    `has_adapter` says of a new run that it begins with one, which its first checkpoint is to hold.
    """

    checkpoint: str | None = None
    accepted: Sequence[str] = ()
    has_adapter: bool = False


@dataclass(frozen=True)
class Restored:
    """What is to be gone on with, to be put in by `same_start.put_in_`; `notes` are lines to print and record."""

    progress: Progress = field(default_factory=Progress)
    notes: list[str] = field(default_factory=list)
    checkpoint: Checkpoint | None = None


def restore(
    run: Run,
    recipe: Recipe,
    start: Start,
    *,
    model: nn.Module,
    data: Encoded,
    facts: Facts,
    base: dict[str, Any],
    computing: dict[str, str],
    total_steps: int,
) -> Restored:
    """Read the checkpoint that a run goes on from, and make the run ready to; without a checkpoint it begins.

    Nothing of the run is changed before everything that is refused has been looked for.

    Args:
        run: The run, locked by the caller.
        recipe: What is to be done now.
        start: Which checkpoint, and which changes since are accepted; or that there is an adapter to begin with.
        model: What the checkpoint must fit; its adapters are told what they began as.
        data: Encoded rows of now.
        facts: What the run now depends on.
        base: Facts of the base for run.json.
        computing: What the bytes of a step hang on besides its inputs, now.
        total_steps: Steps that the recipe now asks for.

    Raises:
        RunError: The checkpoint is damaged, something changed that is not accepted, or the change cannot be carried out.
        UsageError: Something was accepted that did not change.
    """
    if start.checkpoint:
        checkpoint: Checkpoint | None = named_checkpoint(run, start.checkpoint)
        notes = []
    else:
        checkpoint, rejected = newest_checkpoint(run)
        notes = [f"passed over: {reason}" for reason in rejected]
    if checkpoint is None:
        if not start.has_adapter:
            refuse_lost_beginning(run)
        notes += _begun_again(run, recipe.training.save_every)
        _record(run, recipe, base, data)
        return Restored(notes=notes)
    state = checkpoint.state
    compared = compare(
        state["facts"],
        facts,
        run=run,
        data=data,
        accepted=start.accepted,
        accepted_before=accepted_at(run, checkpoint.step),
        validates_best=recipe.training.keep_best,
    )
    notes += compared.notes
    if checkpoint.step > total_steps:
        raise RunError(
            f"the recipe now asks for {total_steps} steps and the checkpoint is of step {checkpoint.step}\n"
            "  raise training.max_steps or training.epochs, or go on from an earlier one: --resume RUN/checkpoints/step-N"
        )
    then, now = state["facts"]["recipe"].get("optimizer.name", "none"), recipe.optimizer.name
    if not keeps_alike(then, now):
        raise RunError(
            f"optimizer.name: {then} then, {now} now: the state of the one cannot go on as that of the other\n"
            "  put it back, or train anew with the other optimizer"
        )
    progress = Progress(**{name: state.get(name, value) for name, value in vars(Progress(is_exact=False)).items()})
    progress.is_exact = progress.is_exact and compared.is_exact
    if recipe.training.keep_best and progress.best_step:
        if state["facts"]["recipe"].get("training.keep_best") == "false":
            # Its weights were not kept, so it could not be gone back to.
            notes.append(
                f"the best validation so far, {progress.best_loss:.4f} at step {progress.best_step}, kept no weights: "
                "the best is counted from here on"
            )
            progress.best_loss, progress.best_step = None, 0
        else:
            try:
                check_best(run, progress.best_step)
            except RunError:
                if progress.best_step != checkpoint.step:
                    raise
                save_best(run, checkpoint.step, checkpoint.trained)  # which are its weights
    is_recorded = _is_recorded(run, facts)
    check_fits(model, checkpoint.trained)
    remember_beginning_(model, run)
    # Only now: a refused resume leaves the run as it was.
    if start.checkpoint:
        set_newer_aside(run, checkpoint.step)
    for stale in (run.adapter, run.model):  # of a process that was killed before it could call the run finished
        if stale.is_dir():
            discard(stale)
    run.update(state="training")  # it may have failed before
    if compared.notes or not is_recorded:
        _record(run, recipe, base, data)
    if compared.accepted:
        run.update(accepted={"step": checkpoint.step, "values": compared.accepted})
    for what, is_now in computing.items():
        if (was := state["computing"].get(what, "not told")) != is_now:
            progress.is_exact = False
            notes.append(f"{what} was {was} when the checkpoint was made and is {is_now}")
    return Restored(progress, notes, checkpoint)


def _record(run: Run, recipe: Recipe, base: dict[str, Any], data: Encoded) -> None:
    run.record(recipe)
    date = None if data.date is None else data.date.isoformat()
    run.update(base=base, state="training", template_date=date)
    write_row_digests(run, data)


def _is_recorded(run: Run, facts: Facts) -> bool:
    """Whether the run's own recipe says what is done now; one that is damaged does not."""
    try:
        return settings(run.recipe) == facts.recipe
    except DorakitError:
        return False


def _begun_again(run: Run, save_every: int) -> list[str]:
    """The line that a run without a checkpoint begins again; none for one that never took a step.

    Raises:
        RunError: Steps were logged that come after a save: its checkpoints were taken away.
    """
    logged = last_logged_step(run)
    if save_every and logged > save_every:
        raise RunError(
            f"{run.path} has no checkpoint, though step {logged} was logged and one was saved every {save_every} steps\n"
            f"  put {run.checkpoints} back; to begin again, rm -r {typed(run.path)}"
        )
    return [f"no checkpoint was saved before step {logged}: the run begins again"] if logged else []
