"""The smallest rank at which a plain LoRA keeps what was learned: factor, attach, compare, rank after rank.

Both sides are computed in float32, so that what a rank leaves out is measured and no rounding with it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers
from dorakit.adapters.lora import LoRALinear
from dorakit.adapters.original import change_factors, original_base
from dorakit.errors import Gate, GateError
from dorakit.export.low_rank import Factors, low_rank_factors
from dorakit.export.receipt import Sample, compare_logits, share, with_share_lost, worst_part
from dorakit.memory import return_freed_memory
from dorakit.progress import progress, say

# The ranks that vLLM's --max-lora-rank can be set to, up to where a LoRA is small beside a weight.
RANKS = (8, 16, 32, 64, 128, 256)


def ranks_to_try(model: PreTrainedModel, max_rank: int) -> list[int]:
    """Ascending, none above the first that leaves nothing out. A LoRA has a rank already, which is taken where it may be."""
    layers = [layer for _, layer in adapter_layers(model)]
    if all(layer.has_factors and layer.lora_magnitude_vector is None for layer in layers):
        own = max(len(change_factors(layer)[0]) for layer in layers)
        if own <= max_rank:
            return [own]
    whole = max(min(layer.in_features, layer.out_features) for layer in layers)
    return [
        rank for number, rank in enumerate(RANKS) if rank <= max_rank and (number == 0 or RANKS[number - 1] < whole)
    ]


def factor_layers(model: PreTrainedModel, ranks: list[int], *, quiet: bool) -> dict[str, Factors]:
    """The factors of what each adapter does to its weight, by layer; one dense change is in memory at a time."""
    layers = list(adapter_layers(model))
    found = {}
    with progress("factoring layers", len(layers), quiet=quiet) as tell:
        for number, (name, layer) in enumerate(layers, start=1):
            found[name] = low_rank_factors(layer.delta_weight(), ranks)
            return_freed_memory(4 * layer.in_features * layer.out_features)
            tell(number)
    return found


def try_ranks_(
    model: PreTrainedModel,
    factors: dict[str, Factors],
    ranks: list[int],
    samples: list[Sample],
    live: Path,
    learned: dict[str, Any] | None,
    *,
    max_lost: float,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Compare rank after rank with the live logits, up to the first within the limit, which stays attached.

    Args:
        model: Its adapters are replaced by plain LoRA layers, in place.
        factors: By layer.
        ranks: Ascending.
        samples: The rows to compare on.
        live: Directory with the live model's logits over them.
        learned: `compare_base` of the live model.
        max_lost: The share of KL(live || base) that may be lost, over supervised positions and over all.
        quiet: Print nothing.

    Returns:
        For each rank tried what `with_share_lost` gives, and the mean relative error of a layer.

    Raises:
        GateError: None is within the limit.
    """
    tried: list[dict[str, Any]] = []
    for rank in ranks:
        _attach_plain_(model, factors, rank)
        mean = sum(layer.errors[rank] for layer in factors.values()) / len(factors)
        compared = with_share_lost(
            compare_logits(model, samples, live, label=None if quiet else f"rank {rank}"), learned
        )
        tried.append({"rank": rank, "relative_error": mean, **compared})
        part, lost = worst_part(compared)
        left_out = "nothing was learned" if lost is None else f"{share(lost)} of what was learned is left out"
        say(
            f"rank {rank}: {left_out}, KL(live || plain) {compared[part]['kl']:.2e}, top-1 agreement "
            f"{compared[part]['top1_agreement']:.2%}, mean relative error of a layer {mean:.4f}",
            quiet=quiet,
        )
        if lost is None or lost <= max_lost:
            return tried
    reached = {found["rank"]: worst_part(found)[1] or 0.0 for found in tried}
    smallest = min(reached.values())
    hints = [f"`--max-lost {_above(smallest)}` lets rank {min(reached, key=lambda rank: reached[rank])} through"]
    if ranks[-1] < RANKS[-1]:
        hints.append(f"`--max-rank {RANKS[-1]}` tries larger ones")
    raise GateError(
        f"no plain LoRA up to rank {ranks[-1]} is the trained model: {share(reached[ranks[-1]])} of what was learned is "
        f"left out at rank {ranks[-1]} (limit {max_lost:g})\n"
        f"  by rank: {', '.join(f'{rank}: {share(lost)}' for rank, lost in reached.items())}; nothing was written\n"
        f"  {'; '.join(hints)}; `dorakit merge RUN` leaves nothing out",
        Gate("lost", reached[ranks[-1]], max_lost, "--max-lost"),
    )


def _above(lost: float) -> str:
    """A limit of two digits that a share is within."""
    digits = 1 - math.floor(math.log10(lost))
    return f"{math.ceil(lost * 10**digits) / 10**digits:.{max(digits, 0)}f}"


@torch.no_grad()
def _attach_plain_(model: PreTrainedModel, factors: dict[str, Factors], rank: int) -> None:
    """Put the first `rank` directions in the place of each adapter; a smaller matrix has fewer, the others are zero."""
    for name, layer in list(adapter_layers(model)):
        plain = LoRALinear(original_base(layer), rank=rank, alpha=rank)
        held = min(rank, len(factors[name].A))
        plain.lora_A.zero_()[:held] = factors[name].A[:rank]
        plain.lora_B.zero_()[:, :held] = factors[name].B[:, :rank]
        model.set_submodule(name, plain.eval().requires_grad_(False))
