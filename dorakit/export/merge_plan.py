"""What one merge does, with every default filled in, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dorakit.adapters.storage import base_storage
from dorakit.digests import MERGED
from dorakit.errors import ModelError, UsageError
from dorakit.model.nf4 import NF4Format, stored_format
from dorakit.place import Place, find_target
from dorakit.progress import say
from dorakit.recipe.schema import MergeSection
from dorakit.run import Run
from dorakit.target import open_target

if TYPE_CHECKING:
    from dorakit.recipe.schema import Recipe
    from dorakit.target import Target

RECEIPT = MERGED


@dataclass
class MergePlan:
    """What one merge does, with every default filled in."""

    place: Place
    recipe: Recipe | None
    output: Path
    onto: Literal["trained", "original"]
    wants_original: bool
    dtype: str
    max_lost: float
    base_model: str | None
    accept_changes: Sequence[str]
    quiet: bool
    # False where an adapter directory does not say how its base was stored: the weights as they are make do.
    knows_base: bool = True
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Print a line and keep it for the receipt."""
        self.notes.append(line)
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line."""
        say(line, quiet=self.quiet)

    def label(self, text: str) -> str | None:
        """The label of a progress bar; None where nothing is printed."""
        return None if self.quiet else text

    @property
    def dtypes(self) -> list[str]:
        """What to write, and float32 for the case that rounding to it takes too much."""
        first = "bfloat16" if self.dtype == "auto" else self.dtype
        return list(dict.fromkeys([first, "float32"]))

    def open(self, onto: Literal["trained", "original"], scratch: Path) -> Target:
        """Load the adapter, live on the base asked for; what is packed lies in `scratch`."""
        target = open_target(
            self.place.text,
            recipe=self.recipe,
            onto=onto,
            base_model=self.base_model,
            as_stored=True,
            accept_changes=self.accept_changes,
            scratch=scratch,
        )
        if self.wants_original and stored_format(target.model) is not None:
            raise ModelError(
                f"--onto original: {target.base} is stored as NF4, its original weights are not there\n"
                "  merge onto the weights that the adapter was trained on: --onto trained"
            )
        for line in target.notes:
            if line not in self.notes:
                self.note(line)
        return target


def plan_merge(
    run: Run | Path | str,
    output: Path | str | None,
    onto: Literal["trained", "original"] | None,
    dtype: str | None,
    base_model: str | None,
    accept_changes: Sequence[str],
    quiet: bool,
) -> MergePlan:
    """Fill in what the run, its recipe and the adapter say; notes are printed.

    Args and errors are those of `merge`.
    """
    place = find_target(str(run.path if isinstance(run, Run) else run))
    place.refuse_absent("nothing to merge: ")
    if place.kind == "model":
        raise UsageError(f"nothing to merge: {place.text} is a whole model, not a run or an adapter directory")
    recipe = place.run.recipe if place.run else None
    if place.run is not None and recipe is not None and recipe.trains_whole:
        raise UsageError(
            f"nothing to merge: {place.run.path} was trained in mode full, {place.run.model} is the whole model"
        )
    section = recipe.merge if recipe else MergeSection()
    if place.run is not None:
        place.run.result  # noqa: B018  raises where training has not finished
    elif output is None:
        raise UsageError(f"{place.text} is an adapter outside a run: say where the merged model goes with --output DIR")
    directory = Path(os.path.expanduser(output)) if output is not None else place.run.merged if place.run else Path()
    onto = onto or section.onto
    dtype = dtype or section.dtype
    wants_original = onto == "original"
    plan = MergePlan(
        place, recipe, directory, onto, wants_original, dtype, section.max_lost, base_model, accept_changes, quiet
    )
    is_nf4 = recipe is not None and recipe.stores_nf4
    if place.kind == "adapter" and place.path is not None:
        stored = base_storage(place.path)
        is_nf4, plan.knows_base = isinstance(stored, NF4Format), stored is not None
    if plan.onto == "original" and is_nf4:
        plan.note("merging onto the original weights: the adapter was trained on NF4 ones, so this is another model")
    elif plan.onto == "original":
        if plan.knows_base:
            plan.note("the adapter was trained on the weights as they are: --onto original changes nothing")
        plan.onto = "trained"
    return plan
