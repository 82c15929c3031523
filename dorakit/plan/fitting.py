"""Fitting a recipe to a device by the cheapest change: fewer rows at once, then time, then the length of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from dorakit.plan.advice import changed
from dorakit.plan.device import Device
from dorakit.plan.estimate import Planner
from dorakit.recipe.schema import Recipe

_SHORTEST, _STEP = 128, 64  # tokens of max_seq_len


@dataclass(frozen=True)
class Fitted:
    """A recipe and its plan. `recipe` is the one given where that fits, and where nothing here makes it fit."""

    recipe: Recipe
    device: Device
    peak: int

    @property
    def fits(self) -> bool:
        """Whether the peak is no more than the device's room."""
        return self.peak <= self.device.room


def fitted(recipe: Recipe, *, gpu: str | None = None) -> Fitted:
    """Lower micro_batch_size, else set gradient_checkpointing; shorten max_seq_len where both together are not enough.

    Args:
        recipe: With training.micro_batch_size, and without gradient checkpointing.
        gpu: A card, or its memory; this machine where there is none.

    Raises:
        UsageError, ModelError, ResourceError, DataError: As `estimate`.
    """
    planner = Planner.of(recipe, gpu=gpu)

    @cache  # a plan of a large model takes seconds
    def variant(rows: int, checkpointing: bool, tokens: int) -> Fitted:
        one = changed(recipe, "training.micro_batch_size", rows)
        one = changed(one, "training.gradient_checkpointing", checkpointing)
        one = changed(one, "data.max_seq_len", tokens)
        return Fitted(one, planner.device, planner.ledger(one).peak)

    most, limit = min(recipe.training.micro_batch_size, recipe.training.batch_size), recipe.data.max_seq_len
    given = variant(most, recipe.training.gradient_checkpointing, limit)
    if given.fits:
        return given
    if not variant(1, True, limit).fits:
        return _shorter(partial(variant, 1, True), limit) or given
    checkpointing = not variant(1, False, limit).fits
    halves = (most >> halvings for halvings in range(most.bit_length()))
    return next(one for rows in halves if (one := variant(rows, checkpointing, limit)).fits)


def _shorter(variant: Callable[[int], Fitted], limit: int) -> Fitted | None:
    """The variant with the largest max_seq_len below the limit that fits, by bisection; None where none does."""
    lengths = range(_SHORTEST, limit, _STEP)
    if not lengths or not variant(lengths[0]).fits:
        return None
    low, high = 0, len(lengths)  # lengths[low] fits, lengths[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if variant(lengths[middle]).fits else (low, middle)
    return variant(lengths[low])
