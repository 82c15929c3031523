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

# FSDP2 gathers the next group while it computes with one.
_GROUPS_AT_ONCE = 2


@dataclass(frozen=True)
class OnRanks:
    """Bytes of one of `ranks` processes. `sent` is what it sends in an optimizer step, by ring algorithms."""

    strategy: str
    ranks: int
    base: int
    peak: int
    sent: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def on_ranks(ledger: Ledger, recipe: Recipe, ranks: int, *, rows: int) -> list[OnRanks]:
    """Of ddp and, where something is frozen, of fsdp; `rows` is the largest forward pass of one process."""
    part = (ranks - 1) / ranks
    gradient = round(2 * part * ledger.gradients)
    found = [OnRanks("ddp", ranks, ledger.base, ledger.peak, gradient)]
    if recipe.method is not None:
        base = ledger.base - ledger.shareable + math.ceil(ledger.shareable / ranks)
        passes = math.ceil(recipe.training.batch_size / (rows * ranks))
        gathered = round(2 * passes * part * ledger.shareable)  # forward and backward
        peak = ledger.peak - ledger.base + base + _GROUPS_AT_ONCE * ledger.largest_group
        found.append(OnRanks("fsdp", ranks, base, peak, gradient + gathered))
    return found


def shareable(recipe: Recipe, model: PreTrainedModel, packed: list[nn.Linear]) -> tuple[int, int]:
    """Bytes of a skeleton's frozen parameters that are sharded, and of the largest group that is gathered at once."""
    quantized = {id(layer.weight): layer for layer in packed}
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    tied = len(ends) == 2 and ends[0].weight is ends[1].weight
    seen = {id(ends[0].weight)} if tied else set()

    def taken(module: nn.Module) -> int:
        total = 0
        for parameter in module.parameters():
            if parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            total += _stored(parameter, quantized.get(id(parameter)), recipe)
        return total

    groups = [taken(module) for module in [*decoder_layers(model), *ends, model]]
    return sum(groups), max(groups, default=0)


def _stored(parameter: nn.Parameter, layer: nn.Linear | None, recipe: Recipe) -> int:
    if layer is None:
        return parameter.nbytes
    form = recipe.quantization
    if layer.in_features % form.block_size:
        return 0  # whole on every rank
    return parameter.numel() // 2 + parameter.numel() // form.block_size * (1 if form.double_quant else 4)
