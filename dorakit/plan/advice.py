"""What to change when a training does not fit. Nothing is advised that was not planned again and found to fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dorakit.memory import gib
from dorakit.recipe.resolved import yaml_value
from dorakit.recipe.schema import Recipe

_SHORTEST = 128  # tokens: less is seldom worth training on
_OVERLENGTH = {"drop": "rows with more are dropped", "truncate": "rows with more are cut", "error": "such rows must go"}


@dataclass(frozen=True)
class Advice:
    """One change, or several at once: what `--set` takes, the bytes that it saves, the peak with it, and its price."""

    overrides: tuple[str, ...]
    saves: int
    peak: int
    price: str

    def __str__(self) -> str:
        settings = " ".join(f"--set {override}" for override in self.overrides)
        return f"{settings}  saves {gib(self.saves)}, peak {gib(self.peak)}; {self.price}"


def changed(recipe: Recipe, key: str, value: Any) -> Recipe:
    """The recipe with another value at `section.field`."""
    section, field = key.split(".")
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={field: value})})


def advise(
    recipe: Recipe, *, room: int, row_tokens: int, on_card: bool, peak_of: Callable[[Recipe], int]
) -> list[Advice]:
    """Every single change with which the recipe fits; where there is none, the fewest in a row that do; else none.

    Args:
        recipe: One that does not fit.
        room: Bytes for tensors.
        row_tokens: Tokens of the longest row.
        on_card: Whether states can be paged.
        peak_of: Plans a recipe.
    """
    before = peak_of(recipe)
    peaks: dict[tuple[str, ...], int] = {}

    def try_out(steps: list[_Change]) -> Advice:
        overrides = tuple(override for step in steps for override in step.overrides)
        if overrides not in peaks:
            peaks[overrides] = peak_of(_with(recipe, steps))
        peak = peaks[overrides]
        return Advice(overrides, before - peak, peak, "; ".join(step.price for step in steps))

    alone = [_mildest(change, [], try_out, room) for change in _changes(recipe, row_tokens, on_card)]
    if found := [advice for advice in alone if advice.peak <= room]:
        return found
    steps: list[_Change] = []
    best = before
    for change in _changes(recipe, row_tokens, on_card):
        advice = _mildest(change, steps, try_out, room)
        if advice.peak <= room:
            return [advice]
        if advice.peak < best:
            best = advice.peak
            steps.append(replace(change, values=change.values[-1:]))
    return []


@dataclass(frozen=True)
class _Change:
    """A field and the values to try, the mildest first; `also` is set with any of them."""

    key: str
    values: tuple[Any, ...]
    price: str
    also: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        return ((self.key, self.values[0]), *self.also)

    @property
    def overrides(self) -> tuple[str, ...]:
        return tuple(f"{key}={yaml_value(value)}" for key, value in self.settings)


def _mildest(change: _Change, before: list[_Change], try_out: Callable[[list[_Change]], Advice], room: int) -> Advice:
    """The first of the change's values that fits; where none does, the last."""
    strongest = try_out([*before, replace(change, values=change.values[-1:])])
    if strongest.peak > room:
        return strongest
    tried = (try_out([*before, replace(change, values=(value,))]) for value in change.values)
    return next(advice for advice in tried if advice.peak <= room)


def _with(recipe: Recipe, steps: list[_Change]) -> Recipe:
    for step in steps:
        for key, value in step.settings:
            recipe = changed(recipe, key, value)
    return recipe


def _changes(recipe: Recipe, row_tokens: int, on_card: bool) -> Iterator[_Change]:
    """What may be changed of a recipe, what changes its result least first."""
    training, mode = recipe.training, recipe.adapter.mode
    same = "the same result where adapter.dropout is 0"
    if training.micro_batch_tokens is not None and training.micro_batch_tokens >= 2 * row_tokens:
        yield _Change("training.micro_batch_tokens", _halves(training.micro_batch_tokens, row_tokens), same)
    rows = min(training.micro_batch_size, training.batch_size)
    if training.micro_batch_tokens is None and rows > 1:
        yield _Change("training.micro_batch_size", _halves(rows, 1), same)
    if not training.gradient_checkpointing:
        also = (("training.compile", False),) if training.compile else ()
        yield _Change(
            "training.gradient_checkpointing", (True,), "the same result, each layer computed twice", also=also
        )
    if recipe.optimizer.name in ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_32bit"):
        name = "paged_adamw_8bit" if on_card else "adamw_8bit"
        if name != recipe.optimizer.name:
            yield _Change(
                "optimizer.name", (name,), "states in 8 bits" + (", which page to the host" if on_card else "")
            )
    if recipe.trains_whole:
        yield _Change("adapter.mode", ("lora",), "an adapter instead of all weights: another learning rate")
    elif not recipe.stores_nf4:
        yield _Change("adapter.mode", (f"q{mode}",), "the frozen base in 4 bits")
    if row_tokens >= 2 * _SHORTEST:
        yield _Change("data.max_seq_len", _halves(row_tokens, _SHORTEST), _OVERLENGTH[recipe.data.overlength])


def _halves(value: int, least: int) -> tuple[int, ...]:
    """Half the value, half of that, and so on, not below `least`."""
    halves = []
    while value // 2 >= least:
        value //= 2
        halves.append(value)
    return tuple(halves)
