"""The whole plan of a recipe: bytes mode by mode, the device, steps and time, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dorakit.errors import UsageError
from dorakit.plan.advice import Advice, advise, changed
from dorakit.plan.device import Device, card, this_machine
from dorakit.plan.ledger import Ledger, ledger, micro_batch
from dorakit.plan.ranks import OnRanks, on_ranks
from dorakit.plan.schedule import Schedule, schedule
from dorakit.plan.skeleton import find_config
from dorakit.recipe.schema import MODES, Recipe
from dorakit.training.checks import check_trainable_dtype
from dorakit.training.device import as_found
from dorakit.training.start import check_ranks


@dataclass(frozen=True)
class Estimate:
    """What a recipe takes.

    `rows` x `tokens` is the largest forward pass. `ledgers` has an entry for each mode asked for and for the recipe's own.
    `seconds` is None where the speed or the number of tokens is not known. `advice` is empty where the recipe fits, and where
    nothing helps. `shares` is the recipe's own mode by several processes, each on a device of its own.
    """

    mode: str
    dtype: str
    device: Device
    rows: int
    tokens: int
    ledgers: dict[str, Ledger]
    schedule: Schedule
    seconds: float | None
    advice: list[Advice]
    shares: list[OnRanks]

    @property
    def fits(self) -> bool:
        """Whether the recipe's own mode does."""
        return self.mode_fits(self.mode)

    def mode_fits(self, mode: str) -> bool:
        """Whether the peak of a mode is no more than the device's room."""
        return self.ledgers[mode].peak <= self.device.room

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "mode": self.mode,
            "dtype": self.dtype,
            "device": {**asdict(self.device), "room": self.device.room},
            "micro_batch": {"rows": self.rows, "tokens": self.tokens},
            "modes": {mode: {**entry.as_dict(), "fits": self.mode_fits(mode)} for mode, entry in self.ledgers.items()},
            "fits": self.fits,
            "schedule": asdict(self.schedule),
            "seconds": self.seconds,
            "advice": [asdict(advice) for advice in self.advice],
            "ranks": [{**share.as_dict(), "fits": share.peak <= self.device.room} for share in self.shares],
        }


@dataclass(frozen=True)
class Planner:
    """Shared by the plans of a recipe and of its variants. `dtype` is the compute dtype."""

    device: Device
    dtype: str
    config: Any
    schedule: Schedule

    @classmethod
    def of(cls, recipe: Recipe, *, gpu: str | None = None, config: Path | None = None) -> Planner:
        """Find the device, the base's config and the lengths of the rows; raises as `estimate`."""
        device = this_machine() if gpu is None else card(gpu)
        check_trainable_dtype(recipe.model.dtype)
        stated = recipe.model.dtype
        dtype = stated if stated != "auto" else "bfloat16" if device.has_bfloat16 else "float32"
        return cls(device, dtype, find_config(recipe, config), schedule(recipe))

    def ledger(self, recipe: Recipe) -> Ledger:
        """The bytes of a variant, whose rows are no longer than those that were read."""
        limit, longest = recipe.data.max_seq_len, None if recipe.data.packing else self.schedule.longest
        return ledger(
            recipe,
            self.config,
            dtype=getattr(torch, self.dtype),
            on_card=self.device.is_card,
            row_tokens=limit if longest is None else min(limit, longest),
        )


@as_found()
def estimate(
    recipe: Recipe,
    *,
    gpu: str | None = None,
    config: Path | None = None,
    tokens_per_s: float | None = None,
    modes: Sequence[str] = MODES,
    ranks: Sequence[int] = (),
) -> Estimate:
    """Plan a recipe without reading weights.

    Args:
        recipe: What is to be trained.
        gpu: A card, or its memory; this machine where there is none.
        config: The base's config.json, where the base is not here.
        tokens_per_s: Speed of the training, in tokens without padding, as its lines and metrics give it.
        modes: To be planned beside the recipe's own.
        ranks: Numbers of processes to plan the recipe's own mode for.

    Raises:
        UsageError: An unknown card, a speed that is none, or more processes than a step has documents.
        ModelError, ResourceError: The base's config cannot be used, or not be had.
        DataError: Rows that training would refuse too.
    """
    if tokens_per_s is not None and not 0 < tokens_per_s < float("inf"):
        raise UsageError(f"a speed of {tokens_per_s} tokens a second says nothing; give one above 0")
    check_ranks(recipe, max(ranks, default=1))
    planner = Planner.of(recipe, gpu=gpu, config=config)
    device, expected, own = planner.device, planner.schedule, recipe.adapter.mode
    ledgers = {
        mode: planner.ledger(changed(recipe, "adapter.mode", mode)) for mode in MODES if mode in modes or mode == own
    }
    rows, tokens = micro_batch(recipe, None if recipe.data.packing else expected.longest)
    advice = []
    if ledgers[own].peak > device.room:
        advice = advise(
            recipe,
            room=device.room,
            row_tokens=tokens,
            on_card=device.is_card,
            peak_of=lambda recipe: planner.ledger(recipe).peak,
        )
    seconds = None if tokens_per_s is None or expected.tokens is None else expected.tokens / tokens_per_s
    shares = [share for number in ranks for share in on_ranks(ledgers[own], recipe, number, rows=rows)]
    return Estimate(own, planner.dtype, device, rows, tokens, ledgers, expected, seconds, advice, shares)
