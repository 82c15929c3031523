"""The smallest rank at which a plain LoRA answers as the live adapter: factor, attach, compare, rank after rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers
from dorakit.adapters.dora import DoRALinear
from dorakit.adapters.lora import LoRALinear
from dorakit.errors import GateError
from dorakit.evaluation.progress import progress, say
from dorakit.export.low_rank import Factors, low_rank_factors
from dorakit.export.receipt import Sample, compare_logits
from dorakit.memory import return_freed_memory

# The ranks that vLLM's --max-lora-rank can be set to, up to where a LoRA is small beside a weight.
RANKS = (8, 16, 32, 64, 128, 256)


def ranks_to_try(model: PreTrainedModel, max_rank: int) -> list[int]:
    """Ascending, none above the first that leaves nothing out. A LoRA has a rank already, which is taken where it may be."""
    layers = [layer for _, layer in adapter_layers(model)]
    own = max(layer.rank for layer in layers)
    if own <= max_rank and not any(isinstance(layer, DoRALinear) for layer in layers):
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
    *,
    max_kl: float,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Compare rank after rank with the live logits, up to the first within the limit, which stays attached.

    Args:
        model: Its adapters are replaced by plain LoRA layers, in place.
        factors: By layer.
        ranks: Ascending.
        samples: The rows to compare on.
        live: Directory with the live model's logits over them.
        max_kl: In nats a position, over supervised positions and over all.
        quiet: Print nothing.

    Returns:
        For each rank tried what `compare_logits` finds, and the mean relative error of a layer.

    Raises:
        GateError: None is within the limit.
    """
    tried: list[dict[str, Any]] = []
    for rank in ranks:
        _attach_plain_(model, factors, rank)
        mean = sum(layer.errors[rank] for layer in factors.values()) / len(factors)
        found = {"rank": rank, "relative_error": mean, **compare_logits(model, samples, live)}
        tried.append(found)
        say(
            f"rank {rank}: KL(live || plain) {found['all']['kl']:.2e}, top-1 agreement "
            f"{found['all']['top1_agreement']:.2%}, mean relative error of a layer {mean:.4f}",
            quiet=quiet,
        )
        if not _parts_above(found, max_kl):
            return tried
    part = _parts_above(tried[-1], max_kl)[0]
    reached = ", ".join(f"{found['rank']}: {found[part]['kl']:.3g}" for found in tried)
    raise GateError(
        f"no plain LoRA up to rank {ranks[-1]} is the trained model: KL(live || plain) over {part} positions is "
        f"{tried[-1][part]['kl']:.3g}, above the limit {max_kl:g}\n"
        f"  by rank: {reached}; nothing was written\n"
        "  a larger --max-rank or --max-kl may let one through; `dorakit merge RUN` folds the adapter in and loses nothing"
    )


@torch.no_grad()
def _attach_plain_(model: PreTrainedModel, factors: dict[str, Factors], rank: int) -> None:
    """Put the first `rank` directions in the place of each adapter; a smaller matrix has fewer, the others are zero."""
    for name, layer in list(adapter_layers(model)):
        plain = LoRALinear(layer.base, rank=rank, alpha=rank)
        held = min(rank, len(factors[name].A))
        plain.lora_A.zero_()[:held] = factors[name].A[:rank]
        plain.lora_B.zero_()[:, :held] = factors[name].B[:, :rank]
        model.set_submodule(name, plain.eval().requires_grad_(False))


def _parts_above(found: dict[str, Any], max_kl: float) -> list[str]:
    """The kinds of positions whose divergence is above the limit; written so that a NaN is."""
    return [part for part in ("supervised", "all") if found[part]["kl"] is not None and not found[part]["kl"] <= max_kl]
