"""The same training by several processes: what each holds, and what each sends in a step (parallel/sharding.py)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from dorakit.model.layers import decoder_layers
from dorakit.recipe.schema import Recipe

if TYPE_CHECKING:
    from dorakit.plan.ledger import Ledger


@dataclass(frozen=True)
class OnRanks:
    """Bytes of one of `ranks` processes.

    `base` is what it holds of the frozen base, and of a model trained whole of its parameters. `sent` is what it sends in an
    optimizer step, by ring algorithms.
    """

    strategy: str
    ranks: int
    base: int
    peak: int
    sent: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def on_ranks(ledger: Ledger, recipe: Recipe, ranks: int, *, rows: int) -> list[OnRanks]:
    """Of ddp and of fsdp; `rows` is the largest forward pass of one process."""
    part = (ranks - 1) / ranks
    whole = ledger.base if not recipe.trains_whole else ledger.base + ledger.trained
    base = whole - ledger.shareable + math.ceil(ledger.shareable / ranks)
    passes = math.ceil(recipe.training.batch_size / (rows * ranks))
    gathered = 2 * passes * part * ledger.shareable  # forward and backward
    peak = ledger.peak - whole + base + ledger.gathered
    if recipe.trains_whole:  # gradients are summed where they are gathered from, after every backward pass
        gradient = passes * part * ledger.gradients
        followers = ledger.gradients + ledger.optimizer - ledger.paged
        # The gradients of these groups are whole until they are summed.
        peak += math.ceil(followers / ranks) - followers + ledger.gathered
    else:
        gradient = 2 * part * ledger.gradients
    return [
        OnRanks("ddp", ranks, whole, ledger.peak, round(2 * part * ledger.gradients)),
        OnRanks("fsdp", ranks, base, peak, round(gradient + gathered)),
    ]


def shareable(recipe: Recipe, model: PreTrainedModel, packed: list[nn.Linear]) -> tuple[int, int]:
    """Bytes of a skeleton's parameters that are sharded, and of the two largest groups: FSDP2 gathers one while it computes
    with another.

    Those are the frozen ones, or all of a model trained whole.
    """
    quantized = {id(layer.weight): layer for layer in packed}
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    seen: set[int] = set()

    def taken(module: nn.Module) -> int:
        total = 0
        for parameter in module.parameters():
            if (parameter.requires_grad and not recipe.trains_whole) or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            total += _stored(parameter, quantized.get(id(parameter)), recipe)
        return total

    groups = [sum(map(taken, group)) for group in [*([layer] for layer in decoder_layers(model)), ends, [model]]]
    return sum(groups), sum(sorted(groups)[-2:])


def _stored(parameter: nn.Parameter, layer: nn.Linear | None, recipe: Recipe) -> int:
    if layer is None:
        return parameter.nbytes
    form = recipe.quantization
    if layer.in_features % form.block_size:
        return 0  # whole on every rank
    return parameter.numel() // 2 + parameter.numel() // form.block_size * (1 if form.double_quant else 4)
