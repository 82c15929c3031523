"""What a training needs before it has a run: the model with its adapters, the rows, the optimizer, and every check of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from dorakit.adapters.initial_format import initial_of
from dorakit.build import build_model, find_files_to_train
from dorakit.data.batches import steps_per_epoch
from dorakit.data.documents import check_documents_fit
from dorakit.data.rendering import template_date
from dorakit.data.tokens import Encoded, encode
from dorakit.digests import refuse_changed
from dorakit.model.arrival import AS_STORED, Arrival
from dorakit.model.load import Base, pick_dtype
from dorakit.model.shares import Share
from dorakit.parallel.sharding import shard_
from dorakit.parallel.world import World
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.starting import saved_initial
from dorakit.training.checks import check_packing, check_recomputed, check_room
from dorakit.training.groups import group_specs, state_bytes
from dorakit.training.objectives.supervised import SupervisedLoss
from dorakit.training.optim import Updater, num_trained
from dorakit.training.rules.rule import rule_of
from dorakit.training.upgrade import Predecessor, begins_with_ties, find_predecessor
from dorakit.training.validation import sample_prompts


@dataclass(frozen=True)
class Prepared:
    """The parts of a training.

    `total_steps` is what the recipe asks for, from the first step on. `predecessor` is the adapter that a new run begins
    with, which is in the model already.
    """

    recipe: Recipe
    base: Base
    data: Encoded
    objective: SupervisedLoss
    updater: Updater
    total_steps: int
    predecessor: Predecessor | None

    def refuse_changed_files(self, accepted: Sequence[str]) -> None:
        """Refuse to begin with a base or an adapter of dorakit's own that changed since it was written.

        Raises:
            RunError, UsageError: As `refuse_changed`.
        """
        read: dict[Path, dict[str, str]] = {}
        if (directory := Path(os.path.expanduser(self.recipe.model.base))).is_dir():
            read[directory] = self.base.identity
        if self.predecessor is not None:
            read[self.predecessor.directory] = {}
        self.base.notes.extend(refuse_changed(read, accepted))


def prepare(
    recipe: Recipe,
    place: Path | None,
    world: World,
    *,
    start_from: Path | str | None = None,
    resume: Run | None = None,
) -> Prepared:
    """Encode the rows, load the model, make the optimizer.

    What can fail fails here: a run that could not begin leaves nothing, and a row, a prompt or a disk that does not fit is
    not found out after hours.

    Args:
        recipe: What is to be trained.
        place: Where the run is or will be; None on a rank that writes nothing.
        world: The group; with parallel.strategy fsdp the base is shared out over it.
        start_from: An adapter directory or a finished run whose adapter a new run begins with.
        resume: The run that goes on.

    Raises:
        RecipeError, RunError, UsageError: As `find_predecessor`.
        DataError, ModelError, ResourceError: As their names say.
    """
    predecessor = None if start_from is None else find_predecessor(start_from, recipe)
    keeps_ties = True if predecessor is None else predecessor.keeps_ties
    if resume is not None:
        keeps_ties = world.from_first(lambda: begins_with_ties(resume))
    shards = recipe.parallel.strategy == "fsdp" and world.size > 1
    trains_whole, dtype = recipe.trains_whole, pick_dtype(recipe.model.dtype)
    # Rows before weights: one that does not fit costs seconds.
    found = find_files_to_train(recipe)
    # The same on all ranks, and on the day of a resume: a chat template may write it.
    today = world.from_first(lambda: ((resume and template_date(resume)) or datetime.now()).isoformat("T", "seconds"))
    data = encode(
        recipe.data,
        found.tokenizer,
        seed=recipe.training.seed,
        twin=recipe.origin.is_twin,
        today=datetime.fromisoformat(today),
    )
    arrival = Arrival(share=Share(world.rank, world.size, world.stacked)) if shards else AS_STORED
    initial = None if predecessor is None else initial_of(predecessor.directory)
    if resume is not None:
        initial = saved_initial(resume)
    base = build_model(recipe, found=found, keeps_ties=keeps_ties, arrival=arrival, initial=initial)
    if predecessor is not None:
        predecessor.put_into_(base, recipe)  # before the optimizer takes its copies
    if recipe.parallel.strategy in ("ddp", "fsdp") and world.size == 1:
        base.notes.append(
            f"asked: parallel.strategy {recipe.parallel.strategy}, using: single "
            "(one process; --nproc or torchrun starts several)"
        )
    if shards:
        base.notes += shard_(
            base.model,
            world.size,
            float32=trains_whole or dtype == torch.float32,
            trained_too=trains_whole,
            cpu_offload=recipe.parallel.cpu_offload,
        )
        if trains_whole and dtype != torch.float32 and not recipe.training.gradient_checkpointing:
            base.notes.append(
                "each rank holds the weights as cast for forward until backward: training.gradient_checkpointing lets go of them"
            )
    if recipe.training.gradient_checkpointing:
        check_recomputed(base.model)
    check_documents_fit([*data.train, *data.validation], base.model.config)
    # Of weights that are shared out the casts would be the whole model.
    objective = SupervisedLoss(base.model, dtype, keeps_casts=not (shards and trains_whole))
    sample_prompts(recipe, base.model, base.tokenizer)
    if recipe.data.packing:
        check_packing(objective)
    rule = rule_of(base.model, recipe.optimizer)
    specs = rule.groups(group_specs(base.model, recipe.optimizer, recipe.adapter.magnitude))
    if place is not None:
        check_room(
            place,
            trained_bytes=4 * num_trained(base.model),
            state_bytes=state_bytes(recipe.optimizer.name, [size for spec in specs for size in spec.piece_sizes]),
            keep=recipe.training.keep_checkpoints,
            keep_best=recipe.training.keep_best,
        )
    updater = Updater(specs, recipe.optimizer, rule)
    return Prepared(recipe, base, data, objective, updater, total_steps(recipe, len(data.train)), predecessor)


def total_steps(recipe: Recipe, num_documents: int) -> int:
    """Optimizer steps that a recipe asks for, with so many documents to train on."""
    asked = recipe.training
    steps = math.ceil(asked.epochs * steps_per_epoch(num_documents, asked.batch_size))
    return steps if asked.max_steps is None else min(steps, asked.max_steps)
